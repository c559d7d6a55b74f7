"""Gemma 4 config.json files, read without a single silent default.

- Every key that changes a number is required; a missing or odd one is a ModelRefused that names
  file and key.
- Read are flat `gemma4_text`, nested multimodal configs (`text_config`), and both ways of giving
  the full layers' shape: `global_head_dim` / `num_global_key_value_heads` as released, or
  `per_layer_config` as transformers saves it.
- What mlx-lm's modules cannot compute exactly (other activations, rope types, biases, an untied
  head) is refused, not approximated.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sapwood.model.checkpoint.config import (
    PACKINGS,
    AssistantConfig,
    AttentionKind,
    Experts,
    OrderedHead,
    Quantization,
    Rope,
    TargetConfig,
    TextConfig,
)
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused, shown

_KINDS: dict[str, AttentionKind] = {"sliding_attention": "sliding", "full_attention": "full"}
_TARGET_TYPES = ("gemma4", "gemma4_unified", "gemma4_text", "gemma4_unified_text")
_TEXT_TYPES = ("gemma4_text", "gemma4_unified_text")
_ASSISTANT_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")
_MEDIA_KEYS = (
    *("image_token_id", "audio_token_id", "video_token_id"),
    *("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index"),
)
# Far above any Gemma, and low enough that no product of three overflows mlx's sizes.
_SIZE_MAX = 1 << 20
_TOKENS_MAX = 1 << 24
_LAYERS_MAX = 512
_NUMBER_MIN, _NUMBER_MAX = 1e-12, 1e12
_LAYER = re.compile(r"[0-9]{1,3}")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class _Keys:
    """Typed reads of one JSON object; every complaint names file and key."""

    document: Mapping[str, Any]
    file: str
    prefix: str = ""

    def refuse(self, key: str, what: str) -> ModelRefused:
        return ModelRefused(f"{self.file}: {self.prefix}{key} {what}")

    def need(self, key: str) -> Any:
        if key not in self.document:
            raise self.refuse(key, "is missing")
        return self.document[key]

    def integer(self, key: str, low: int = 1, high: int = _SIZE_MAX) -> int:
        value = self.need(key)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, f"is {shown(value)}, not an integer in {low}..{high}")
        return value

    def count(self, key: str) -> int:
        """An integer that may be 0, or null for none."""
        return 0 if self.need(key) is None else self.integer(key, low=0)

    def number(self, key: str, low: float = _NUMBER_MIN, high: float = _NUMBER_MAX) -> float:
        value = self.need(key)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.refuse(key, f"is {shown(value)}, not a number in {low:g}..{high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.need(key)
        if type(value) is not bool:
            raise self.refuse(key, f"is {shown(value)}, not true or false")
        return value

    def inner(self, key: str) -> _Keys:
        value = self.need(key)
        if not isinstance(value, dict):
            raise self.refuse(key, f"is {shown(value)}, not an object")
        return _Keys(value, self.file, f"{self.prefix}{key}.")

    def only(self, key: str, allowed: tuple[Any, ...]) -> Any:
        value = self.need(key)
        # 0 and 1 are equal to False and True, and are not what the key may hold.
        if not any(type(value) is type(a) and value == a for a in allowed):
            wanted = " or ".join(repr(a) for a in allowed)
            raise self.refuse(key, f"is {shown(value)}; supported is {wanted}")
        return value


def read_target_config(directory: ModelDirectory) -> TargetConfig:
    """The target's config.json, flat or nested. Raises ModelRefused."""
    top = _Keys(directory.json("config.json"), str(directory.path / "config.json"))
    model_type = top.only("model_type", _TARGET_TYPES)
    keys = top if model_type in _TEXT_TYPES else top.inner("text_config")
    text = _read_text(keys, top)
    if text.kv_shared_layers >= len(text.kinds):
        raise keys.refuse("num_kv_shared_layers", "leaves no layer with K/V of its own")
    for kind in set(text.kinds):
        if text.last_own(kind) is None:
            raise keys.refuse("layer_types", f"has no {kind} layer with K/V of its own")
    return TargetConfig(
        text=text,
        eos_token_ids=_eos(top, keys),
        bos_token_ids=tuple(
            b for place in (keys, top) for b in sorted(_ids(place, "bos_token_id"))
        ),
        media_token_ids=_media(top),
        quantization=_read_quantization(top, keys),
    )


def read_assistant_config(directory: ModelDirectory) -> AssistantConfig:
    """The drafter's config.json. Raises ModelRefused."""
    top = _Keys(directory.json("config.json"), str(directory.path / "config.json"))
    top.only("model_type", _ASSISTANT_TYPES)
    keys = top.inner("text_config")
    text = _read_text(keys, top)
    if text.kv_shared_layers != len(text.kinds):
        raise keys.refuse("num_kv_shared_layers", "must cover all layers: a drafter has no K/V")
    # A double-wide MLP needs a layer before the borrowing ones: the key is inert here.
    if text.ple_size or text.experts:
        wrong = "hidden_size_per_layer_input" if text.ple_size else "enable_moe_block"
        raise keys.refuse(wrong, "is not supported in a drafter")
    return AssistantConfig(
        text=text,
        backbone_hidden_size=top.integer("backbone_hidden_size"),
        ordered_head=_ordered_head(top, text.vocabulary),
        quantization=_read_quantization(top, keys),
    )


def _ordered_head(top: _Keys, vocabulary: int) -> OrderedHead | None:
    if not top.flag("use_ordered_embeddings"):
        return None
    centroids = top.integer("num_centroids", high=vocabulary)
    if vocabulary % centroids:
        raise top.refuse("num_centroids", f"is {centroids}, no divisor of {vocabulary} tokens")
    return OrderedHead(centroids, top.integer("centroid_intermediate_top_k", high=centroids))


def _read_text(keys: _Keys, top: _Keys) -> TextConfig:
    _refuse_unsupported(keys, top)
    kinds = _kinds(keys)
    full_kv_heads, full_head_dim = _full_shape(keys, kinds)
    ple_size = keys.count("hidden_size_per_layer_input")
    text = TextConfig(
        vocabulary=keys.integer("vocab_size", high=_TOKENS_MAX),
        hidden_size=keys.integer("hidden_size"),
        intermediate_size=keys.integer("intermediate_size"),
        heads=keys.integer("num_attention_heads"),
        kv_heads=keys.integer("num_key_value_heads"),
        full_kv_heads=full_kv_heads,
        head_dim=keys.integer("head_dim"),
        full_head_dim=full_head_dim,
        k_eq_v=keys.flag("attention_k_eq_v"),
        kv_shared_layers=keys.integer("num_kv_shared_layers", low=0, high=len(kinds)),
        double_wide_mlp=keys.flag("use_double_wide_mlp"),
        window=keys.integer("sliding_window", high=_TOKENS_MAX),
        context_tokens_max=keys.integer("max_position_embeddings", high=_TOKENS_MAX),
        rms_norm_eps=keys.number("rms_norm_eps"),
        softcap=_softcap(keys),
        ple_size=ple_size,
        ple_vocabulary=(
            keys.integer("vocab_size_per_layer_input", high=_TOKENS_MAX) if ple_size else 0
        ),
        experts=_experts(keys),
        ropes=_ropes(keys),
        kinds=kinds,
    )
    if ple_size and text.ple_vocabulary < text.vocabulary:
        raise keys.refuse("vocab_size_per_layer_input", f"is less than {text.vocabulary}")
    _check_heads(text, keys)
    for place in (top, keys):
        check_special_ids(place.document, f"{place.file}: {place.prefix}", text.vocabulary)
    return text


def _refuse_unsupported(keys: _Keys, top: _Keys) -> None:
    keys.only("hidden_activation", ("gelu_pytorch_tanh",))
    keys.only("attention_bias", (False,))
    # "vision" changes image tokens only.
    keys.only("use_bidirectional_attention", (None, "vision"))
    tied = keys if "tie_word_embeddings" in keys.document else top
    tied.only("tie_word_embeddings", (True,))


def _softcap(keys: _Keys) -> float | None:
    value = keys.need("final_logit_softcapping")
    return None if value is None else keys.number("final_logit_softcapping")


def _experts(keys: _Keys) -> Experts | None:
    if not keys.flag("enable_moe_block"):
        return None
    count = keys.integer("num_experts")
    top_k = keys.integer("top_k_experts", high=count)
    return Experts(count, top_k, keys.integer("moe_intermediate_size"))


def _kinds(keys: _Keys) -> tuple[AttentionKind, ...]:
    count = keys.integer("num_hidden_layers", high=_LAYERS_MAX)
    names = keys.need("layer_types")
    if not isinstance(names, list) or len(names) != count:
        raise keys.refuse("layer_types", f"does not list {count} layers")
    for name in names:
        if not isinstance(name, str) or name not in _KINDS:
            raise keys.refuse("layer_types", f"holds {shown(name)}; supported is {list(_KINDS)}")
    return tuple(_KINDS[name] for name in names)


def _full_shape(keys: _Keys, kinds: tuple[AttentionKind, ...]) -> tuple[int | None, int]:
    """(kv heads or None, head size) of the full layers, from either style of config."""
    if keys.document.get("per_layer_config") is not None:
        return _full_shape_per_layer(keys, kinds)
    head_dim = keys.integer("global_head_dim")
    if keys.need("num_global_key_value_heads") is None:
        return None, head_dim
    return keys.integer("num_global_key_value_heads"), head_dim


def _full_shape_per_layer(keys: _Keys, kinds: tuple[AttentionKind, ...]) -> tuple[int | None, int]:
    entries = keys.inner("per_layer_config")
    # transformers pads the keys ("05"), so they are compared as numbers.
    layers = {int(name): name for name in entries.document if _LAYER.fullmatch(name)}
    full = [i for i, kind in enumerate(kinds) if kind == "full"]
    if sorted(layers) != full or len(layers) != len(entries.document):
        raise keys.refuse("per_layer_config", f"must describe exactly the full layers {full}")
    shapes = {_layer_entry(entries.inner(name), keys) for name in layers.values()}
    if len(shapes) != 1:
        raise keys.refuse("per_layer_config", "gives the full layers different shapes")
    kv_heads, head_dim = shapes.pop()
    for key, value in (("global_head_dim", head_dim), ("num_global_key_value_heads", kv_heads)):
        if keys.document.get(key, value) != value:
            raise keys.refuse(key, f"is {shown(keys.document[key])}, per_layer_config says {value}")
    return kv_heads, head_dim


def _layer_entry(entry: _Keys, keys: _Keys) -> tuple[int | None, int]:
    """An entry names only what differs from the config's own head_dim and num_key_value_heads."""
    unknown = set(entry.document) - {"head_dim", "num_key_value_heads"}
    if unknown:
        raise entry.refuse(shown(min(unknown)), "is not supported per layer")
    head_dim = (entry if "head_dim" in entry.document else keys).integer("head_dim")
    if "num_key_value_heads" not in entry.document:
        return None, head_dim
    return entry.integer("num_key_value_heads"), head_dim


def _ropes(keys: _Keys) -> dict[AttentionKind, Rope]:
    table = keys.inner("rope_parameters")
    return {kind: _rope(table.inner(name)) for name, kind in _KINDS.items()}


def _rope(keys: _Keys) -> Rope:
    proportional = keys.only("rope_type", ("default", "proportional")) == "proportional"
    unknown = set(keys.document) - {"rope_type", "rope_theta", "partial_rotary_factor"}
    if unknown:
        raise keys.refuse(shown(min(unknown)), "is not supported")
    theta = keys.number("rope_theta", low=1.0)
    if not proportional:
        # mlx-lm's plain rotary embedding turns the whole head.
        if keys.document.get("partial_rotary_factor", 1.0) != 1.0:
            raise keys.refuse("partial_rotary_factor", "needs rope_type 'proportional'")
        return Rope(theta, 1.0, False)
    return Rope(theta, keys.number("partial_rotary_factor", high=1.0), True)


def _check_heads(text: TextConfig, keys: _Keys) -> None:
    if not text.k_eq_v and text.full_kv_heads not in (None, text.kv_heads):
        raise keys.refuse("num_global_key_value_heads", "needs attention_k_eq_v")
    for kind in set(text.kinds):
        kv_heads, head_dim = text.shape(kind)
        if text.heads % kv_heads:
            raise keys.refuse("num_attention_heads", f"is no multiple of {kv_heads} K/V heads")
        if text.heads * head_dim > _SIZE_MAX:
            width = f"{text.heads} * {head_dim}, more than {_SIZE_MAX}"
            raise keys.refuse("num_attention_heads", f"times the head size is {width}")
        if head_dim % 2 or int(head_dim * text.ropes[kind].share) % 2:
            raise keys.refuse("head_dim", f"of {kind} layers is {head_dim}: cannot be rotated")


def _eos(top: _Keys, keys: _Keys) -> tuple[int, ...]:
    """Of both places: the releases list the end of a turn in one and the end of a text in both."""
    return tuple(sorted(_ids(top, "eos_token_id") | _ids(keys, "eos_token_id")))


def _media(top: _Keys) -> frozenset[int]:
    """What stands for images, sound and video in a prompt, or begins and ends them."""
    return frozenset[int]().union(*(_ids(top, key) for key in _MEDIA_KEYS))


def _ids(place: _Keys, key: str) -> frozenset[int]:
    value = place.document.get(key)
    if value is None:
        return frozenset()
    return frozenset(token_ids(value, f"{place.file}: {place.prefix}{key}"))


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """One id or a list of them, as the eos keys of both config files are written."""
    listed = value if isinstance(value, list) else [value]
    if not listed or any(type(v) is not int or v < 0 for v in listed):
        raise ModelRefused(f"{where} is {shown(value)}, not a token id or a list of them")
    return tuple(listed)


def check_special_ids(document: Mapping[str, Any], where: str, vocabulary: int) -> None:
    """Raise ModelRefused, naming the key after `where`, unless its ids are in [0, vocabulary)."""
    for key in _SPECIAL_IDS:
        value = document.get(key)
        if value is not None and max(token_ids(value, where + key)) >= vocabulary:
            raise ModelRefused(
                f"{where}{key} is {shown(value)}, the logits reach only {vocabulary - 1}"
            )


def _read_quantization(top: _Keys, text: _Keys) -> Quantization | None:
    """Of the first table that is one, as mlx-lm looks for it: null says as little as nothing."""
    for place, key in itertools.product((top, text), ("quantization", "quantization_config")):
        if place.document.get(key) is not None:
            return _quantization(place.inner(key))
    return None


def _quantization(keys: _Keys) -> Quantization:
    if "quant_method" in keys.document:
        raise keys.refuse("quant_method", "is not supported: only mlx's own quantisation is")
    others = [_packing(keys.inner(k)) for k, v in keys.document.items() if isinstance(v, dict)]
    mixed = bool(others) or any(v is False for v in keys.document.values())
    return replace(_packing(keys), mixed=mixed)


def _packing(keys: _Keys) -> Quantization:
    # A table without a mode was written before there was a second one.
    mode = keys.only("mode", tuple(PACKINGS)) if "mode" in keys.document else "affine"
    bits, groups = PACKINGS[mode]
    return Quantization(keys.only("bits", bits), keys.only("group_size", groups), mode)
