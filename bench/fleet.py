"""`python -m bench.fleet`: how much a fleet computes again, and how evenly, by who routes.

- A simulation of 1 to 64 daemons (bench/replay/many.py) over the traces of prompts: the production
  tree, what it tells a gateway, and SMG's rules. There is no device and no clock: the same seed
  gives the same table on any machine. It takes some minutes, most of them for the 64.
- `--write` puts table and picture into docs/bench; the page around them is written by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import ROOT
from bench.replay.kinds import TRACE_KINDS
from bench.replay.many import groups_of, router_named, simulate

FOLDER = ROOT / "docs/bench"
FLEET_PAGE, FLEET_DATA, FLEET_PICTURE = (
    FOLDER / f"fleet.{suffix}" for suffix in ("md", "json", "svg")
)
BEGIN, END = "<!-- bench.fleet -->\n", "<!-- end -->\n"

WORKERS = (1, 4, 16, 64)
SCALE, COMMON_TOKENS = 0.25, 500
TITLES = {"random": "random", "hash": "hash of the client", "events": "KV events"}
FleetRow = Mapping[str, Any]  # workers, router, share, imbalance, kinds


def fleet_rows(workers: Sequence[int], seed: int, scale: float = SCALE) -> Iterator[FleetRow]:
    """One for each number of workers and router; one worker needs no router."""
    for number in workers:
        groups = groups_of(number, seed, scale, COMMON_TOKENS)
        for name in TITLES if number > 1 else ["random"]:
            outcome = simulate(router_named(name, number, seed), groups, number)
            yield {
                "workers": number,
                "router": name if number > 1 else None,
                "share": round(outcome.share, 4),
                "imbalance": round(outcome.imbalance, 3),
                "kinds": {kind: round(outcome.share_of(kind), 4) for kind in TRACE_KINDS},
            }


def fleet_table(found: Sequence[FleetRow]) -> str:
    """Markdown."""
    kinds = " | ".join(TRACE_KINDS)
    lines = [
        f"| daemons | routed by | computed | busiest ÷ mean | {kinds} |",
        "|--:|---|--:|--:|" + "--:|" * len(TRACE_KINDS),
    ]
    for row in found:
        shares = (f"{row['kinds'][kind]:.0%}" for kind in TRACE_KINDS)
        router = "-" if row["router"] is None else TITLES[row["router"]]
        lines.append(
            f"| {row['workers']} | {router} | {row['share']:.1%} | {row['imbalance']:.2f} | "
            f"{' | '.join(shares)} |"
        )
    return "\n".join(lines) + "\n"


def with_table(page: str, found: Sequence[FleetRow]) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{fleet_table(found)}{END}{after}"


def plot_fleet(found: Sequence[FleetRow], path: Path) -> None:
    """Both figures by the number of daemons, a line for each router."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "sapwood", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    alone = next(row for row in found if row["router"] is None)
    for name, title in TITLES.items():
        own = [alone, *(row for row in found if row["router"] == name)]
        counts = [row["workers"] for row in own]
        for panel, key, factor in zip(panels, ("share", "imbalance"), (100, 1), strict=True):
            panel.plot(counts, [factor * row[key] for row in own], "o-", label=title)
    for panel, title in zip(
        panels, ("prompt tokens computed, %", "busiest daemon's work ÷ mean"), strict=True
    ):
        panel.set_xscale("log", base=4)
        panel.set_xticks(WORKERS, [str(count) for count in WORKERS])
        panel.set_xlabel("daemons")
        panel.set_title(title, loc="left", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(0, 100)
    panels[1].set_ylim(0)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the traces")
    parser.add_argument("--quick", action="store_true", help="up to 4 daemons")
    parser.add_argument("--write", action="store_true", help=f"into {FOLDER.relative_to(ROOT)}")
    arguments = parser.parse_args(argv)
    found = []
    for row in fleet_rows(WORKERS[:2] if arguments.quick else WORKERS, arguments.seed):
        found.append(row)
        print(fleet_table(found).splitlines()[-1], flush=True)
    if arguments.write:
        FLEET_DATA.write_text(json.dumps(found, indent=1) + "\n")
        FLEET_PAGE.write_text(with_table(FLEET_PAGE.read_text(), found))
        plot_fleet(found, FLEET_PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
