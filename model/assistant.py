"""Gemma 4's MTP drafter: a small stack without K/V of its own.

- A step takes the newest token's scaled target embedding and one hidden row, and gives logits and
  the next hidden row: that row is all the state there is.
- Its queries attend to the target's own K/V, last own layer of each kind, through a callback: the
  cache knows who owns what, this module does not.
- The position stays the same for all steps of a round, and no softcap is applied.
- Names of modules are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from sapwood.model.checkpoint.config import AssistantConfig, AttentionKind, OrderedHead, TextConfig
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.mlx_lm_modules import MLP, initialize_rope
from sapwood.model.checkpoint.safetensors import TensorEntry, WeightFile
from sapwood.model.checkpoint.weights import Fitted, fit
from sapwood.model.dense import Heads, Residual, Rotation
from sapwood.model.norms import RmsNorm, norm_of
from sapwood.model.products import OfRows, product_of
from sapwood.model.sampling.proposals import DraftLogits

Attend = Callable[[AttentionKind, mx.array], mx.array]
Turns = Mapping[AttentionKind, OfRows]


class _Attention(nn.Module):
    def __init__(self, config: TextConfig, kind: AttentionKind) -> None:
        super().__init__()
        self.kind, self.n_heads = kind, config.heads
        _, self.head_dim = config.shape(kind)
        width = self.n_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.rope = initialize_rope(
            self.head_dim,
            base=config.ropes[kind].theta,
            traditional=False,
            scaling_config=config.ropes[kind].parameters(),
            max_position_embeddings=config.context_tokens_max,
        )


class _Layer(nn.Module):
    def __init__(self, config: TextConfig, kind: AttentionKind) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = _Attention(config, kind)
        self.mlp = MLP(config.model_args())
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(size, eps=eps)
        self.post_feedforward_layernorm = nn.RMSNorm(size, eps=eps)
        self.layer_scalar = mx.ones((1,))


class _Stack(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden_size)
        self.layers = [_Layer(config, kind) for kind in config.kinds]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


@dataclass(frozen=True, slots=True)
class _Laid:
    """The weights as a step takes them: per layer its kind, norm, queries and what follows.

    kernels: of the device that the rotations are for.
    """

    kernels: Kernels
    rotations: dict[AttentionKind, Rotation]
    before: OfRows
    layers: list[tuple[AttentionKind, RmsNorm, Heads, Residual]]
    norm: RmsNorm
    after: OfRows

    @classmethod
    def of(cls, assistant: Assistant, kernels: Kernels) -> _Laid:
        layers = [
            (
                layer.self_attn.kind,
                norm_of(layer.input_layernorm, kernels),
                Heads.of(layer.self_attn, kernels, keys=False),
                Residual.of(layer, kernels),
            )
            for layer in assistant.model.layers
        ]
        before = product_of(assistant.pre_projection)
        after = product_of(assistant.post_projection)
        attentions = {layer.self_attn.kind: layer.self_attn for layer in assistant.model.layers}
        rotations = {kind: Rotation(one, kernels) for kind, one in attentions.items()}
        return cls(
            kernels, rotations, before, layers, norm_of(assistant.model.norm, kernels), after
        )


class _Clusters(nn.Module):
    """The vocabulary in `centroids` equal clusters: row c of the ordering lists cluster c's ids."""

    def __init__(self, config: TextConfig, head: OrderedHead) -> None:
        super().__init__()
        self.count, self.top_k = head.centroids, head.top_k
        self.centroids = nn.Linear(config.hidden_size, head.centroids, bias=False)
        self.token_ordering = mx.arange(config.vocabulary, dtype=mx.int32)

    def __call__(self, y: mx.array) -> mx.array:
        """ids [n, S] of the best clusters' tokens, S = top_k * vocabulary / centroids."""
        best = mx.argpartition(-self.centroids(y), kth=self.top_k - 1, axis=-1)[:, : self.top_k]
        return self.token_ordering.reshape(self.count, -1)[best].reshape(y.shape[0], -1)


class Assistant(nn.Module):
    """The drafter. Rows are independent: n of them step together at n positions."""

    def __init__(self, config: AssistantConfig) -> None:
        super().__init__()
        width, hidden_size = config.backbone_hidden_size, config.text.hidden_size
        self.pre_projection = nn.Linear(2 * width, hidden_size, bias=False)
        self.model = _Stack(config.text)
        self.post_projection = nn.Linear(hidden_size, width, bias=False)
        head = config.ordered_head
        self.masked_embedding: _Clusters | None = _Clusters(config.text, head) if head else None
        self._laid: _Laid | None = None

    def prepare(self, kernels: Kernels = CPU_KERNELS) -> _Laid:
        """Lay the weights out for steps, once, when they are there; no step need do it then."""
        laid: _Laid | None = self._laid
        if laid is None or laid.kernels != kernels:
            laid = self._laid = _Laid.of(self, kernels)
        return laid

    def turns(self, positions: mx.array, kernels: Kernels = CPU_KERNELS) -> Turns:
        """What rotates the rows of a round, by kind of layer.

        positions [n] int32: the rotary position, the same for all steps of a round. kernels: of the
        device.
        """
        rotations = self.prepare(kernels).rotations
        return {kind: rotation.at(positions) for kind, rotation in rotations.items()}

    def step(
        self, embedding: mx.array, hidden: mx.array, turns: Turns, attend: Attend
    ) -> tuple[DraftLogits, mx.array]:
        """One draft for each of n rows.

        embedding [n, Hb]: the newest token's target embedding, scaled: the target's own
        input, the factor rounded to the weights' dtype.
        hidden [n, Hb]: the target's row after its final norm, then what the last step returned.
        turns: of these rows.
        attend(kind, queries [n, heads, head_dim]) -> [n, heads, head_dim]: attention, scale 1, over
        the row's committed K/V in the target's last own layer of that kind.
        Returns n rows of logits, and the hidden rows [n, Hb] for the next step. Lazy.
        """
        laid: _Laid = self._laid or self.prepare()
        x = laid.before(mx.concatenate([embedding, hidden], axis=-1))
        for kind, before, heads, rest in laid.layers:
            queries, _ = heads(before(x), turns[kind])
            assert queries is not None
            x = rest(x, mx.flatten(attend(kind, queries), 1))
        y = laid.norm(x)
        return self._head(y), laid.after(y)

    def _head(self, y: mx.array) -> DraftLogits:
        embed = self.model.embed_tokens
        if self.masked_embedding is None:
            return DraftLogits(embed.as_linear(y), None)
        ids = self.masked_embedding(y)
        return DraftLogits((embed(ids) @ y[:, :, None])[:, :, 0], ids)


def fit_assistant(files: Sequence[WeightFile], config: AssistantConfig) -> Fitted[Assistant]:
    """The drafter and its weights, unread. Raises ModelRefused."""
    quantized = config.quantization is not None
    return fit(Assistant(config), files, _keep_name, _narrow_ordering, quantized)


def fill_assistant(
    fitted: Fitted[Assistant],
    dtype: mx.Dtype | None,
    report: Callable[[int], None] = lambda count: None,
) -> Assistant:
    """The drafter evaluated, once. dtype None: the checkpoint's own; report: as Fitted.load takes.

    Raises ModelRefused.
    """
    ordering = fitted.origins.get("masked_embedding.token_ordering")
    assistant = fitted.load(dtype, report)
    if assistant.masked_embedding is not None and ordering is not None:
        _check_ordering(assistant.masked_embedding.token_ordering, ordering)
    return assistant


def _keep_name(name: str) -> str:
    return name


def _narrow_ordering(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """token_ordering is int64 in the files; ids fit 32 bits."""
    return {name: _narrow(array) for name, array in weights.items()}


def _narrow(array: mx.array) -> mx.array:
    return array.astype(mx.int32) if array.dtype == mx.int64 else array


def _check_ordering(ordering: mx.array, origin: TensorEntry) -> None:
    # An id outside the vocabulary would read beyond the embedding.
    if not mx.array_equal(mx.sort(ordering), mx.arange(ordering.size, dtype=ordering.dtype)):
        raise ModelRefused(
            f"{origin.file}: {origin.name} is no permutation of the {ordering.size} token ids"
        )
