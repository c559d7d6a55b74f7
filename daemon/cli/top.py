"""`sapwood top`: what a daemon is doing, again and again, from its counters.

- Rates are differences of two scrapes; a daemon that was started anew has none below nothing.
- The metrics' address is --metrics, else that of the ready file of the daemon on this machine, else
  the default.
- On a terminal a page is drawn over and over; else, and with --json, there is a line for each look.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.scrape import Counters, scrape, total
from sapwood.daemon.errors import StartError
from sapwood.daemon.process.ready import default_ready_file
from sapwood.daemon.settings.config import DEFAULT_METRICS
from sapwood.daemon.sizes import format_bytes

_MEMORY = ("weights", "live", "segments", "snapshots", "workspace", "mlx_cache", "other", "free")
_COLOURS = ("blue", "green", "cyan", "magenta", "yellow", "white", "red", "bright_black")
_BAR_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class Look:
    """What a daemon does. Rates and shares are of the time since the last look; None: of nothing.

    draft_tokens_per_round: how deep it drafts, on average.
    """

    running: int
    waiting: int
    tokens_per_s: float
    prompt_tokens_per_s: float
    accepted_share: float | None
    draft_tokens_per_round: float | None
    cached_share: float | None
    tree_nodes: int
    tree_bytes: int
    memory_bytes: dict[str, int]


def run_top(arguments: argparse.Namespace) -> int:
    """Until Ctrl-C, or once. Raises StartError where no metrics answer."""
    metrics = arguments.metrics or _known_metrics()
    if arguments.json or arguments.once or not sys.stdout.isatty():
        shown = _as_json if arguments.json else _as_line
        _watch(metrics, arguments, lambda look: print(shown(look), flush=True))
        return 0
    console = Console(highlight=False)
    with Live(Text("…"), console=console, screen=True, auto_refresh=False) as live:
        try:
            _watch(
                metrics, arguments, lambda look: live.update(draw_look(metrics, look), refresh=True)
            )
        except KeyboardInterrupt:  # the way to leave a page
            return 0
    return 0


def _watch(metrics: str, arguments: argparse.Namespace, show: Callable[[Look], None]) -> None:
    before, looked_at = _scraped(metrics), time.monotonic()
    while True:
        time.sleep(arguments.interval)
        after, now = _scraped(metrics), time.monotonic()
        show(look_between(before, after, now - looked_at))
        if arguments.once:
            return
        before, looked_at = after, now


def _scraped(metrics: str) -> Counters:
    try:
        return scrape(metrics)
    except DemoError as error:
        help = "`sapwood serve` starts a daemon, --metrics names another"
        raise StartError(f"{metrics}: {error}; {help}") from None


def _known_metrics() -> str:
    try:
        return str(json.loads(default_ready_file(os.environ).read_text())["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_METRICS


def look_between(before: Counters, after: Counters, seconds: float) -> Look:
    """Two scrapes, and how far they lie apart."""

    def moved(name: str) -> float:
        return max(0.0, _known(total(after, name)) - _known(total(before, name)))

    prompt, drafted = moved("prompt_tokens_total"), moved("draft_tokens_total")
    return Look(
        running=int(_known(total(after, "requests_running"))),
        waiting=int(_known(total(after, "requests_waiting"))),
        tokens_per_s=moved("generated_tokens_total") / seconds,
        prompt_tokens_per_s=prompt / seconds,
        accepted_share=_share(moved("accepted_tokens_total"), drafted),
        draft_tokens_per_round=_share(drafted, moved("draft_rounds_total")),
        cached_share=_share(moved("prefix_cached_tokens_total"), prompt),
        tree_nodes=int(_known(total(after, "tree_nodes"))),
        tree_bytes=int(_known(total(after, "tree_bytes"))),
        memory_bytes={kind: int(_known(total(after, "memory_bytes", kind))) for kind in _MEMORY},
    )


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _as_json(look: Look) -> str:
    return json.dumps(asdict(look))


def _as_line(look: Look) -> str:
    return "  ".join(f"{label} {text}" for label, text in _figures(look))


def _figures(look: Look) -> list[tuple[str, str]]:
    depth = look.draft_tokens_per_round
    return [
        ("running", str(look.running)),
        ("waiting", str(look.waiting)),
        ("tokens/s", f"{look.tokens_per_s:.1f}"),
        ("prompt tokens/s", f"{look.prompt_tokens_per_s:.0f}"),
        ("drafts a round", "-" if depth is None else f"{depth:.1f}"),
        ("accepted", _percent(look.accepted_share)),
        ("prompt cached", _percent(look.cached_share)),
        ("tree", f"{look.tree_nodes} nodes, {format_bytes(look.tree_bytes)}"),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def draw_look(metrics: str, look: Look) -> Table:
    """All of it, with memory as a bar whose parts are the budget."""
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("sapwood top", style="bold"), Text(f"{metrics}, Ctrl-C leaves", style="dim"))
    for label, text in _figures(look):
        table.add_row(Text(label, style="dim"), text)
    table.add_row(Text("memory", style="dim"), _bar(look.memory_bytes))
    for (kind, size), colour in zip(look.memory_bytes.items(), _COLOURS, strict=True):
        if size:
            table.add_row("", Text.assemble(("■ ", colour), f"{kind} {format_bytes(size)}"))
    return table


def _bar(parts: dict[str, int]) -> Text:
    """Each part ends at its share of the sum so far, so that the columns add up."""
    whole, bar, done, drawn = sum(parts.values()), Text(), 0, 0
    for size, colour in zip(parts.values(), _COLOURS, strict=True):
        done += size
        end = round(_BAR_COLUMNS * done / whole) if whole else 0
        bar.append("█" * (end - drawn), colour)
        drawn = end
    return bar
