"""The report of a run: JSON for machines, a table for the terminal, a picture for readers.

- docs/bench/README.md documents the JSON; SCHEMA changes with its shape.
- Everything in all three comes from the same figures, and every run of every figure is in the JSON
  and in the picture.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.machine import commit, machine, versions
from bench.measure import BenchError, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = 1
MET, MISSED, UNJUDGED = "#2a7f62", "#c8553d", "#4a6fa5"
VERDICTS = {True: "met", False: "missed", None: "-"}


@dataclass(frozen=True, slots=True)
class BenchReport:
    """blas: of all contestants, daemons and this process."""

    commit: str
    measured_at: str  # UTC, ISO 8601
    duration_s: float
    quick: bool
    machine: dict[str, Any]
    versions: dict[str, str]
    blas: str
    figures: tuple[Figure, ...]

    def as_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {
            "schema": SCHEMA,
            **fields,
            "figures": [figure.as_json() for figure in self.figures],
        }


class BenchRun:
    """A run that has begun: when, where, and of which commit. The machine is read at its start."""

    def __init__(self, quick: bool) -> None:
        self._began, self._clock = datetime.now(UTC), time.monotonic()
        self._quick, self._commit, self.machine = quick, commit(), machine()

    def report(self, blas: Collection[str], figures: Sequence[Figure]) -> BenchReport:
        """Of now. blas: what all that computed had loaded; BenchError where that is not one."""
        if len(blas) != 1:
            raise BenchError(f"the contestants computed with {' and '.join(sorted(blas))}")
        return BenchReport(
            commit=self._commit,
            measured_at=self._began.isoformat(timespec="seconds"),
            duration_s=round(time.monotonic() - self._clock, 1),
            quick=self._quick,
            machine=self.machine,
            versions=versions(),
            blas=next(iter(blas)),
            figures=tuple(figures),
        )


def show(figures: Sequence[Figure]) -> None:
    """The table, on stdout."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table(figures))


def write_report(report: BenchReport, folder: Path) -> list[Path]:
    """results.json and results.svg; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, image = folder / "results.json", folder / "results.svg"
    text.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
    plot(report, image)
    return [text, image]


def table(figures: Sequence[Figure]) -> Table:
    made = Table(title="Ratios: median, quartiles and range over runs")
    made.add_column("figure")
    made.add_column("what")
    for name in ("median", "quartiles", "range", "target", ""):
        made.add_column(name, justify="right", no_wrap=True)
    for figure in figures:
        s = figure.spread
        made.add_row(
            figure.name,
            figure.title,
            number(s.median),
            f"{number(s.low_quartile)} to {number(s.high_quartile)}",
            f"{number(s.least)} to {number(s.most)}",
            "-" if figure.target is None else str(figure.target),
            _verdict(figure),
        )
    return made


def _verdict(figure: Figure) -> str:
    return VERDICTS[figure.met] + (", disturbed" if figure.disturbed else "")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.3g}"


def plot(report: BenchReport, path: Path) -> None:
    """One line per figure: every run, the median, the quartiles, and the target or parity."""
    import matplotlib

    matplotlib.use("agg")
    # A fixed salt and no date: the same figures give the same file. Text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "sapwood", "svg.fonttype": "none"})
    from matplotlib import pyplot

    count = len(report.figures)
    figure, panels = pyplot.subplots(
        count, 1, figsize=(9, 0.9 * count + 1), squeeze=False, layout="constrained"
    )
    for panel, measured in zip(panels[:, 0], report.figures, strict=True):
        _panel(panel, measured)
    machine = report.machine
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, {report.blas}\n"
        f"commit {report.commit[:12]}{', quick' if report.quick else ''}",
        fontsize=9,
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(panel: Axes, figure: Figure) -> None:
    spread = figure.spread
    colour = {True: MET, False: MISSED, None: UNJUDGED}[figure.met]
    panel.plot([spread.low_quartile, spread.high_quartile], [0, 0], lw=6, color=colour, alpha=0.3)
    panel.plot(figure.ratios, [0] * len(figure.ratios), "o", ms=4, color=colour, alpha=0.7)
    panel.plot([spread.median], [0], "|", ms=18, mew=2, color=colour)
    bound = 1.0 if figure.target is None else figure.target.bound
    panel.axvline(bound, color="black", lw=1, ls=":" if figure.target is None else "-")
    panel.set_xlim(0, 1.15 * max(spread.most, bound))
    panel.set_yticks([])
    panel.tick_params(labelsize=7)
    judged = "" if figure.target is None else f", target {figure.target}: {_verdict(figure)}"
    title = f"{figure.title}: {number(spread.median)}{judged}"
    panel.set_title(title, loc="left", fontsize=8)
    for edge in ("left", "right", "top"):
        panel.spines[edge].set_visible(False)
