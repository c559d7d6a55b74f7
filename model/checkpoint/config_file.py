"""Gemma 4 config.json files, read without a single silent default.

- Every key that changes a number is required; a missing or odd one is a ModelRefused that names
  file and key.
- Read are flat `gemma4_text`, nested multimodal configs (`text_config`), and both ways of giving
  the full layers' shape: `global_head_dim` / `num_global_key_value_heads` as released, or
  `per_layer_config` as transformers saves it.
- The last layer is a full one, as transformers has it, whatever `layer_types` says.
- What mlx-lm's modules cannot compute exactly (other activations, rope types, biases, an untied
  head) is refused, not approximated.
"""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import replace

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
from sapwood.model.checkpoint.files import ModelDirectory, shown
from sapwood.model.checkpoint.keys import SIZE_MAX, TOKENS_MAX, Keys
from sapwood.model.checkpoint.special_ids import (
    check_special_ids,
    end_ids,
    first_ids,
    media_ids,
    placeholders,
)

_log = logging.getLogger(__name__)

_KINDS: dict[str, AttentionKind] = {"sliding_attention": "sliding", "full_attention": "full"}
_TARGET_TYPES = ("gemma4", "gemma4_unified", "gemma4_text", "gemma4_unified_text")
_TEXT_TYPES = ("gemma4_text", "gemma4_unified_text")
_ASSISTANT_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")
_LAYERS_MAX = 512
_LAYER = re.compile(r"[0-9]{1,3}")


def read_target_config(directory: ModelDirectory) -> TargetConfig:
    """The target's config.json, flat or nested. Raises ModelRefused."""
    top = Keys(directory.json("config.json"), str(directory.path / "config.json"))
    model_type = top.only("model_type", _TARGET_TYPES)
    keys = top if model_type in _TEXT_TYPES else top.inner("text_config")
    text = _read_text(keys, top)
    if text.kv_shared_layers >= len(text.kinds):
        raise keys.refuse("num_kv_shared_layers", "leaves no layer with K/V of its own")
    for kind in set(text.kinds):
        if text.last_own(kind) is None:
            raise keys.refuse("layer_types", f"has no {kind} layer with K/V of its own")
    stands = placeholders(top, keys, text.vocabulary)
    return TargetConfig(
        text=text,
        eos_token_ids=end_ids(top, keys),
        bos_token_ids=first_ids(top, keys),
        placeholders=stands,
        media_token_ids=media_ids(top, stands),
        quantization=_read_quantization(top, keys),
    )


def read_assistant_config(directory: ModelDirectory) -> AssistantConfig:
    """The drafter's config.json. Raises ModelRefused."""
    top = Keys(directory.json("config.json"), str(directory.path / "config.json"))
    top.only("model_type", _ASSISTANT_TYPES)
    keys = top.inner("text_config")
    text = _read_text(keys, top)
    if text.kv_shared_layers != len(text.kinds):
        raise keys.refuse("num_kv_shared_layers", "must cover all layers: a drafter has no K/V")
    for key, asked in (
        ("hidden_size_per_layer_input", text.ple_size > 0),
        ("enable_moe_block", text.experts is not None),
        ("use_double_wide_mlp", text.double_wide_mlp),
    ):
        if asked:
            raise keys.refuse(key, "is not supported in a drafter")
    return AssistantConfig(
        text=text,
        backbone_hidden_size=top.integer("backbone_hidden_size"),
        ordered_head=_ordered_head(top, text.vocabulary),
        quantization=_read_quantization(top, keys),
    )


def _ordered_head(top: Keys, vocabulary: int) -> OrderedHead | None:
    if not top.flag("use_ordered_embeddings"):
        return None
    centroids = top.integer("num_centroids", high=vocabulary)
    if vocabulary % centroids:
        raise top.refuse("num_centroids", f"is {centroids}, no divisor of {vocabulary} tokens")
    return OrderedHead(centroids, top.integer("centroid_intermediate_top_k", high=centroids))


def _read_text(keys: Keys, top: Keys) -> TextConfig:
    _refuse_unsupported(keys, top)
    kinds = _kinds(keys)
    full_kv_heads, full_head_dim = _full_shape(keys, kinds)
    ple_size = keys.count("hidden_size_per_layer_input")
    text = TextConfig(
        vocabulary=keys.integer("vocab_size", high=TOKENS_MAX),
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
        window=keys.integer("sliding_window", high=TOKENS_MAX),
        context_tokens_max=keys.integer("max_position_embeddings", high=TOKENS_MAX),
        rms_norm_eps=keys.number("rms_norm_eps"),
        softcap=_softcap(keys),
        ple_size=ple_size,
        ple_vocabulary=(
            keys.integer("vocab_size_per_layer_input", high=TOKENS_MAX) if ple_size else 0
        ),
        experts=_experts(keys),
        ropes=_ropes(keys),
        kinds=kinds,
    )
    if ple_size and text.ple_vocabulary < text.vocabulary:
        raise keys.refuse("vocab_size_per_layer_input", f"is less than {text.vocabulary}")
    _check_heads(text, keys)
    _check_unified(text, keys, top)
    for place in (top, keys):
        check_special_ids(place.document, f"{place.file}: {place.prefix}", text.vocabulary)
    return text


def _refuse_unsupported(keys: Keys, top: Keys) -> None:
    keys.only("hidden_activation", ("gelu_pytorch_tanh",))
    keys.only("attention_bias", (False,))
    # "vision" changes image tokens only.
    keys.only("use_bidirectional_attention", (None, "vision"))
    # One place is enough; where both say something, transformers goes by one of them.
    told = [place for place in (keys, top) if "tie_word_embeddings" in place.document]
    for place in told or [top]:
        place.only("tie_word_embeddings", (True,))
    # What a text part is by itself: transformers makes that network of it, whatever is around it.
    if "model_type" in keys.document:
        keys.only("model_type", _TEXT_TYPES)


def _softcap(keys: Keys) -> float | None:
    value = keys.need("final_logit_softcapping")
    return None if value is None else keys.number("final_logit_softcapping")


def _experts(keys: Keys) -> Experts | None:
    if not keys.flag("enable_moe_block"):
        return None
    count = keys.integer("num_experts")
    top_k = keys.integer("top_k_experts", high=count)
    return Experts(count, top_k, keys.integer("moe_intermediate_size"))


def _kinds(keys: Keys) -> tuple[AttentionKind, ...]:
    count = keys.integer("num_hidden_layers", high=_LAYERS_MAX)
    names = keys.need("layer_types")
    if not isinstance(names, list) or len(names) != count:
        raise keys.refuse("layer_types", f"does not list {count} layers")
    for name in names:
        if not isinstance(name, str) or name not in _KINDS:
            raise keys.refuse("layer_types", f"holds {shown(name)}; supported is {list(_KINDS)}")
    if names[-1] != "full_attention":
        told = "%s: %slayer_types ends in %s; the last layer is a full one all the same"
        _log.warning(told, keys.file, keys.prefix, names[-1])
    # As transformers, whatever is written; the weights have to fit it.
    return (*(_KINDS[name] for name in names[:-1]), "full")


def _full_shape(keys: Keys, kinds: tuple[AttentionKind, ...]) -> tuple[int | None, int]:
    """(kv heads or None, head size) of the full layers, from either style of config."""
    if keys.document.get("per_layer_config") is not None:
        return _full_shape_per_layer(keys, kinds)
    head_dim = keys.integer("global_head_dim")
    if keys.need("num_global_key_value_heads") is None:
        return None, head_dim
    return keys.integer("num_global_key_value_heads"), head_dim


def _full_shape_per_layer(keys: Keys, kinds: tuple[AttentionKind, ...]) -> tuple[int | None, int]:
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


def _layer_entry(entry: Keys, keys: Keys) -> tuple[int | None, int]:
    """An entry names only what differs from the config's own head_dim and num_key_value_heads."""
    unknown = set(entry.document) - {"head_dim", "num_key_value_heads"}
    if unknown:
        raise entry.refuse(shown(min(unknown)), "is not supported per layer")
    head_dim = (entry if "head_dim" in entry.document else keys).integer("head_dim")
    if "num_key_value_heads" not in entry.document:
        return None, head_dim
    return entry.integer("num_key_value_heads"), head_dim


def _ropes(keys: Keys) -> dict[AttentionKind, Rope]:
    table = keys.inner("rope_parameters")
    return {kind: _rope(table.inner(name)) for name, kind in _KINDS.items()}


def _rope(keys: Keys) -> Rope:
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


def _check_unified(text: TextConfig, keys: Keys, top: Keys) -> None:
    """A gemma4_unified text model has neither, and transformers passes over their keys."""
    if any("unified" in str(place.document.get("model_type")) for place in (keys, top)):
        for key, asked in (
            ("hidden_size_per_layer_input", text.ple_size > 0),
            ("enable_moe_block", text.experts is not None),
        ):
            if asked:
                raise keys.refuse(key, "is not supported in a gemma4_unified model")


def _check_heads(text: TextConfig, keys: Keys) -> None:
    if not text.k_eq_v and text.full_kv_heads not in (None, text.kv_heads):
        raise keys.refuse("num_global_key_value_heads", "needs attention_k_eq_v")
    for kind in set(text.kinds):
        kv_heads, head_dim = text.shape(kind)
        if text.heads % kv_heads:
            raise keys.refuse("num_attention_heads", f"is no multiple of {kv_heads} K/V heads")
        if text.heads * head_dim > SIZE_MAX:
            width = f"{text.heads} * {head_dim}, more than {SIZE_MAX}"
            raise keys.refuse("num_attention_heads", f"times the head size is {width}")
        if head_dim % 2 or int(head_dim * text.ropes[kind].share) % 2:
            raise keys.refuse("head_dim", f"of {kind} layers is {head_dim}: cannot be rotated")


def _read_quantization(top: Keys, text: Keys) -> Quantization | None:
    """Of the first table that is one, as mlx-lm looks for it: null says as little as nothing."""
    for place, key in itertools.product((top, text), ("quantization", "quantization_config")):
        if place.document.get(key) is not None:
            return _quantization(place.inner(key))
    return None


def _quantization(keys: Keys) -> Quantization:
    if "quant_method" in keys.document:
        raise keys.refuse("quant_method", "is not supported: only mlx's own quantisation is")
    others = [_packing(keys.inner(k)) for k, v in keys.document.items() if isinstance(v, dict)]
    mixed = bool(others) or any(v is False for v in keys.document.values())
    return replace(_packing(keys), mixed=mixed)


def _packing(keys: Keys) -> Quantization:
    # A table without a mode was written before there was a second one.
    mode = keys.only("mode", tuple(PACKINGS)) if "mode" in keys.document else "affine"
    bits, groups = PACKINGS[mode]
    return Quantization(keys.only("bits", bits), keys.only("group_size", groups), mode)
