"""A snapshot of the hub's cache is whole, as far as the cache knows, or refused with a file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.hub_cache import cached
from sapwood.model.pair import load_pair
from tests.model.checkpoint.hub import WHOLE, hub_snapshot, listing, no_such_file
from tests.model.reference import checkpoint

DRAFTER = ("config.json", "model.safetensors")
SHARDED = ("config.json", "one.safetensors", "two.safetensors", "model.safetensors.index.json")
TEMPLATES = ("additional_chat_templates/tool_use.jinja",)


def refused(file: str, drafter: bool = False) -> None:
    said = f"a/b: incomplete in the hub's local cache, {file} is missing; "
    with pytest.raises(ModelRefused, match=re.escape(f"{said}fetch it whole with `sapwood pull")):
        cached("a/b", None, drafter)


def in_doubt(file: str) -> None:
    said = f"a/b: perhaps incomplete in the hub's local cache, {file} is missing and nothing says"
    with pytest.raises(ModelRefused, match=re.escape(said) + ".*`sapwood pull a/b`"):
        cached("a/b", None, drafter=False)


@pytest.mark.parametrize("missing", [*WHOLE, "special_tokens_map.json", *TEMPLATES])
def test_every_file_of_the_listing_that_we_read_is_there(missing: str, hub: Path) -> None:
    """A narrow allow_patterns leaves such folders, and the hub's own check says nothing of them."""
    listed = (*WHOLE, "special_tokens_map.json", *TEMPLATES)
    snapshot = hub_snapshot(hub, files=[name for name in listed if name != missing])
    listing(snapshot, [*listed, "README.md", "processor_config.json", "model.gguf"])
    refused(missing)


def test_what_we_do_not_read_may_be_missing(hub: Path) -> None:
    snapshot = hub_snapshot(hub, files=WHOLE)
    listing(snapshot, [*WHOLE, ".gitattributes", "README.md", "model.gguf", "onnx/model.onnx"])
    assert cached("a/b", None, drafter=False) == snapshot


def test_what_the_repository_lacks_is_the_loaders_affair(hub: Path) -> None:
    """A base model has no chat template; what has no weights is refused where they are read."""
    snapshot = hub_snapshot(hub, files=["config.json"])
    listing(snapshot, ["config.json", "model.gguf"])
    assert cached("a/b", None, drafter=False) == snapshot


@pytest.mark.parametrize("missing", DRAFTER)
def test_of_a_drafter_only_config_and_weights_are_read(missing: str, hub: Path) -> None:
    snapshot = hub_snapshot(hub, files=DRAFTER)
    listing(snapshot, WHOLE)
    assert cached("a/b", None, drafter=True) == snapshot
    refused("tokenizer.json")
    (snapshot / missing).unlink()
    refused(missing, drafter=True)


@pytest.mark.parametrize("missing", SHARDED)
@pytest.mark.parametrize("known", [True, False])
def test_every_shard_of_the_index_is_there(known: bool, missing: str, hub: Path) -> None:
    snapshot = hub_snapshot(hub, files=SHARDED)
    if known:
        listing(snapshot, SHARDED)
    placed = {"a": "one.safetensors", "b": "two.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    assert cached("a/b", None, drafter=True) == snapshot
    (snapshot / missing).unlink()
    index_gone = missing.endswith("index.json") and not known
    refused("model.safetensors" if index_gone else missing, drafter=True)


def test_an_index_of_other_shards_makes_no_snapshot_incomplete(hub: Path) -> None:
    """Whole shards are read beside an index that names none of them."""
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    snapshot = hub_snapshot(hub, files=["config.json", *shards, SHARDED[-1]])
    placed = {"a": "model-00001-of-00009.safetensors"}
    (snapshot / SHARDED[-1]).write_text(json.dumps({"weight_map": placed}))
    assert cached("a/b", None, drafter=True) == snapshot


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja"])
def test_a_link_whose_blob_is_gone_is_missing(name: str, known: bool, hub: Path) -> None:
    snapshot = hub_snapshot(hub, files=WHOLE)
    if known:
        listing(snapshot, WHOLE)
    (snapshot / name).resolve().unlink()
    if known or name == "model.safetensors":
        refused(name)
    else:
        in_doubt(name)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_without_a_listing_what_every_model_has_is_there(missing: str, hub: Path) -> None:
    hub_snapshot(hub, files=[name for name in WHOLE if name != missing])
    refused(missing)


@pytest.mark.parametrize("missing", WHOLE[3:])
def test_without_a_listing_what_nearly_all_have_is_there_or_noted_as_missing(
    missing: str, hub: Path
) -> None:
    snapshot = hub_snapshot(hub, files=[name for name in WHOLE if name != missing])
    in_doubt(missing)
    no_such_file(snapshot, missing)
    assert cached("a/b", None, drafter=False) == snapshot


def test_a_template_in_the_tokenizers_settings_is_one(hub: Path) -> None:
    snapshot = hub_snapshot(hub, files=WHOLE[:-1])
    (snapshot / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert cached("a/b", None, drafter=False) == snapshot


BUNDLE = tuple(f"target/{name}" for name in WHOLE) + tuple(f"assistant/{n}" for n in DRAFTER)


@pytest.mark.parametrize("missing", [*BUNDLE, "sapwood.json"])
def test_a_bundle_in_the_cache_is_whole(missing: str, hub: Path) -> None:
    """What its manifest names is compared by size where bundles are read."""
    listed = (*BUNDLE, "sapwood.json") if missing == "sapwood.json" else BUNDLE
    snapshot = hub_snapshot(hub, files=listed)
    listing(snapshot, listed)
    assert cached("a/b", None, drafter=False) == snapshot
    (snapshot / missing).unlink()
    refused(missing)


def test_a_part_that_was_never_fetched_is_missing(hub: Path) -> None:
    """Without its folder a bundle's drafter would just not be there."""
    snapshot = hub_snapshot(hub, files=[name for name in BUNDLE if name.startswith("target/")])
    listing(snapshot, BUNDLE)
    refused("assistant/config.json")
    shutil.rmtree(snapshot / "target")
    refused("target/config.json")


def test_these_are_all_files_that_loading_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a new one could be missing from a snapshot without a word."""
    asked: dict[str, set[str]] = {}
    has = ModelDirectory.has

    def noting(self: ModelDirectory, name: str) -> Any:
        asked.setdefault(self.path.name, set()).add(name)
        return has(self, name)

    file = ModelDirectory.file

    def opening(self: ModelDirectory, name: str) -> Path:
        asked.setdefault(self.path.name, set()).add(name)
        return file(self, name)

    monkeypatch.setattr(ModelDirectory, "has", noting)
    monkeypatch.setattr(ModelDirectory, "file", opening)
    target, drafter = checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant")
    load_pair(target, drafter)
    either = {"model.safetensors.index.json"}
    assert asked.pop(drafter.path.name) <= {*DRAFTER} | either
    assert asked.pop(target.path.name) <= {*WHOLE, "special_tokens_map.json"} | either
    assert asked == {}
