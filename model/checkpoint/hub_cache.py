"""Models in the hub's local cache: where a hub id's snapshot lies, and that it is whole.

- Nothing is downloaded. What is not there whole is refused with a file and the command for it.
- A snapshot holds what somebody downloaded, which may be a part. Where huggingface_hub keeps a
  listing of the repository at this commit, every file of it that we read must be there.
- Without a listing (the files came one by one, or by an old version) what every model needs must be
  there, and what nearly all have must be there or noted as not existing: a model without its chat
  template or its EOS would be served as if it had none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sapwood.model.checkpoint.bundle import MANIFEST, PARTS
from sapwood.model.checkpoint.files import TEMPLATES, ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import INDEX, weight_names

_TEMPLATE, _SETTINGS = "chat_template.jinja", "tokenizer_config.json"
# Of a target beside config.json and the weights, which are all that is read of a drafter.
_NEARLY_ALWAYS = (_SETTINGS, "generation_config.json", _TEMPLATE)
_SOMETIMES = ("special_tokens_map.json",)


def cached(hub_id: str, revision: str | None, drafter: bool) -> Path:
    """The snapshot of a target, a bundle, or a drafter. Raises ModelRefused."""
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name = f"{hub_id}@{revision}" if revision else hub_id
    fetch = f"sapwood pull {name}"
    try:
        # No pattern lets a file pass: the hub's own check wants all files, also those never read.
        found = snapshot_download(
            hub_id, revision=revision, local_files_only=True, allow_patterns=[]
        )
    except HFValidationError:
        raise ModelRefused(f"{name}: neither a directory nor a hub id") from None
    except (LocalEntryNotFoundError, FileNotFoundError):
        raise ModelRefused(
            f"{name}: not in the hub's local cache; fetch it first with `{fetch}`"
        ) from None
    snapshot = _Snapshot(hub_id, Path(found), _listed(hub_id, Path(found)))
    lacking = next(snapshot.lacking(drafter), None)
    if lacking is not None:
        doubt = "" if lacking.certain else " and nothing says that the repository has none"
        how = "incomplete" if lacking.certain else "perhaps incomplete"
        raise ModelRefused(
            f"{name}: {how} in the hub's local cache, {lacking.file} is missing{doubt}; "
            f"fetch it whole with `{fetch}`"
        )
    return snapshot.path


def _listed(hub_id: str, path: Path) -> frozenset[str] | None:
    """Every file of the repository at this commit; None where the cache does not know."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return frozenset(file.path for file in get_cached_repo_tree(hub_id, revision=path.name))
    except CachedRepoTreeNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class _Lacking:
    """A file that is not there. certain: the repository has it, or no model is without it."""

    file: str
    certain: bool = True


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One snapshot. listed: all files of its repository, None where that is not known."""

    hub_id: str
    path: Path
    listed: frozenset[str] | None

    def lacking(self, drafter: bool) -> Iterator[_Lacking]:
        """What is missing of what we read, a bundle's parts included."""
        names = self.listed or ()
        parts = {part for part in PARTS if any(name.startswith(f"{part}/") for name in names)}
        parts |= {part for part in PARTS if (self.path / part).is_dir()}
        if "target" in parts:
            yield from self._absent(MANIFEST)
        elif drafter:
            yield from self._of_weights("")
        else:
            yield from self._of_target("")
        # A manifest knows its parts' files better, with their sizes.
        if not self._there(MANIFEST):
            if "target" in parts:
                yield from self._of_target("target/")
            if "assistant" in parts and not drafter:
                yield from self._of_weights("assistant/")

    def _of_target(self, part: str) -> Iterator[_Lacking]:
        yield from self._of_weights(part)
        yield from self._needed(f"{part}tokenizer.json")
        own = self._there(part + _SETTINGS) and ModelDirectory(self.path / part).json(_SETTINGS)
        for name in _NEARLY_ALWAYS:
            if self.listed is None and not (name == _TEMPLATE and own and "chat_template" in own):
                yield from self._doubtful(part + name)
            yield from self._absent(part + name)
        yield from (lack for name in _SOMETIMES for lack in self._absent(part + name))
        folder = f"{part}{TEMPLATES}/"
        for name in sorted(n for n in self.listed or () if n.startswith(folder)):
            yield from self._absent(name)

    def _of_weights(self, part: str) -> Iterator[_Lacking]:
        yield from self._needed(f"{part}config.json")
        yield from self._absent(part + INDEX)
        for name in sorted(weight_names(ModelDirectory(self.path / part))):
            yield from self._needed(part + name)

    def _there(self, name: str) -> bool:
        return (self.path / name).is_file()  # through its link: a blob may be gone

    def _absent(self, name: str) -> Iterator[_Lacking]:
        """A file that the repository has, or that was there once."""
        known = name in (self.listed or ()) or os.path.lexists(self.path / name)
        if known and not self._there(name):
            yield _Lacking(name)

    def _needed(self, name: str) -> Iterator[_Lacking]:
        """A file that a model has; where its repository has none, the loader says that."""
        if (self.listed is None or name in self.listed) and not self._there(name):
            yield _Lacking(name)

    def _doubtful(self, name: str) -> Iterator[_Lacking]:
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        noted = try_to_load_from_cache(self.hub_id, name, revision=self.path.name)
        if not self._there(name) and noted is not _CACHED_NO_EXIST:
            yield _Lacking(name, certain=False)
