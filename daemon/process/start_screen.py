"""What `serve` shows on a terminal, on stderr: how far it has loaded, and then what it serves.

- Standard output has the ready line and nothing else. Where stderr is no terminal nothing is shown.
- Why there is no drafter is said: it is the difference between one token a step and several.
- What draws it is imported where there is a terminal: no service waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sapwood.daemon import blas
from sapwood.daemon.engine.account import MemoryUse
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.log import log_over
from sapwood.daemon.settings.config import Config
from sapwood.daemon.sizes import format_bytes

if TYPE_CHECKING:
    from rich.console import Console


class Screen(Protocol):
    """Who is shown what. Its methods are called in this order; report by the loading thread."""

    def report(self, done: int, total: int) -> None:
        """Bytes of weights read so far, and of all."""

    def show(
        self, config: Config, card: ModelCard, memory: MemoryUse, addresses: Sequence[str]
    ) -> None:
        """It serves."""

    def close(self) -> None:
        """Nothing moves any more; safe to repeat."""


class Nowhere:
    """No terminal."""

    def report(self, done: int, total: int) -> None:
        """Nothing."""

    def show(
        self, config: Config, card: ModelCard, memory: MemoryUse, addresses: Sequence[str]
    ) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class StartScreen:
    """On a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        """console: None is stderr."""
        from rich import progress
        from rich.console import Console

        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
        )
        # Standard output is not this screen's: the ready line is for whoever reads there.
        self._progress = progress.Progress(
            *columns,
            progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._progress.start()
        log_over(bar=True)

    def report(self, done: int, total: int) -> None:
        """A bar; behind it comes what a first step takes."""
        said = "loading" if done < total else "warming up"
        self._progress.update(self._task, description=said, completed=done, total=total)

    def show(
        self, config: Config, card: ModelCard, memory: MemoryUse, addresses: Sequence[str]
    ) -> None:
        """A line for each thing that one asks first."""
        self.close()
        lines = [*start_lines(config, card, memory), *(("at", each) for each in addresses)]
        with suppress(OSError):  # whoever looked is gone
            for label, text in lines:
                self._console.print(f"{label:9}{text}", markup=False)

    def close(self) -> None:
        """The bar goes."""
        self._progress.stop()
        log_over(bar=False)


def start_lines(config: Config, card: ModelCard, memory: MemoryUse) -> list[tuple[str, str]]:
    """Label and text of each line."""
    packed = card.quantization.partition("; drafter ")[0] or "not quantised"
    budget = f"{format_bytes(memory.budget)} to use"
    if config.memory_bytes is None:
        budget += ", by the device (--memory)"
    return [
        ("model", f"{card.name}  {card.family}, {packed}"),
        ("drafter", card.drafter or _why_none(config)),
        ("memory", f"{budget}: weights {format_bytes(memory.weights)}"),
        ("context", f"{card.facts.context_tokens_max} tokens"),
        ("device", f"{card.device}{_blas(card)}"),
    ]


def _why_none(config: Config) -> str:
    if config.draft == "none":
        return "none, by --draft none: one token a step"
    return "none: the model came without one, so one token a step (--draft)"


def _blas(card: ModelCard) -> str:
    """A CPU's products are some other library's, which makes thirty times' difference."""
    if not card.device.startswith("cpu"):
        return ""
    return f", {blas.loaded(os.getpid(), sys.platform)}"
