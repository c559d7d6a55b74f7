"""The matmuls of a step, and nothing else of it: the loaded pair's own linear layers, timed.

- Every linear layer of target and drafter is called once for each time that a step calls it, in the
  model's order, on rows of the width that it takes: plain or packed, as it was loaded. No
  attention, norm, activation or sum.
- Experts are called as the model does, each row's chosen at random, evenly: gathering, sorting and
  their activation are in it.
- One layer waits for the one before, as in a step; inputs are made before the clock starts, and so
  is the graph.
- Past the last layer with K/V of its own only the rows go on whose output somebody needs, and the
  drafter's hidden row after the last draft is needed by nobody: neither is computed in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.gemma4_text import DecoderLayer

from sapwood.model.assistant import Assistant
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.pair import Pair

_SEED = 0
_LINEAR = (nn.Linear, nn.QuantizedLinear)


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
class _Layer:
    """One linear layer. width: of its input. kept: whether it sees the kept rows only."""

    call: Callable[[mx.array], mx.array]
    width: int
    kept: bool = True


class PairMatmuls:
    """A loaded pair's matmuls, and the least time that each work of them has taken so far."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.least_s = pair, dict[MatmulWork, float]()
        self._target = list(_target_layers(pair))
        self._draft = [] if pair.assistant is None else list(_draft_layers(pair.assistant))
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
        for layer, rows in self._calls(work):
            x = self._input(rows, layer.width)
            last = [layer.call(mx.depends([x], last)[0] if last else x)]
        return last

    def _calls(self, work: MatmulWork) -> Iterator[tuple[_Layer, int]]:
        for iteration in range(work.depth if work.drafting else 0):
            more = iteration + 1 < work.depth
            for layer in self._draft if more else self._draft[:-1]:
                yield layer, work.drafting
        for layer in self._target if work.written else ():
            if rows := work.kept if layer.kept else work.written:
                yield layer, rows

    def _input(self, rows: int, width: int) -> mx.array:
        if (rows, width) not in self._inputs:
            key = mx.random.key(_SEED)
            made = mx.random.normal((rows, width), key=key).astype(self.pair.dtype)
            self._inputs[rows, width] = made
        return self._inputs[rows, width]


def _target_layers(pair: Pair) -> Iterator[_Layer]:
    target = PackedGemma4(pair.target, pair.target_config.placeholders)
    text, last_owner = target.text, target.owners[-1]
    if text.hidden_size_per_layer_input:
        yield _linear(text.per_layer_model_projection, kept=False)
    for index, layer in enumerate(text.layers):
        own = (layer.self_attn.get("k_proj"), layer.self_attn.get("v_proj"))
        for module in _linears(layer):
            writes = any(module is projection for projection in own)
            yield _linear(module, kept=index > last_owner or (index == last_owner and not writes))
        if layer.enable_moe:
            yield _experts(layer, kept=index >= last_owner)
    if pair.target.tie_word_embeddings:
        yield _Layer(text.embed_tokens.as_linear, text.norm.weight.size)
    else:
        yield _linear(pair.target.lm_head)


def _draft_layers(assistant: Assistant) -> Iterator[_Layer]:
    """Of one iteration; the last of them is what only a further iteration needs."""
    yield _linear(assistant.pre_projection)
    for module in _linears(assistant.model):
        yield _linear(module)
    embed, clusters = assistant.model.embed_tokens, assistant.masked_embedding
    width = assistant.model.norm.weight.size
    if clusters is None:
        yield _Layer(embed.as_linear, width)
    else:
        yield _linear(clusters.centroids)
        opened = clusters.top_k * (clusters.token_ordering.size // clusters.count)
        ids = clusters.token_ordering[:opened]
        mx.eval(ids)
        # The rows are looked up for each draft: reading them is what this product costs.
        yield _Layer(lambda y: embed(mx.broadcast_to(ids, (len(y), opened))) @ y[..., None], width)
    yield _linear(assistant.post_projection)


def _linears(module: nn.Module) -> list[nn.Module]:
    """Its linear layers in the order in which they were made, experts left out."""
    found = [inner for _, inner in reversed(module.named_modules())]
    return [inner for inner in found if isinstance(inner, _LINEAR)]


def _linear(module: nn.Module, kept: bool = True) -> _Layer:
    if isinstance(module, nn.QuantizedLinear):
        width = module.scales.shape[-1] * module.group_size
    else:
        width = module.weight.shape[-1]
    return _Layer(module, width, kept)


def _experts(layer: DecoderLayer, kept: bool) -> _Layer:
    glu, top_k = layer.experts.switch_glu, layer.router.config.top_k_experts
    assert top_k is not None, "a mixture chooses"
    chosen: dict[int, mx.array] = {}

    def call(x: mx.array) -> mx.array:
        if len(x) not in chosen:
            chosen[len(x)] = _even_choice(len(x), glu.gate_proj.num_experts, top_k)
        return glu(x, chosen[len(x)])

    return _Layer(call, layer.post_feedforward_layernorm.weight.size, kept)


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
