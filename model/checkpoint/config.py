"""What a Gemma 4 pair is, in numbers: immutable, complete, checked when it was read.

- No field has a default: mlx-lm's defaults are E2B's, so `model_args` spells all of them.
- A layer owns K/V unless it is one of the last `kv_shared_layers`; those borrow from the last own
  layer of their kind, and so does every layer of the drafter.
- Full layers have a head size of their own, and their own K/V heads only where K equals V.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from sapwood.model.checkpoint.mlx_lm_modules import ModelArgs

AttentionKind = Literal["sliding", "full"]

_FAMILIES = {
    (35, 1536): "gemma-4-E2B",
    (42, 2560): "gemma-4-E4B",
    (48, 3840): "gemma-4-12B",
    (30, 2816): "gemma-4-26B-A4B",
    (60, 5376): "gemma-4-31B",
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding of one kind of layer: the first `share` of the head is rotated."""

    theta: float
    share: float
    proportional: bool

    def parameters(self) -> dict[str, Any]:
        """In the form that mlx-lm's initialize_rope reads."""
        kind = "proportional" if self.proportional else "default"
        return {
            "rope_type": kind,
            "rope_theta": self.theta,
            "partial_rotary_factor": self.share,
        }


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer's attention. `source` is the layer whose K/V it reads: itself where it owns K/V."""

    index: int
    kind: AttentionKind
    kv_heads: int
    head_dim: int
    source: int

    @property
    def owns_kv(self) -> bool:
        """Whether it has K/V of its own, and so a store in the live caches."""
        return self.source == self.index


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture's `top_k` of `count` experts for each token, each of inner size `width`."""

    count: int
    top_k: int
    width: int


#: bits and group sizes of mlx's packed weights, by mode
PACKINGS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights are packed; `mixed`: some of them differ."""

    bits: int
    group_size: int
    mode: str
    mixed: bool = False

    def __str__(self) -> str:
        mixed = ", mixed" if self.mixed else ""
        return f"{self.bits}-bit {self.mode}, group {self.group_size}{mixed}"


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The numbers of a Gemma 4 text stack, the target's or the assistant's."""

    vocabulary: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    full_kv_heads: int | None
    head_dim: int
    full_head_dim: int
    k_eq_v: bool
    kv_shared_layers: int
    double_wide_mlp: bool
    window: int
    context_tokens_max: int
    rms_norm_eps: float
    softcap: float | None
    ple_size: int  # per-layer embeddings; 0 = none
    ple_vocabulary: int
    experts: Experts | None
    ropes: Mapping[AttentionKind, Rope]
    kinds: tuple[AttentionKind, ...]

    @property
    def own_layers(self) -> int:
        """Layers [0, own_layers) own K/V."""
        return len(self.kinds) - self.kv_shared_layers

    def last_own(self, kind: AttentionKind) -> int | None:
        """The last layer of a kind that owns K/V: what borrowing layers and the drafter read."""
        own = [i for i in range(self.own_layers) if self.kinds[i] == kind]
        return own[-1] if own else None

    @property
    def window_tokens(self) -> int:
        """Tokens of sliding K/V that a sequence can need: 0 where no layer slides."""
        return min(self.window, self.context_tokens_max) if "sliding" in self.kinds else 0

    def shape(self, kind: AttentionKind) -> tuple[int, int]:
        """(kv heads, head size) of a kind of layer."""
        if kind == "sliding":
            return self.kv_heads, self.head_dim
        narrow = self.k_eq_v and self.full_kv_heads is not None
        kv_heads = self.full_kv_heads if narrow else self.kv_heads
        assert kv_heads is not None
        return kv_heads, self.full_head_dim

    def model_args(self) -> ModelArgs:
        """mlx-lm's arguments with every field explicit: its defaults are E2B's."""
        sliding, full = self.ropes["sliding"], self.ropes["full"]
        return ModelArgs(
            model_type="gemma4_text",
            hidden_size=self.hidden_size,
            num_hidden_layers=len(self.kinds),
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.heads,
            head_dim=self.head_dim,
            global_head_dim=self.full_head_dim,
            global_partial_rotary_factor=full.share,
            rms_norm_eps=self.rms_norm_eps,
            vocab_size=self.vocabulary,
            vocab_size_per_layer_input=self.ple_vocabulary,
            num_key_value_heads=self.kv_heads,
            num_global_key_value_heads=self.full_kv_heads,
            num_kv_shared_layers=self.kv_shared_layers,
            pad_token_id=0,
            hidden_size_per_layer_input=self.ple_size,
            rope_traditional=False,
            partial_rotary_factor=sliding.share,
            rope_parameters={
                "sliding_attention": sliding.parameters(),
                "full_attention": full.parameters(),
            },
            sliding_window=self.window,
            sliding_window_pattern=len(self.kinds),
            max_position_embeddings=self.context_tokens_max,
            attention_k_eq_v=self.k_eq_v,
            final_logit_softcapping=cast("float", self.softcap),  # mlx-lm takes None as no cap
            use_double_wide_mlp=self.double_wide_mlp,
            enable_moe_block=self.experts is not None,
            num_experts=self.experts.count if self.experts else None,
            top_k_experts=self.experts.top_k if self.experts else None,
            moe_intermediate_size=self.experts.width if self.experts else None,
            layer_types=[f"{kind}_attention" for kind in self.kinds],
            tie_word_embeddings=True,
        )


@dataclass(frozen=True, slots=True)
class Placeholders:
    """Tokens that stand for an image, sound or video; `pad` is fed in their place.

    As transformers does where there is none to put there: in the embedding and in the per-layer
    inputs. Everything else sees the tokens themselves.
    """

    ids: tuple[int, ...]
    pad: int

    def fed(self, tokens: Iterable[int]) -> list[int]:
        """What the target computes with, for tokens of a text."""
        return [self.pad if token in self.ids else token for token in tokens]


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """What a target is, by its config.json."""

    text: TextConfig
    eos_token_ids: tuple[int, ...]  # config.json's own; generation_config.json may have more
    bos_token_ids: tuple[int, ...]  # likewise; the first counts, and the tokenizer's own before it
    placeholders: Placeholders
    media_token_ids: frozenset[int]  # these and what begins and ends them: no conversation has any
    quantization: Quantization | None

    def layers(self) -> tuple[LayerConfig, ...]:
        """All of them in model order, those that borrow included."""
        return tuple(self._layer(i) for i in range(len(self.text.kinds)))

    def _layer(self, index: int) -> LayerConfig:
        kind = self.text.kinds[index]
        source = index if index < self.text.own_layers else self.text.last_own(kind)
        assert source is not None, f"layer {index} has no K/V to borrow"
        return LayerConfig(index, kind, *self.text.shape(kind), source)

    def kv_layers(self, kind: AttentionKind) -> int:
        """How many layers of a kind own K/V."""
        return sum(layer.owns_kv and layer.kind == kind for layer in self.layers())

    def kv_bytes_per_token(self, kind: AttentionKind, item_bytes: int) -> int:
        """K and V of one token in all layers of a kind that own them."""
        kv_heads, head_dim = self.text.shape(kind)
        return self.kv_layers(kind) * 2 * kv_heads * head_dim * item_bytes

    @property
    def family(self) -> str:
        """The release whose shape it has, such as gemma-4-E2B; gemma-4 for any other."""
        text = self.text
        return _FAMILIES.get((len(text.kinds), text.hidden_size), "gemma-4")


@dataclass(frozen=True, slots=True)
class OrderedHead:
    """Logits only for the tokens of the `top_k` best of `centroids` equal clusters."""

    centroids: int
    top_k: int


@dataclass(frozen=True, slots=True)
class AssistantConfig:
    """What a drafter is, by its config.json. backbone_hidden_size: its target's."""

    text: TextConfig
    backbone_hidden_size: int
    ordered_head: OrderedHead | None
    quantization: Quantization | None
