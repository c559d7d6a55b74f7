"""The page of all joined records: tables of absolute values and verdicts, and a picture a question.

- Everything in it comes from the records; the words around it are in docs/bench/peers.md.
- A figure's verdict is its worse quartile's, with `disturbed` beside it where others computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.records import Joined, PeersRecord
from bench.report import VERDICTS, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WANTED_RUNS = 5  # what a verdict is promised to rest on
TABLES, COLOURS = "results.md", ("#2a7f62", "#8fb996", "#c8553d", "#4a6fa5", "#7d5ba6")


def write_pages(joined: Joined, folder: Path) -> list[Path]:
    """Tables and pictures beside the records; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = folder / TABLES
    tables.write_text("\n".join(page_lines(joined)) + "\n")
    made = [tables]
    for question in dict.fromkeys(r.question for r in joined.records):
        made.append(folder / f"{question}.svg")
        draw_question([r for r in joined.records if r.question == question], made[-1])
    return made


def page_lines(joined: Joined) -> Iterator[str]:
    """Lines of Markdown."""
    yield "# Beside every peer"
    yield ""
    yield "Made by `make bench ARGS=peers`; what is measured and how: [peers](../peers.md)."
    if not joined.records:
        yield ""
        yield "Nothing has been measured."
        return
    first = joined.records[0].content
    machine = first["machine"]
    quick = " Quick: the figures mean little." if first["quick"] else ""
    yield ""
    yield (
        f"Commit {first['commit'][:12]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{first['blas']}.{quick}"
    )
    yield from _verdicts(joined.records)
    for record in joined.records:
        yield from _values(record)
    if joined.left_out:
        yield ""
        yield "Left out, of another commit or machine: " + ", ".join(
            f"{r.question} {r.pair} ({r.content['commit'][:12]})" for r in joined.left_out
        )


def _verdicts(records: Sequence[PeersRecord]) -> Iterator[str]:
    """A line for each figure with a target."""
    yield from ("", "## Targets", "")
    yield "| figure | what | median | worse quartile | target | |"
    yield "|---|---|---|---|---|---|"
    for record in records:
        for figure in record.content["figures"]:
            if figure["target"] is not None:
                yield verdict_line(figure)


def verdict_line(figure: Mapping[str, Any]) -> str:
    ratio, target = figure["ratio"], figure["target"]
    least = target["kind"] == "at least"
    worse = ratio["low_quartile" if least else "high_quartile"]
    said = VERDICTS[figure["met"]] + (", disturbed" if figure["disturbed"] else "")
    said += f", {ratio['runs']} runs only" if ratio["runs"] < WANTED_RUNS else ""
    bound = f"{'≥' if least else '≤'} {target['bound']:g}"
    return (
        f"| {figure['name']} | {figure['title']} | {number(ratio['median'])} | {number(worse)} "
        f"| {bound} | {said} |"
    )


def _values(record: PeersRecord) -> Iterator[str]:
    """Medians with quartiles, a column for each number of clients, a line for each contestant."""
    pair = record.content["pair"]
    yield from ("", f"## {record.question}, {pair['title']}", "")
    yield (
        f"Target {pair['target_weights'] / 1e6:.1f} M weights a token, drafter "
        f"{pair['drafter_share']:.1%} of that. ![picture]({record.question}.svg)"
    )
    rows = record.content["rows"]
    for measure in dict.fromkeys(row["measure"] for row in rows):
        some = [row for row in rows if row["measure"] == measure]
        counts = sorted({row["clients"] for row in some})
        yield ""
        yield f"| {measure}, {some[0]['unit']} | " + " | ".join(map(str, counts)) + " |"
        yield "|---|" + "---|" * len(counts)
        for name in dict.fromkeys(row["contestant"] for row in some):
            found = {row["clients"]: cell(row) for row in some if row["contestant"] == name}
            yield f"| {name} | " + " | ".join(found.get(n, "") for n in counts) + " |"
    yield from _acceptances(rows)


def cell(row: Mapping[str, Any]) -> str:
    spread = row["spread"]
    low, high = number(spread["low_quartile"]), number(spread["high_quartile"])
    return f"{number(spread['median'])} ({low} to {high}){' *' if row['disturbed'] else ''}"


def _acceptances(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where drafts were counted: what became of them, of all alternations and clients."""
    for name in dict.fromkeys(row["contestant"] for row in rows):
        counted = {
            row["clients"]: row["details"]
            for row in rows
            if row["contestant"] == name and row["details"].get("drafts")
        }
        drafts = sum(d["drafts"] for d in counted.values())
        if drafts:
            accepted = sum(d["accepted"] for d in counted.values())
            yield ""
            yield f"{name}: {accepted / drafts:.3f} of {drafts:.0f} drafts accepted."


def draw_question(records: Sequence[PeersRecord], path: Path) -> None:
    """A panel for each pair and measure: over clients where several were measured, else dots."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "sapwood", "svg.fonttype": "none"})
    from matplotlib import pyplot

    panels = [
        (record, measure)
        for record in records
        for measure in dict.fromkeys(row["measure"] for row in record.content["rows"])
    ]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 2.6 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (record, measure) in zip(axes[:, 0], panels, strict=True):
        rows = [row for row in record.content["rows"] if row["measure"] == measure]
        _panel_of(axis, rows)
        title = f"{record.question}, {record.content['pair']['title']}: {measure}"
        axis.set_title(title, loc="left", fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _panel_of(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    counts = sorted({row["clients"] for row in rows})
    for name, colour in zip(names, COLOURS, strict=False):
        mine = sorted((r for r in rows if r["contestant"] == name), key=lambda r: r["clients"])
        if len(counts) > 1:
            at = [r["clients"] for r in mine]
            spreads = [r["spread"] for r in mine]
            axis.plot(at, [s["median"] for s in spreads], "o-", color=colour, label=name, ms=3)
            low, high = ([s[end] for s in spreads] for end in ("low_quartile", "high_quartile"))
            axis.fill_between(at, low, high, color=colour, alpha=0.2)
        else:
            values = mine[0]["values"]
            axis.plot(values, [name] * len(values), "o", color=colour, alpha=0.7)
    if len(counts) > 1:
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, list(map(str, counts)))
        axis.legend(fontsize=7)
        axis.set_ylim(bottom=0)
    else:
        axis.set_xlim(left=0)
    axis.set_ylabel(rows[0]["unit"] if len(counts) > 1 else "", fontsize=8)
    axis.tick_params(labelsize=7)
