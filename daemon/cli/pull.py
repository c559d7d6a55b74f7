"""`sapwood pull`: a model from the hub into its local cache, and the drafter that goes with it.

- Only what `serve` reads is fetched, and only once the configs are known to be those of a Gemma 4
  and of a drafter that fits: what does not fit costs no gigabytes.
- After an interruption the same command fetches what is missing. The hub's library keeps files that
  are whole and begins a broken one anew (2.4; within one run it goes on behind a lost connection).
- A drafter is looked for as ID-assistant, then among the owner's models and Google's by its name
  without case and packing, in the target's packing first.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

from sapwood.daemon import entry
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.sizes import format_bytes
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.pair import check_fit

_READ = ["*.json", "*.jinja", "*.safetensors", "LICENSE*"]
_PACKING = re.compile(r"-((?:[2-8]bit|bf16|fp16|f16|fp32|mxfp[48]|nvfp4)(?:-.*)?)$")
_OTHERS_MAX = 1000  # models of an owner that are looked through
_GOOGLE = "google"
_INTERRUPTED = "interrupted; the same command fetches the files that are missing"
_BARS_ERASED = b"\r\x1b[J"  # the cursor is on the first one's line


def run_pull(arguments: argparse.Namespace) -> int:
    """Fetch, and print what to serve. Raises StartError, UsageError, KeyboardInterrupt."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    hub_id, _, revision = arguments.model.partition("@")
    try:
        return _pulled(hub_id, revision or None, arguments.draft)
    except ModelRefused as error:
        raise StartError(str(error)) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_INTERRUPTED) from None


def _pulled(hub_id: str, revision: str | None, draft: str | None) -> int:
    config = _config(hub_id, revision)
    if config is not None and draft is None and not _is_drafter(hub_id):
        draft = find_drafter(hub_id)
    if config is not None and draft not in (None, "none"):
        _require_fit(config, draft)
    _print_fetched(hub_id, _fetch(hub_id, revision))
    flags = f"--model {hub_id}" + (f"@{revision}" if revision else "")
    if draft not in (None, "none"):
        _print_fetched(draft, _fetch(draft, None))
        flags += f" --draft {draft}"
    elif config is not None and draft is None and not _is_drafter(hub_id):
        print("no drafter was found for it: --draft ID names one")
    if not _is_drafter(hub_id):
        print(f"serve it: sapwood serve {flags}")
    return 0


def _config(hub_id: str, revision: str | None) -> ModelDirectory | None:
    """The folder with its config.json; None for a bundle, which has none at its top."""
    with _asking(hub_id), _bars() as bar:
        try:
            path = hf_hub_download(hub_id, "config.json", revision=revision, tqdm_class=bar)
        except EntryNotFoundError:
            return None
    return ModelDirectory(Path(path).parent)


def _require_fit(target: ModelDirectory, draft: str) -> None:
    """Raises ModelRefused with what differs."""
    folder = _config(draft, None)
    if folder is None:
        raise StartError(f"{draft}: has no config.json, so it is no drafter")
    check_fit(read_target_config(target), read_assistant_config(folder), f"{draft}: ")


def find_drafter(hub_id: str) -> str | None:
    """The hub id of the drafter that belongs to a target; None where none is found."""
    owner, _, name = hub_id.partition("/")
    api = HfApi()
    with _asking(hub_id):
        if api.repo_exists(f"{hub_id}-assistant"):
            return f"{hub_id}-assistant"
        for author in dict.fromkeys((owner, _GOOGLE)):
            others = api.list_models(author=author, search="assistant", limit=_OTHERS_MAX)
            if found := best_drafter(name, [model.id for model in others]):
                return found
    return None


def best_drafter(name: str, hub_ids: Sequence[str]) -> str | None:
    """Of these, the drafter of the model of this name: its own packing first, then a plain one."""
    plain, packing = _parted(name)
    matching = [
        (p != packing, bool(re.match(r"\d|mx|nv", p)), hub_id)
        for hub_id in hub_ids
        for other, p in [_parted(hub_id.rpartition("/")[2])]
        if other == f"{plain}-assistant"
    ]
    return min(matching)[2] if matching else None


def _parted(name: str) -> tuple[str, str]:
    """Without case: the name and its packing, which may be nothing."""
    name = name.lower()
    match = _PACKING.search(name)
    return (name[: match.start()], match[1]) if match else (name, "")


def _is_drafter(hub_id: str) -> bool:
    return _parted(hub_id)[0].endswith("-assistant")


def _fetch(hub_id: str, revision: str | None) -> Path:
    with _asking(hub_id), _interruptible(), _bars() as bar:
        path = snapshot_download(hub_id, revision=revision, allow_patterns=_READ, tqdm_class=bar)
    return Path(path)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process: the hub's library waits for files that it has begun, all of them."""

    def end(_number: int, _frame: object) -> NoReturn:
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), _BARS_ERASED)
        entry.end_interrupted(_INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # who started us may have wanted none
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bars() -> Iterator[type[tqdm]]:
    """Bars that are gone when the next line comes: the hub's library leaves some of them open."""
    drawn: list[tqdm] = []

    class Bar(tqdm):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "leave": False})  # type: ignore[no-untyped-call]
            drawn.append(self)

    try:
        yield Bar
    finally:
        for bar in reversed(drawn):
            bar.close()


def _print_fetched(hub_id: str, path: Path) -> None:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"{hub_id}  {format_bytes(size)}  {path}")


@contextmanager
def _asking(hub_id: str) -> Iterator[None]:
    """What the hub answers instead, in a sentence. Raises StartError or UsageError."""
    try:
        yield
    except (EntryNotFoundError, StartError, UsageError):
        raise
    except HFValidationError:
        raise UsageError(f"{hub_id}: not a hub id like google/gemma-4-E2B-it") from None
    except GatedRepoError:
        told = "its terms have to be accepted on its page, and `hf auth login` says who you are"
        raise StartError(f"{hub_id}: {told}") from None
    except RepositoryNotFoundError:
        told = "the hub has no such model, or it is private and `hf auth login` is missing"
        raise StartError(f"{hub_id}: {told}") from None
    except RevisionNotFoundError:
        raise StartError(f"{hub_id}: has no such revision") from None
    except Exception as error:  # of the network, in the classes of several libraries
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        told = "the same command fetches the files that are missing"
        raise StartError(f"{hub_id}: {first}; {told}") from None
