"""`python -m bench.model`: the page of expected speeds, printed; `--write`: docs/bench/expected.md.

- Everything on the page comes from the model (bench/step_work.py) and from the published figures it
  is held against (bench/reports.py); a test says that the page is what the model gives.
- It is an estimate, and says so where it begins. What was measured is in docs/bench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence

from bench.families import FAMILIES, Family
from bench.machine import ROOT
from bench.reports import CALIBRATION, CHIPS, ROUND_REPORTS, SPEED_REPORTS, SpeedReport
from bench.step_work import (
    ARITHMETIC_SHARE,
    BANDWIDTH_SHARE,
    BITS,
    MATRIX_ROWS_MIN,
    NODE_S,
    TILE_ROWS,
    Chip,
    StepWork,
    launch_s,
    round_tokens,
)

PAGE = ROOT / "docs" / "bench" / "expected.md"
_SHOWN = tuple(CHIPS[name] for name in ("M3 Max", "M3 Ultra", "M4 Pro", "M4 Max", "M5", "M5 Max"))
_CLIENTS, _DEPTHS = (1, 4, 16), range(8)
_ACCEPTANCE = 0.7
_EXAMPLE = CHIPS["M4 Max"]

_HEAD = """\
# Expected speed on Apple silicon: an estimate

**Nothing on this page was measured by us.** Sapwood has not met a Mac yet. The numbers are a
model's, written by `python -m bench.model --write`; what was measured is in [README.md](README.md).

The device takes the longer of two times, for a step's bytes at {bandwidth:g} of the memory's
peak and for its arithmetic at {arithmetic:g} of the GPU's; then {launches} µs for every kernel. The
host builds the step's graph, {nodes} µs for every node, and starts it in some parts; the device
computes one while the next is built. So a step takes what the device takes and one part's building,
or all building and the device's last part, whichever is longer. Each number is a range between
these ends.

- Assumed: decoding clients with {context:,} tokens of context each and no prompts beside them,
  K/V in bfloat16, greedy sampling, experts chosen evenly, each draft accepted with probability
  {acceptance:g}.
- Up to {rows} rows a step's arithmetic grows row by row, from there on in tiles of {tile}. MLX's
  own limit depends on chip and matrix: 13 to 15 on M3 and M4, another on an Ultra.
- What a node costs was counted on a slow server: Apple's cores are quicker. That rows of many
  clients cost the host more than rows of one is not in it.
- M5's arithmetic in tiles is not known to us. Where it would count, "≤" is before the most that
  memory, kernels and host allow.
- Not asked: whether model and clients fit in memory, heat, what M1 and M2 do with a few rows.
"""
_CALIBRATED = """
## Calibration

The two ends of a kernel's cost come from two public figures, one each: what is left of a step when
its bytes are taken off, shared among its kernels, rounded. How many these are is counted as mlx-lm
builds a step, one after the next and the next while the first computes, here and in the next table:
other engines' own graphs are not known. Two constants from two figures leave no residual to judge
by. The shares of the peaks are assumed, a node's cost was counted elsewhere.
"""
_JUDGED = """
## Held against other figures

None of these moved a constant. Prompt, context and engine are their authors'. The residual is how
far a figure lies outside of the model's range, whose quick end is that of an engine that builds
ahead and so pays nothing for its host; {inside} of {count} lie inside. So the model's ends are no
bounds: it may tell what binds a step, and compare one choice with another.
"""
_ROUNDS = """
Rounds with drafts, in plain steps of the same engine. Both cost more than the model has it, and
**the model does not explain it**: take its gains from speculation as the most that can be had. In
the model are a bfloat16 drafter's bytes, its dense head among them, every kernel of drafts and
verification, attention that no fused kernel takes, and the host's nodes. Not in it are an engine's
waits between drafts (three of 0.4 ms are 0.03 of 31B's step), how well kernels of several rows use
the memory, and overlap that fails: with bytes, arithmetic, kernels and host one after the other the
costs are those of the last but one column. That is less than was published, too.
"""
_STEPS = """
## One step of one client

Target and drafter in 4 bits. Nodes and kernels are those of the step's own graph, exported here in
true shapes with and without drafts, where what Metal has a kernel for is one node; a kernel is a
node that computes. The weights are those that the graph multiplies with, to the last one; tests
hold all of it.
"""
_SPEEDS = """
## Tokens per second, all clients together

Target and drafter in 4 bits. Columns are drafts a round, with the tokens that a round is expected
to give. "best" is the one with the highest product of both ends. With more than 3 drafts a round of
E2B takes two calls of the fused kernel of sliding attention, which is counted.
"""
_PACKINGS = """
## Packings

{chip}, one client, tokens per second without drafts and with three; the drafter in 4 bits.
"""
_DRAFTERS = """
## The drafter's packing

{chip}, one client, three drafts, the target in 4 bits. A dense drafter head, of 262,144 rows of
1,024, is read whole for every draft, so a drafter in bfloat16 takes a large part of what a step of
26B-A4B reads. What 4 bits cost in accepted drafts is not in these numbers: `sapwood check` prints
the share that is accepted.
"""


def page() -> str:
    """The whole page."""
    inside = sum(not report.residual for report in SPEED_REPORTS)
    judged = _JUDGED.format(inside=inside, count=len(SPEED_REPORTS))
    parts = [_head(), _CALIBRATED, _calibration(), judged, _residuals(), _ROUNDS, _rounds()]
    parts += [_STEPS, _steps(), _SPEEDS]
    for family in FAMILIES.values():
        parts += [f"### {family.name}", _speeds(family)]
    parts += [_PACKINGS.format(chip=_EXAMPLE.name), _packings()]
    parts += [_DRAFTERS.format(chip=_EXAMPLE.name), _drafters()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _head() -> str:
    return _HEAD.format(
        bandwidth=BANDWIDTH_SHARE,
        arithmetic=ARITHMETIC_SHARE,
        launches=" to ".join(f"{1e6 * seconds:g}" for seconds in launch_s()),
        nodes=" to ".join(f"{1e6 * seconds:g}" for seconds in NODE_S),
        context=StepWork(FAMILIES["E2B"]).context,
        acceptance=_ACCEPTANCE,
        rows=MATRIX_ROWS_MIN - 1,
        tile=TILE_ROWS,
    )


def _calibration() -> str:
    rows = (
        [
            report.source, report.chip.name, _named(report), f"{report.tokens_s:.1f}",
            f"{report.launch_s * 1e6:.1f} µs", report.remark,
        ]
        for report in CALIBRATION
    )  # fmt: skip
    return _table(("source", "chip", "model", "tokens/s", "a kernel", ""), rows)


def _residuals() -> str:
    rows = (
        [
            report.source, report.chip.name, _named(report), f"{report.tokens_s:g}",
            _span(*report.range_tokens_s),
            f"{100 * report.residual:+.1f} %" if report.residual else "inside", report.remark,
        ]
        for report in SPEED_REPORTS
    )  # fmt: skip
    head = ("source", "chip", "model", "published tokens/s", "the model's", "residual", "")
    return _table(head, rows)


def _rounds() -> str:
    rows = (
        [
            report.source, report.chip.name, f"{report.step.family.name}, {report.step.depth}",
            f"{report.cost:.2f}", "{:.2f} to {:.2f}".format(*report.range_cost),
            f"{report.cost_one_by_one:.2f}", report.remark,
        ]
        for report in ROUND_REPORTS
    )  # fmt: skip
    head = ("source", "chip", "model, drafts", "published cost", "ours", "one by one", "")
    return _table(head, rows)


def _steps() -> str:
    rows = (
        [family.name, str(depth), f"{step.graph.nodes:,}", f"{step.graph.kernels:,}",
         str(step.graph.starts), f"{step.bytes / 1e9:.2f} GB",
         f"{step.flops / 1e9:.0f} GFLOP", _milliseconds(step, _EXAMPLE)]
        for family in FAMILIES.values()
        for depth in (0, 3)
        for step in [StepWork(family, depth=depth)]
    )  # fmt: skip
    head = (
        *("model", "drafts", "nodes", "kernels", "parts", "bytes", "arithmetic"),
        f"on {_EXAMPLE.name}",
    )
    return _table(head, rows)


def _speeds(family: Family) -> str:
    depths = [f"{depth} ({round_tokens(depth, _ACCEPTANCE):.2f})" for depth in _DEPTHS]
    rows = (_speed_row(family, chip, count) for chip in _SHOWN for count in _CLIENTS)
    return _table(("chip", "clients", *depths, "best"), rows)


def _speed_row(family: Family, chip: Chip, clients: int) -> list[str]:
    shown, worth = [], []
    for depth in _DEPTHS:
        step = StepWork(family, clients, depth)
        low, high = step.tokens_s(chip, _ACCEPTANCE)
        if chip.flops_s is None and step.rows >= MATRIX_ROWS_MIN:
            shown.append(f"≤{high:.0f}")  # what binds it is not known
            continue
        shown.append(_span(low, high))
        worth.append(low * high)
    best = str(worth.index(max(worth))) if worth else "-"
    return [chip.name, str(clients), *shown, best]


def _packings() -> str:
    rows = (
        [
            family.name, packing, f"{plain.bytes / 1e9:.2f} GB",
            *(_span(*step.tokens_s(_EXAMPLE, _ACCEPTANCE)) for step in (plain, drafted)),
        ]
        for family in FAMILIES.values()
        for packing in BITS
        for plain in [StepWork(family, packing=packing)]
        for drafted in [StepWork(family, depth=3, packing=packing)]
    )  # fmt: skip
    return _table(("model", "packing", "bytes, d0", "d0", "d3"), rows)


def _drafters() -> str:
    rows = (
        [
            family.name, packing, f"{step.draft_bytes / 1e6:.0f} MB", f"{step.bytes / 1e9:.2f} GB",
            _milliseconds(step, _EXAMPLE), _span(*step.tokens_s(_EXAMPLE, _ACCEPTANCE)),
        ]
        for family in FAMILIES.values()
        for packing in ("bf16", "8-bit", "4-bit")
        for step in [StepWork(family, depth=3, draft_packing=packing)]
    )  # fmt: skip
    head = ("model", "drafter", "bytes a draft", "bytes a step", "a step", "tokens/s")
    return _table(head, rows)


def _named(report: SpeedReport) -> str:
    return f"{report.step.family.name} {report.step.packing}"


def _milliseconds(step: StepWork, chip: Chip) -> str:
    quick, slow = (1e3 * seconds for seconds in step.seconds(chip))
    return f"{quick:.1f} to {slow:.1f} ms"


def _span(low: float, high: float) -> str:
    return f"{low:.0f}-{high:.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(_lines(head, rows))


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |".replace("|  |", "| |")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.model", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    if parser.parse_args(argv).write:
        PAGE.write_text(page())
        print(PAGE.relative_to(ROOT))
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
