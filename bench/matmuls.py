"""The matmuls of a step, and nothing else of it: the products that it takes, timed.

- They are those that target and drafter lay out for a step (model/products.py, model/dense.py), on
  the same weights, plain or packed, as loaded: queries, keys and values are one where they are one
  there. Each is called once for each time that a step calls it, in the step's order, on rows of
  the width that it takes. No attention, norm, activation or sum.
- Experts are called as the model does, each row's chosen at random, evenly: gathering, sorting and
  their activation are in it.
- One product waits for the one before, as in a step; inputs are made before the clock starts, and
  so is the graph.
- Past the last layer with K/V of its own only the rows go on whose output somebody needs, and the
  drafter's hidden row after the last draft is needed by nobody: neither is computed in a step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.gemma4_text import DecoderLayer

from sapwood.cache.attention_routes import CPU_KERNELS
from sapwood.model.assistant import Assistant
from sapwood.model.dense import Heads, Residual
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.pair import Pair
from sapwood.model.products import OfRows, product_of

_SEED = 0


@dataclass(frozen=True, slots=True)
class MatmulWork:
    """Whose matmuls: of a target forward, of the drafter's iterations before it, or of both.

    written: tokens whose K/V is written. kept: those of them whose output is needed. drafting: rows
    that draft `depth` times.
    """

    written: int = 0
    kept: int = 0
    drafting: int = 0
    depth: int = 0

    @classmethod
    def of_round(cls, rows: int, depth: int) -> MatmulWork:
        """A step of so many rows with so many drafts each, and no prompt beside them."""
        verified = rows * (depth + 1)
        return cls(verified, verified, rows if depth else 0, depth)

    @property
    def target(self) -> MatmulWork:
        """The target's part of it."""
        return MatmulWork(self.written, self.kept)

    @property
    def drafter(self) -> MatmulWork:
        """The drafter's part of it."""
        return MatmulWork(drafting=self.drafting, depth=self.depth)

    @classmethod
    def of_prompts(cls, rows: int, tokens: int) -> MatmulWork:
        """Prompts of so many tokens each, of which the last row draws; 0 tokens: none of it."""
        return cls(rows * tokens, rows) if tokens else cls()


@dataclass(frozen=True, slots=True)
class _Product:
    """One product. width: of its input. kept: whether it sees the kept rows only."""

    call: OfRows
    width: int
    kept: bool = True


class PairMatmuls:
    """A loaded pair's matmuls, and the least time that each work of them has taken so far."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.least_s = pair, dict[MatmulWork, float]()
        self._target = list(_target_products(pair))
        self._draft = [] if pair.assistant is None else list(_draft_products(pair.assistant))
        self._inputs: dict[tuple[int, int], mx.array] = {}

    def measure(self, work: MatmulWork) -> float:
        """Seconds of one turn, which count where no turn was quicker; 0 of nothing."""
        results = self.graph(work)
        if not results:
            self.least_s[work] = 0.0
            return 0.0
        mx.eval(list(self._inputs.values()))
        began = time.perf_counter()
        mx.eval(results)
        mx.synchronize()
        seconds = time.perf_counter() - began
        self.least_s[work] = min(seconds, self.least_s.get(work, seconds))
        return seconds

    def graph(self, work: MatmulWork) -> list[mx.array]:
        """What one turn leads to: a single array at most, behind which all the others lie."""
        last: list[mx.array] = []
        for product, rows in self._calls(work):
            x = self._input(rows, product.width)
            last = [product.call(mx.depends([x], last)[0] if last else x)]
        return last

    def _calls(self, work: MatmulWork) -> Iterator[tuple[_Product, int]]:
        for iteration in range(work.depth if work.drafting else 0):
            more = iteration + 1 < work.depth
            for product in self._draft if more else self._draft[:-1]:
                yield product, work.drafting
        for product in self._target if work.written else ():
            if rows := work.kept if product.kept else work.written:
                yield product, rows

    def _input(self, rows: int, width: int) -> mx.array:
        if (rows, width) not in self._inputs:
            key = mx.random.key(_SEED)
            made = mx.random.normal((rows, width), key=key).astype(self.pair.dtype)
            self._inputs[rows, width] = made
        return self._inputs[rows, width]


def _target_products(pair: Pair) -> Iterator[_Product]:
    target = PackedGemma4(pair.target, pair.target_config.placeholders)
    text, last_owner = target.text, target.owners[-1]
    width = text.norm.weight.size
    if text.hidden_size_per_layer_input:
        yield _Product(text.per_layer_model_projection, width, kept=False)
    for index, layer in enumerate(text.layers):
        owns, apart = layer.self_attn.has_kv, index == last_owner
        if owns:
            heads = Heads.of(layer.self_attn, CPU_KERNELS, queries=not apart)
            yield _Product(heads.product, width, kept=False)
        if apart or not owns:
            yield _Product(Heads.of(layer.self_attn, CPU_KERNELS, keys=False).product, width)
        yield from _rest_products(layer, width, kept=index >= last_owner)
    head = text.embed_tokens.as_linear if pair.target.tie_word_embeddings else pair.target.lm_head
    yield _Product(head, width)


def _rest_products(layer: Any, width: int, kept: bool = True) -> Iterator[_Product]:
    """Of a layer of the target or the drafter, behind its attention."""
    rest, attention = Residual.of(layer, CPU_KERNELS), layer.self_attn
    yield _Product(rest.out, attention.n_heads * attention.head_dim, kept)
    yield _Product(rest.gate, width, kept)
    yield _Product(rest.up, width, kept)
    yield _Product(rest.down, _input_width(layer.mlp.down_proj), kept)
    if rest.mixture is not None:
        yield _Product(rest.mixture.scores, width, kept)
        yield _Product(_experts(layer), width, kept)
    if rest.inputs is not None:
        yield _Product(rest.inputs.gate, width, kept)
        yield _Product(rest.inputs.out, layer.hidden_size_per_layer_input, kept)


def _draft_products(assistant: Assistant) -> Iterator[_Product]:
    """Of one iteration; the last of them is what only a further iteration needs."""
    stack, clusters = assistant.model, assistant.masked_embedding
    width, before = stack.norm.weight.size, assistant.pre_projection
    yield _Product(product_of(before), _input_width(before))
    for layer in stack.layers:
        yield _Product(Heads.of(layer.self_attn, CPU_KERNELS, keys=False).product, width)
        yield from _rest_products(layer, width)
    if clusters is None:
        yield _Product(stack.embed_tokens.as_linear, width)
    else:
        yield _Product(clusters.centroids, width)
        yield _Product(_ordered_head(assistant), width)
    yield _Product(product_of(assistant.post_projection), width)


def _ordered_head(assistant: Assistant) -> OfRows:
    """Over so many clusters as a draft opens; the first of them, for every row."""
    embed, clusters = assistant.model.embed_tokens, assistant.masked_embedding
    assert clusters is not None
    opened = clusters.top_k * (clusters.token_ordering.size // clusters.count)
    ids = clusters.token_ordering[:opened]
    mx.eval(ids)
    # The rows are looked up for each draft: reading them is what this product costs.
    return lambda y: embed(mx.broadcast_to(ids, (len(y), opened))) @ y[..., None]


def _input_width(linear: Any) -> int:
    """Of a linear layer, plain or packed."""
    if "scales" in linear:
        return int(linear.scales.shape[-1] * linear.group_size)
    return int(linear.weight.shape[-1])


def _experts(layer: DecoderLayer) -> OfRows:
    glu, top_k = layer.experts.switch_glu, layer.router.config.top_k_experts
    assert top_k is not None, "a mixture chooses"
    chosen: dict[int, mx.array] = {}

    def call(x: mx.array) -> mx.array:
        if len(x) not in chosen:
            chosen[len(x)] = _even_choice(len(x), glu.gate_proj.num_experts, top_k)
        routed: mx.array = glu(x, chosen[len(x)])
        return routed

    return call


def _even_choice(rows: int, experts: int, top_k: int) -> mx.array:
    """[rows, top_k]: of each row, no expert twice."""
    shuffled = np.random.default_rng(_SEED).permuted(
        np.tile(np.arange(experts, dtype=np.uint32), (rows, 1)), axis=1
    )
    choice = mx.array(shuffled[:, :top_k])
    mx.eval(choice)
    return choice


def measure_least(
    matmuls: PairMatmuls, works: Sequence[MatmulWork], turns: int, seconds: float = 0.0
) -> None:
    """At least so many turns of each and so many seconds of all, each work once in every turn."""
    turned, until = 0, time.perf_counter() + seconds
    while turned < turns or time.perf_counter() < until:
        for work in works:
            matmuls.measure(work)
        turned += 1
