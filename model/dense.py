"""What Gemma 4 and its drafter compute of each packed row by itself: all but attention.

- Built once from loaded modules and run without them (products).
- A head's weight is multiplied after the norm, which is where the norm itself does it: queries,
  keys and values share one norm and one rotation, and no bit moves.
- Rotation is a kernel on a GPU. A CPU makes it of a dozen operations: there sines and cosines are
  made once for a step and a kind of layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from sapwood.cache.attention_routes import Kernels
from sapwood.model.curves import Gating, gating
from sapwood.model.norms import RmsNorm, norm_of, norm_with
from sapwood.model.products import OfRows, in_row_tiles, kept, product_of, product_of_all

# From so many pairs of a row and an expert on mlx-lm's SwitchGLU sorts them.
_SORTED_PAIRS = 64


@partial(mx.compile, shapeless=True)
def _turned(
    low: mx.array, high: mx.array, cosines: mx.array, sines: mx.array
) -> tuple[mx.array, mx.array]:
    return low * cosines - high * sines, low * sines + high * cosines


class Rotation:
    """Rotary positions of one kind of layer: `at` some positions, what rotates rows there."""

    def __init__(self, attention: Any, kernels: Kernels) -> None:
        """attention: of a layer of this kind, mlx-lm's or the drafter's."""
        self._rope, self._tabled = attention.rope, kernels.backend == "cpu"
        if self._tabled:
            half, dtype = attention.head_dim // 2, attention.q_norm.weight.dtype
            # Once it was rotated, cosines and sines, in the dtype that rows have.
            self._unit = kept(
                attention, "_unit", (),
                lambda: mx.array([1.0] * half + [0.0] * half, dtype)[None, None, None],
            )  # fmt: skip

    def at(self, positions: mx.array) -> OfRows:
        """Rotates [T, heads, D], row t at positions[t]."""
        if not self._tabled:
            rope = self._rope
            return lambda rows: rope(rows[:, :, None], offset=positions).squeeze(2)
        unit = mx.repeat(self._unit, positions.size, axis=0)
        cosines, sines = mx.split(self._rope(unit, offset=positions).squeeze(2), 2, axis=-1)

        def turn(rows: mx.array) -> mx.array:
            low, high = mx.split(rows, 2, axis=-1)
            return mx.concatenate([*_turned(low, high, cosines, sines)], axis=-1)

        return turn


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values of a layer, or some of these, side by side in one product.

    queries, keys: how many heads of each; values: whether there are any beside the keys, else the
    keys before their weight are the values too. weights: [queries + keys, D], or [D] of all.
    """

    product: OfRows
    queries: int
    keys: int
    values: bool
    head_dim: int
    weights: mx.array
    norm: RmsNorm

    @classmethod
    def of(cls, attention: Any, kernels: Kernels, queries: bool = True, keys: bool = True) -> Heads:
        """Of mlx-lm's attention or the drafter's: what it has of these."""
        keys = keys and attention.has_kv
        values = keys and not attention.use_k_eq_v
        wanted = {"q_proj": queries, "k_proj": keys, "v_proj": values}
        modules = [attention[name] for name, used in wanted.items() if used]
        counts = (attention.n_heads if queries else 0, attention.n_kv_heads if keys else 0)
        weights = attention.q_norm.weight
        if keys:
            norms = [attention.q_norm.weight, attention.k_norm.weight]
            name = "_weights" if queries else "_key_weights"
            weights = kept(attention, name, norms, lambda: _repeated(norms, counts))
        dim, eps = attention.head_dim, attention.q_norm.eps
        # Keys and values have one norm with the queries; weights come behind it.
        norm = norm_with(None if keys else weights, eps, dim, kernels)
        product = product_of_all(modules, kernels.strict)
        return cls(product, *counts, values, dim, weights, norm)

    def __call__(
        self, normed: mx.array, rotate: OfRows
    ) -> tuple[mx.array | None, tuple[mx.array, mx.array] | None]:
        """[T, hidden] -> queries, and keys with values, [T, heads, D]; None: no such heads."""
        rows = mx.unflatten(self.product(normed), -1, (-1, self.head_dim))
        if not self.keys:
            return rotate(self.norm(rows)), None
        rows = self.norm(rows)
        turning = self.queries + self.keys
        turned = rotate((rows[:, :turning] if self.values else rows) * self.weights)
        values = rows[:, turning:] if self.values else rows[:, self.queries :]
        if not self.queries:
            return None, (turned, values)
        return turned[:, : self.queries], (turned[:, self.queries :], values)


def _repeated(weights: Sequence[mx.array], counts: Sequence[int]) -> mx.array:
    parts = [mx.broadcast_to(w, (n, w.size)) for w, n in zip(weights, counts, strict=True)]
    return mx.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Residual:
    """What follows a layer's attention: [T, heads * D] into the residual stream, and the MLP."""

    out: OfRows
    after_attention: RmsNorm
    before_mlp: RmsNorm
    gate: OfRows
    up: OfRows
    down: OfRows
    after_mlp: RmsNorm
    scale: mx.array
    gated: Gating
    mixture: RoutedExperts | None = None
    inputs: LayerInputs | None = None

    @classmethod
    def of(cls, layer: Any, kernels: Kernels) -> Residual:
        """Of mlx-lm's layer, or the drafter's."""
        mlp, strict = layer.mlp, kernels.strict
        return cls(
            product_of(layer.self_attn.o_proj, strict),
            norm_of(layer.post_attention_layernorm, kernels),
            norm_of(layer.pre_feedforward_layernorm, kernels),
            product_of(mlp.gate_proj, strict),
            product_of(mlp.up_proj, strict),
            product_of(mlp.down_proj, strict),
            norm_of(layer.post_feedforward_layernorm, kernels),
            layer.layer_scalar,
            gating(kernels),
            RoutedExperts.of(layer, kernels) if getattr(layer, "enable_moe", False) else None,
            LayerInputs.of(layer, kernels)
            if getattr(layer, "hidden_size_per_layer_input", 0)
            else None,
        )

    def __call__(
        self, residual: mx.array, mixed: mx.array, per_layer_input: mx.array | None = None
    ) -> mx.array:
        """The layer's output [T, hidden]; residual: its input. per_layer_input [T, size]."""
        hidden = self.after_attention(self.out(mixed), residual)
        rows = self.before_mlp(hidden)
        fed = self.down(self.gated(self.gate(rows), self.up(rows)))
        if self.mixture is not None:
            fed = self.mixture(hidden, fed)
        if self.inputs is None or per_layer_input is None:
            return self.after_mlp(fed, hidden, self.scale)
        hidden = self.after_mlp(fed, hidden)
        return self.inputs.after(self.inputs(hidden, per_layer_input), hidden, self.scale)


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """The gate of E2B and E4B through which a token's own vector of a layer comes in.

    after: the norm of what comes out.
    """

    gated: Gating
    gate: OfRows
    out: OfRows
    after: RmsNorm

    @classmethod
    def of(cls, layer: Any, kernels: Kernels) -> LayerInputs:
        """Of mlx-lm's layer."""
        return cls(
            gating(kernels),
            product_of(layer.per_layer_input_gate, kernels.strict),
            product_of(layer.per_layer_projection, kernels.strict),
            norm_of(layer.post_per_layer_input_norm, kernels),
        )

    def __call__(self, hidden: mx.array, per_layer_input: mx.array) -> mx.array:
        """[T, hidden] and [T, size] -> [T, hidden], to be normed and added."""
        return self.out(self.gated(self.gate(hidden), per_layer_input))


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """26B-A4B's experts beside its dense MLP; mlx-lm's module computes those that are chosen.

    route: the router's norm, its constant included. top_k: experts of a row.
    """

    route: RmsNorm
    scores: OfRows
    top_k: int
    weights: mx.array
    experts: Callable[[mx.array, mx.array, mx.array], mx.array]
    before: RmsNorm
    after_dense: RmsNorm
    after: RmsNorm

    @classmethod
    def of(cls, layer: Any, kernels: Kernels) -> RoutedExperts:
        """Of mlx-lm's layer."""
        router, experts = layer.router, layer.experts
        own, top_k = router.scale, router.config.top_k_experts
        weight = kept(router, "_norm_scale", (own,), lambda: own * router._root_size)
        if kernels.strict:
            # So few that mlx-lm does not sort them by expert: each is multiplied by itself.
            experts = in_row_tiles(experts, max(1, (_SORTED_PAIRS - 1) // top_k))
        return cls(
            norm_with(weight, router.eps, weight.size, kernels),
            product_of(router.proj, kernels.strict),
            top_k,
            router.per_expert_scale,
            experts,
            norm_of(layer.pre_feedforward_layernorm_2, kernels),
            norm_of(layer.post_feedforward_layernorm_1, kernels),
            norm_of(layer.post_feedforward_layernorm_2, kernels),
        )

    def __call__(self, hidden: mx.array, dense: mx.array) -> mx.array:
        """dense: the MLP's output for the same rows [T, hidden]."""
        scores = self.scores(self.route(hidden))
        best = mx.argpartition(scores, kth=-self.top_k, axis=-1)[:, -self.top_k :]
        shares = mx.softmax(mx.take_along_axis(scores, best, axis=-1), axis=-1)
        sparse = self.experts(self.before(hidden), best, shares * self.weights[best])
        return self.after(sparse, self.after_dense(dense))
