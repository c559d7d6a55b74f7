"""No silent default: each key of each config is needed, proven elsewhere, or without effect.

- Needed: without it the config is refused, and the sentence names it.
- Proven elsewhere: the config reads differently without it, and pairing or weights refuse that.
- Without effect: not only can it go, anything may stand in its place.
- Said twice: `tie_word_embeddings` may stand at the top or in the text part, and what a text part
  is follows from what is around it. Ids of ends and of media are checked, but are no numbers of
  the model's; where transformers has an id of its own, so have we (test_config_file).
- Null is no value, but for the keys that say "none" with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from sapwood.model.checkpoint.config import AssistantConfig, TargetConfig, TextConfig
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import weight_files
from sapwood.model.pair import check_fit
from tests.model.reference import (
    FAMILIES,
    assistant,
    checkpoint,
    edit,
    load_assistant,
    load_target,
    target_config,
)

_STYLES = (
    "config.json",
    pytest.param("config.saved-by-transformers.json", marks=pytest.mark.long),
)
_EVERYTHING = [*FAMILIES, *(f"{name}-assistant" for name in FAMILIES)]
_IDS = ("_token_id", "_token_index")
#: keys that say none by null
_NONE = ("final_logit_softcapping", "hidden_size_per_layer_input", "num_global_key_value_heads")
_TOWERS = ("vision_config", "audio_config")

Config = TargetConfig | AssistantConfig


def others(value: Any) -> tuple[Any, ...]:
    """Values that might stand in this one's place, and junk."""
    match value:
        case bool():
            return not value, "junk"
        case int() | float():
            return value * 2, value + 1, None, "junk"
        case str():
            return "junk", 7, None
        case list() | dict():
            return type(value)(), None, "junk"
        case _:
            return 7, 64, 0.5, True, "junk", [64]


def numbers(config: Config | str) -> Any:
    """All of a config that logits depend on."""
    return config.text if isinstance(config, TargetConfig) else config


@dataclass
class Desk:
    """A place for one config.json that is changed again and again."""

    name: str
    source: str
    place: ModelDirectory

    def read(self, change: Mapping[str, Any] = MappingProxyType({})) -> Config:
        (self.place.path / "config.json").write_text(self.source)
        edit(self.place, "config.json", change)
        if self.name.endswith("assistant"):
            return read_assistant_config(self.place)
        return read_target_config(self.place)

    def tried(self, dotted: str, value: Any = ...) -> Config | str:
        """What is read without a key, or with `value` in it; or the sentence that refuses it."""
        try:
            return self.read({dotted: value})
        except ModelRefused as refused:
            return str(refused)

    def refuse(self, found: Config) -> None:
        """Raise ModelRefused where a config contradicts the pair's other half or the weights."""
        files = weight_files(checkpoint(self.name))
        if isinstance(found, TargetConfig):
            load_target(files, found, None)
        else:
            check_fit(target_config(self.name.removesuffix("-assistant")), found)
            load_assistant(files, found, None)


def keys(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key, dotted, and its value; what lies in towers is theirs."""
    for key, value in document.items():
        yield prefix + key, value
        if isinstance(value, dict) and key not in _TOWERS:
            yield from keys(value, f"{prefix}{key}.")


@pytest.mark.parametrize("style", _STYLES)
@pytest.mark.parametrize("name", _EVERYTHING)
def test_no_key_is_filled_in_silently(name: str, style: str, tmp_path: Path) -> None:
    source = (checkpoint(name).path / style).read_text()
    desk = Desk(name, source, ModelDirectory(tmp_path))
    intact, needed = numbers(desk.read()), 0
    for dotted, value in keys(json.loads(source)):
        if dotted.endswith(("tie_word_embeddings", "text_config.model_type")):
            continue
        found = desk.tried(dotted)
        if isinstance(found, str):
            assert names_it(found, dotted), found
            needed += 1
        elif numbers(found) != intact:
            with pytest.raises(ModelRefused):
                desk.refuse(found)
        else:
            for replaced in (desk.tried(dotted, junk) for junk in others(value)):
                refused_id = isinstance(replaced, str) and dotted.endswith(_IDS)
                harmless = refused_id or numbers(replaced) == intact
                assert harmless, f"{dotted} may be missing, yet its value matters"
    assert needed > 20


@pytest.mark.parametrize("style", _STYLES)
@pytest.mark.parametrize("name", _EVERYTHING)
def test_null_is_refused_or_says_none(name: str, style: str, tmp_path: Path) -> None:
    source = (checkpoint(name).path / style).read_text()
    desk = Desk(name, source, ModelDirectory(tmp_path))
    intact = numbers(desk.read())
    for dotted, value in keys(json.loads(source)):
        found = desk.tried(dotted, None)
        if value is None or dotted.rpartition(".")[2] in _NONE:
            assert not isinstance(found, str), found
        elif isinstance(found, str):
            assert names_it(found, dotted), found
        else:
            assert numbers(found) == intact, f"{dotted} may be null, yet its value matters"


def names_it(message: str, dotted: str) -> bool:
    """A part of per_layer_config is named by it, and all of it by what it stands for."""
    stands_for = {"text_config.per_layer_config": "text_config.global_head_dim is missing"}
    inner = dotted.startswith("text_config.per_layer_config.")
    return stands_for.get(dotted, "per_layer_config" if inner else dotted) in message


@pytest.mark.parametrize("name", _EVERYTHING)
def test_a_tied_head_may_be_said_in_either_place_but_must_be_said(
    name: str, tmp_path: Path
) -> None:
    source = (checkpoint(name).path / "config.json").read_text()
    desk = Desk(name, source, ModelDirectory(tmp_path))
    places = ("tie_word_embeddings", "text_config.tie_word_embeddings")
    for dotted in places:
        assert desk.read({dotted: ...}) == desk.read()
    with pytest.raises(ModelRefused, match="tie_word_embeddings is missing"):
        desk.read(dict.fromkeys(places, ...))


@pytest.mark.parametrize("name", _EVERYTHING)
def test_a_text_part_of_another_network_is_refused(name: str, tmp_path: Path) -> None:
    source = (checkpoint(name).path / "config.json").read_text()
    desk = Desk(name, source, ModelDirectory(tmp_path))
    key = "text_config.model_type"
    assert desk.read({key: ...}) == desk.read()
    for other in ("gemma3_text", "gemma4", None):
        with pytest.raises(ModelRefused, match=r"text_config\.model_type is .*; supported is"):
            desk.read({key: other})


def test_every_feature_that_a_config_can_switch_occurs_on_and_off() -> None:
    """A field of TextConfig that no family turns on, or off, would be proven by nothing."""
    texts = [target_config(name).text for name in FAMILIES]
    drafts = [assistant(name)[1] for name in FAMILIES]
    sizes = {"vocabulary", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim"}
    sizes |= {"full_head_dim", "window", "context_tokens_max", "rms_norm_eps", "ropes", "kinds"}
    switches = {field.name for field in fields(TextConfig)} - sizes
    assert {"k_eq_v", "double_wide_mlp", "kv_shared_layers", "ple_size", "experts"} < switches
    for name in switches:
        values = {bool(getattr(text, name)) for text in (*texts, *(d.text for d in drafts))}
        assert values == {True, False}, name
    assert {bool(draft.ordered_head) for draft in drafts} == {True, False}
    assert all(len(set(text.kinds)) == 2 and len(text.ropes) == 2 for text in texts)
    borrowers = [text for text in texts if text.kv_shared_layers]
    assert {text.double_wide_mlp for text in borrowers} == {True, False}


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "head_dim", "window"])
def test_sizes_differ_between_families_so_that_none_can_be_taken_for_granted(field: str) -> None:
    assert len({getattr(target_config(name).text, field) for name in FAMILIES}) > 1
