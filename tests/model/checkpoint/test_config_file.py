"""Configurations are read as they are written, and never completed by guessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models.gemma4_text import ModelArgs

from sapwood.model.checkpoint.config import AssistantConfig, Placeholders, TargetConfig
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from tests.model.reference import FAMILIES, checkpoint, copied, edit, target_config


@pytest.mark.parametrize("name", [*FAMILIES, *(f"{n}-assistant" for n in FAMILIES)])
def test_released_and_saved_by_transformers_read_the_same(name: str, tmp_path: Path) -> None:
    read: Callable[[ModelDirectory], TargetConfig | AssistantConfig]
    read = read_assistant_config if name.endswith("assistant") else read_target_config
    saved = copied(name, tmp_path)
    (saved.path / "config.saved-by-transformers.json").replace(saved.path / "config.json")
    assert "global_head_dim" not in (saved.path / "config.json").read_text()
    assert read(saved) == read(checkpoint(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_flat_text_config_reads_like_the_nested_one(name: str, tmp_path: Path) -> None:
    flat = copied(name, tmp_path)
    nested = json.loads((flat.path / "config.json").read_text())
    (flat.path / "config.json").write_text(json.dumps(nested["text_config"]))
    assert read_target_config(flat).text == target_config(name).text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", True),
        ("hidden_size", "128"),
        ("sliding_window", 0),
        ("num_hidden_layers", 9),
        ("num_hidden_layers", 10**9),
        ("vocab_size", 1 << 40),
        ("rms_norm_eps", float("nan")),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 31),
        ("layer_types", ["linear_attention"] * 5),
        ("num_kv_shared_layers", 5),
        ("num_kv_shared_layers", 3),
        ("num_global_key_value_heads", 2),
        ("vocab_size_per_layer_input", 1000),
        ("attention_bias", True),
        ("hidden_activation", "silu"),
        ("use_bidirectional_attention", "all"),
        ("tie_word_embeddings", False),
        ("rope_parameters.full_attention.rope_type", "yarn"),
        ("rope_parameters.full_attention.factor", 8.0),
        ("rope_parameters.sliding_attention.partial_rotary_factor", 0.5),
        ("attention_k_eq_v", 1),
        ("per_layer_config", {"2": {"head_dim": 64}}),
        ("per_layer_config", {"2": {"head_dim": 64}, "4": {"head_dim": 32}}),
        ("per_layer_config", {"2": {"head_dim": 32}, "4": {"head_dim": 32}}),
        ("per_layer_config", {"2": {"sliding_window": 4}, "4": {"sliding_window": 4}}),
    ],
)
def test_what_cannot_be_computed_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    damaged = copied("e2b-tiny", tmp_path)
    edit(damaged, "config.json", {f"text_config.{key}": value})
    with pytest.raises(ModelRefused, match=r"e2b-tiny/config\.json: text_config\."):
        read_target_config(damaged)


@pytest.mark.parametrize("text", ["[]", "{", '{"model_type": "gemma4", "model_type": "x"}', "\xff"])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelRefused, match=r"config\.json"):
        read_target_config(ModelDirectory(tmp_path))


def test_every_argument_of_mlx_lm_is_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its defaults are E2B's, so an argument left out would silently be E2B's."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("sapwood.model.checkpoint.config.ModelArgs", given.update)
    target_config("a4b-tiny").text.model_args()
    assert given.keys() == {field.name for field in fields(ModelArgs)}
    assert None not in (given["layer_types"], given["rope_parameters"])


@pytest.mark.parametrize(
    ("top", "text", "expected"),
    [([1, 106], 1, (1, 106)), (1, [106, 50], (1, 50, 106)), (None, 7, (7,)), (None, None, ())],
)
def test_a_turn_ends_at_the_ids_of_both_places(
    top: Any, text: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    directory = copied("e2b-tiny", tmp_path)
    edit(directory, "config.json", {"eos_token_id": top, "text_config.eos_token_id": text})
    assert read_target_config(directory).eos_token_ids == expected


_PLACEHOLDERS = ("image_token_id", "audio_token_id", "video_token_id")


@pytest.mark.parametrize("name", FAMILIES)
def test_media_tokens_are_those_that_the_config_names(name: str) -> None:
    config = target_config(name)
    assert config.media_token_ids == frozenset(range(91, 98))
    assert config.placeholders == Placeholders((93, 96, 97), 0)
    assert config.placeholders.fed([5, 93, 94, 97]) == [5, 0, 94, 0]


def test_placeholders_that_no_key_names_are_those_of_the_releases(tmp_path: Path) -> None:
    """As in transformers; null says that there are none. These ids are past a small vocabulary."""
    directory = copied("e2b-tiny", tmp_path)
    edit(directory, "config.json", dict.fromkeys(_PLACEHOLDERS, ...))
    assert read_target_config(directory).placeholders.ids == ()
    large = {f"text_config.{key}": 1 << 18 for key in ("vocab_size", "vocab_size_per_layer_input")}
    edit(directory, "config.json", large)
    assert read_target_config(directory).placeholders.ids == (258880, 258881, 258884)
    # Of no version of transformers, so it says nothing.
    edit(directory, "config.json", {"image_token_index": 7, "audio_token_id": None})
    assert read_target_config(directory).placeholders.ids == (258880, 258884)
    edit(directory, "config.json", dict.fromkeys(_PLACEHOLDERS))
    assert read_target_config(directory).placeholders.ids == ()


def test_a_text_model_by_itself_has_no_placeholders(tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    nested = json.loads((directory.path / "config.json").read_text())
    flat = nested["text_config"] | {key: nested[key] for key in _PLACEHOLDERS}
    (directory.path / "config.json").write_text(json.dumps(flat))
    assert read_target_config(directory).placeholders.ids == ()


@pytest.mark.parametrize(("pad", "expected"), [(5, 5), (..., 0)])
def test_the_pad_token_is_the_text_parts_own(pad: Any, expected: int, tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    edit(directory, "config.json", {"pad_token_id": 7, "text_config.pad_token_id": pad})
    assert read_target_config(directory).placeholders.pad == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (key, junk, f"{key} is .*, not a token id")
            for key in _PLACEHOLDERS
            for junk in ("x", [7], -1)
        ),
        ("boi_token_id", "<image>", "boi_token_id is '<image>', not a token id"),
        ("text_config.pad_token_id", None, "text_config.pad_token_id is None, not the token id"),
        ("text_config.pad_token_id", [0], r"text_config.pad_token_id is \[0\], not the token id"),
        ("text_config.pad_token_id", 1024, "text_config.pad_token_id is 1024, the logits reach"),
    ],
)
def test_what_is_no_token_id_is_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    edit(directory, "config.json", {key: value})
    with pytest.raises(ModelRefused, match=message):
        read_target_config(directory)


def test_layers_that_end_in_sliding_attention_end_in_a_full_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = copied("12b-tiny", tmp_path)
    kinds = ["sliding_attention"] * 5
    edit(directory, "config.json", {"text_config.layer_types": kinds})
    config = read_target_config(directory)
    assert config.text.kinds == ("sliding",) * 4 + ("full",)
    assert config.text.model_args().layer_types == [*kinds[:4], "full_attention"]
    (record,) = caplog.records
    assert "text_config.layer_types ends in sliding_attention" in record.getMessage()


def test_the_window_that_is_kept_is_never_more_than_can_be_seen(tmp_path: Path) -> None:
    directory = copied("12b-tiny", tmp_path)
    for context, window, kept in ((64, 8, 8), (64, 64, 64), (64, 65, 64), (64, 1 << 20, 64)):
        change = {"max_position_embeddings": context, "sliding_window": window}
        edit(directory, "config.json", {f"text_config.{k}": v for k, v in change.items()})
        assert read_target_config(directory).text.window_tokens == kept
    edit(directory, "config.json", {"text_config.layer_types": ["full_attention"] * 5})
    assert read_target_config(directory).text.window_tokens == 0


def test_borrowing_layers_read_the_last_own_layer_of_their_kind() -> None:
    layers = target_config("e2b-tiny").layers()
    assert [layer.source for layer in layers] == [0, 1, 2, 1, 2]
    assert [layer.owns_kv for layer in layers] == [True] * 3 + [False] * 2
    assert {(la.kind, la.kv_heads, la.head_dim) for la in layers} == {
        ("sliding", 1, 32),
        ("full", 1, 64),
    }


def test_full_layers_have_their_own_heads_where_k_equals_v() -> None:
    config = target_config("a4b-tiny")
    assert all(layer.owns_kv for layer in config.layers())
    assert (config.text.shape("sliding"), config.text.shape("full")) == ((2, 32), (1, 64))
    assert (config.text.last_own("sliding"), config.text.last_own("full")) == (3, 4)


# gemma4.md 3: layers, pattern, borrowing, heads, then own K/V layers S + F and bf16 bytes a token.
_RELEASES = [
    ("gemma-4-E2B", 35, 1536, 5, 20, 8, 1, None, 512, (12, 3), (12_288, 6_144)),
    ("gemma-4-E4B", 42, 2560, 6, 18, 8, 2, None, 512, (20, 4), (40_960, 16_384)),
    ("gemma-4-12B", 48, 3840, 6, 0, 16, 8, 1, 1024, (40, 8), (327_680, 16_384)),
    ("gemma-4-26B-A4B", 30, 2816, 6, 0, 16, 8, 2, 1024, (25, 5), (204_800, 20_480)),
    ("gemma-4-31B", 60, 5376, 6, 0, 32, 16, 4, 1024, (50, 10), (819_200, 81_920)),
]


@pytest.mark.parametrize("release", _RELEASES, ids=lambda release: release[0])
def test_released_shapes_give_the_known_bytes(release: tuple[Any, ...], tmp_path: Path) -> None:
    family, count, hidden, period, shared, heads, kv, full_kv, window, own, per_token = release
    directory = copied("e2b-tiny", tmp_path)
    kinds = ["full" if i % period == period - 1 else "sliding" for i in range(count)]
    change = {
        "num_hidden_layers": count,
        "hidden_size": hidden,
        "num_kv_shared_layers": shared,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "num_global_key_value_heads": full_kv,
        "attention_k_eq_v": full_kv is not None,
        "sliding_window": window,
        "head_dim": 256,
        "global_head_dim": 512,
        "layer_types": [f"{kind}_attention" for kind in kinds],
    }
    edit(directory, "config.json", {f"text_config.{k}": v for k, v in change.items()})
    config = read_target_config(directory)
    assert config.family == family
    owned = [layer.kind for layer in config.layers() if layer.owns_kv]
    assert (owned.count("sliding"), owned.count("full")) == own
    found = (config.kv_bytes_per_token("sliding", 2), config.kv_bytes_per_token("full", 2))
    assert found == per_token


def test_quantisation_is_announced_with_whether_paths_differ(tmp_path: Path) -> None:
    packed = copied("a4b-tiny", tmp_path)
    table = {"group_size": 64, "bits": 4, "a.b": {"group_size": 64, "bits": 8}, "c": False}
    edit(packed, "config.json", {"quantization": table})
    found = read_target_config(packed).quantization
    assert found is not None
    assert (found.bits, found.group_size, found.mode) == (4, 64, "affine")
    assert str(found) == "4-bit affine, group 64, mixed"


@pytest.mark.parametrize(
    "table",
    [{"quant_method": "awq"}, {"group_size": 64}, {"group_size": 64, "bits": 4, "mode": "q4_k"}],
)
def test_other_quantisations_are_refused(table: dict[str, Any], tmp_path: Path) -> None:
    packed = copied("a4b-tiny", tmp_path)
    edit(packed, "config.json", {"quantization_config": table})
    with pytest.raises(ModelRefused, match="quantization_config"):
        read_target_config(packed)
