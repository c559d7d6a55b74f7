"""`sapwood convert`: a target and its drafter, quantised or as they are, into one bundle.

- On stderr: a bar on a terminal, a line per file otherwise. On stdout: what was made.
- Imported by the command line only when it is asked for: it loads mlx.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sapwood import __version__
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.settings.config import DTYPES
from sapwood.daemon.sizes import format_bytes, format_in, parse_size, unit_of
from sapwood.model.checkpoint.config import Quantization
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.locate import find, source_name
from sapwood.model.checkpoint.packing import parse_packing
from sapwood.model.convert.conversion_plan import SHARD_BYTES_MAX, Settings, Source
from sapwood.model.convert.convert import Converted, ProgressReport, convert
from sapwood.model.convert.loss import PackingLoss, total_loss

_DRAFT_PACKING_ADVICE = (
    "recommended here: --quantize-draft 4bit. A target with experts reads few of its weights\n"
    "for a token; beside it a plain drafter is slow: its head is read whole for every draft"
)


def run_convert(arguments: argparse.Namespace) -> int:
    """Make the bundle and say what it is. Raises StartError, UsageError, KeyboardInterrupt."""
    destination = Path(os.path.abspath(arguments.destination))
    packings = _packings(arguments)
    settings = _settings(arguments)
    try:
        target, assistant = _sources(arguments, *packings)
        with _progress() as report:
            made = convert(target, assistant, destination, settings, report)
        advised = _is_draft_packing_advised(target, assistant, made)
    except ModelRefused as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"{error.filename or destination}: {error.strerror}") from None
    except KeyboardInterrupt:
        said = "interrupted; the same command goes on where it stopped"
        raise KeyboardInterrupt(said) from None
    _say(destination, made)
    if advised:
        print(_DRAFT_PACKING_ADVICE)
    return 0


def _packings(arguments: argparse.Namespace) -> tuple[Quantization | None, Quantization | None]:
    """The target's and the drafter's. --group-size is for all that has a choice."""
    spelled = (arguments.quantize, arguments.quantize_draft)
    group_size = arguments.group_size
    if group_size is not None and not any(text and text.endswith("bit") for text in spelled):
        raise UsageError("--group-size: nothing is quantised to bits in groups of a chosen size")
    found: list[Quantization | None] = []
    for flag, text in zip(("quantize", "quantize-draft"), spelled, strict=True):
        try:
            chosen = group_size if text and text.endswith("bit") else None
            found.append(None if text is None else parse_packing(text, chosen))
        except ValueError as error:
            raise UsageError(f"--{flag}: {error}") from None
    return found[0], found[1]


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.dtype not in (None, *DTYPES):
        raise UsageError(f"--dtype: {arguments.dtype!r} is not one of {', '.join(DTYPES)}")
    dtype = None if arguments.dtype == "auto" else arguments.dtype
    try:
        size = parse_size(arguments.shard_size) or SHARD_BYTES_MAX
    except UsageError as error:
        raise UsageError(f"--shard-size: {error}") from None
    return Settings(f"sapwood {__version__}", dtype, size)


def _sources(
    arguments: argparse.Namespace, packing: Quantization | None, draft_packing: Quantization | None
) -> tuple[Source, Source | None]:
    found = find(arguments.source, arguments.draft)
    target = Source(found.target, source_name(arguments.source, found.target), packing)
    if found.drafter is None:
        if draft_packing is not None:
            raise UsageError("--quantize-draft: there is no drafter (--draft)")
        return target, None
    name = source_name(arguments.draft or arguments.source, found.drafter)
    return target, Source(found.drafter, name, draft_packing)


@contextmanager
def _progress() -> Iterator[ProgressReport]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("")

        def report(file: str, done: int, total: int) -> None:
            progress.update(task, description=file or "done", completed=done, total=total)

        yield report


class _Lines:
    """One line per file, for logs."""

    def __init__(self) -> None:
        self._file = ""

    def __call__(self, file: str, done: int, total: int) -> None:
        if file != self._file:
            self._file = file
            unit = unit_of(total)
            text = f"{format_in(unit, done)} of {format_in(unit, total)} read"
            print(f"{file or 'all files'}: {text}", file=sys.stderr, flush=True)


def _say(destination: Path, made: Converted) -> None:
    manifest = made.manifest
    print(f"{destination}  {len(manifest.files)} files, {format_bytes(manifest.bytes)}")
    for name, part in manifest.parts.items():
        print(f"  {name:10} {part.source}: {part.quantization or 'not quantised'}, {part.dtype}")
        for line in _said_of_losses(made.losses[name]):
            print(f"             {line}")
    print(f"try it: sapwood check {destination}")


def _is_draft_packing_advised(target: Source, assistant: Source | None, made: Converted) -> bool:
    """Whether the drafter would take a large part of what a step reads: 26B-A4B's, kept plain."""
    if assistant is None or made.manifest.parts["assistant"].quantization:
        return False
    mixture = read_target_config(target.directory).text.experts is not None
    return mixture and read_assistant_config(assistant.directory).ordered_head is None


def _said_of_losses(losses: Sequence[PackingLoss]) -> Iterator[str]:
    """What packing took from one part's weights, of those that it packed."""
    if not losses:
        return
    whole, worst = total_loss("", losses), max(losses, key=lambda loss: loss.share)
    yield f"packing changed its weights by {_percent(whole)}, most {worst.name}: {_percent(worst)}"
    if whole.zeroed:
        most = max(losses, key=lambda loss: loss.zeroed)
        yield f"{whole.zeroed} small weights became zero, {most.zeroed} of them in {most.name}"


def _percent(loss: PackingLoss) -> str:
    return f"{100 * loss.share:.1f} %"
