"""Which way attention goes on each device: what is laid out is fused, or says why it is not.

- True shapes without memory: K/V are broadcasts of one number, and the graph is never evaluated.
- Calls are recorded where they leave for MLX, so what is judged is what really is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from bench.families import FAMILIES, FULL_HEAD_SIZE, HEAD_SIZE, Family
from sapwood.cache.arrays import attention
from sapwood.cache.arrays.attention import over_slice, slice_mask
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.arrays.pool_history import PoolHistory
from sapwood.cache.attention_routes import (
    CPU_KERNELS,
    VECTOR_QUERIES_MAX,
    AttentionCall,
    Kernels,
    MaskKind,
    Route,
    route,
)
from sapwood.cache.geometry import ring_tokens, row_tokens
from sapwood.scheduler.limits import Limits
from tests.quick import few_quick

METAL, MAX, M5 = (
    Kernels("metal"),
    Kernels("metal", large=True),
    Kernels("metal", matrix_units=True),
)
CUDA = Kernels("cuda")
DEVICES = {"metal": METAL, "max": MAX, "m5": M5, "cuda": CUDA, "cpu": CPU_KERNELS}
DEPTH_MAX = Limits().draft_depth_max
CONTEXTS = (5, 500, 1000, 1500, 5000, 60_000)
SLICES = range(1, Limits().prefill_tokens_max + 1)
VECTORS = {Route.VECTOR, Route.VECTOR_TWO_PASS}


@dataclass(slots=True)
class Calls:
    """What went to MLX's attention, and the shapes [n, kv_heads, rows, keys] of our own scores."""

    made: list[tuple[int, AttentionCall]] = field(default_factory=list)
    folded: list[tuple[int, ...]] = field(default_factory=list)

    def routes(self, kernels: Kernels) -> list[tuple[Route, str]]:
        return [route(kernels, call) for _, call in self.made]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    fused, softmax = mx.fast.scaled_dot_product_attention, mx.softmax

    def recorded(queries: mx.array, keys: mx.array, *rest: Any, mask: Any, **how: Any) -> mx.array:
        kind: MaskKind = "none" if mask is None else "causal" if mask == "causal" else "array"
        n, heads, count, dim = queries.shape
        group = heads // keys.shape[1]
        found.made.append((n, AttentionCall(dim, group, count, keys.shape[2], kind)))
        return fused(queries, keys, *rest, mask=mask, **how)

    def weighed(scores: mx.array, *rest: Any, **how: Any) -> mx.array:
        found.folded.append(scores.shape)
        return softmax(scores, *rest, **how)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", recorded)
    monkeypatch.setattr(mx, "softmax", weighed)
    return found


def hollow(*shape: int) -> mx.array:
    return mx.broadcast_to(mx.array(0.5, mx.bfloat16), shape)


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of attention of a family. heads: the target's or the drafter's."""

    family: Family
    full: bool
    drafter: bool = False

    @property
    def heads(self) -> int:
        halved = self.drafter and self.family.drafter.centroids
        return self.family.heads // 2 if halved else self.family.heads

    @property
    def kv_heads(self) -> int:
        return self.family.full_kv_heads if self.full else self.family.kv_heads

    @property
    def dim(self) -> int:
        return FULL_HEAD_SIZE if self.full else HEAD_SIZE

    @property
    def capacity_for(self) -> Callable[[int], int]:
        ring = ring_tokens(self.family.window, DEPTH_MAX + 1)
        return row_tokens if self.full else lambda _: ring

    def attend(self, kernels: Kernels, spans: Sequence[Span]) -> None:
        """Lay out a step of decode spans, slot by slot; nothing is evaluated."""
        placement = Placement(self.capacity_for)
        placement.reserve((span.slot, span.end) for span in spans)
        pools = {
            place.capacity: tuple(
                hollow(placement.rows(place.capacity), self.kv_heads, place.capacity, self.dim)
                for _ in range(2)
            )
            for place in placement.places.values()
        }
        reach = None if self.full else self.family.window
        batch = Batch(spans)
        history = PoolHistory(kernels, batch, placement, cast("Any", pools), reach)
        history.attend(hollow(batch.tokens, self.heads, self.dim))

    def slice(self, kernels: Kernels, queries: int, context: int) -> None:
        """Lay out a slice of a prompt behind `context` tokens."""
        past = context if self.full else min(context, self.family.window - 1)
        keys = hollow(1, self.kv_heads, past + queries, self.dim)
        mask = slice_mask(queries, past + queries, None if self.full else self.family.window)
        over_slice(kernels, hollow(queries, self.heads, self.dim), keys, keys, mask)


LAYERS = [
    Layer(f, full, own)
    for f in FAMILIES.values()
    for full in (False, True)
    for own in (False, True)
]


def bare(kernels: Kernels, calls: Calls) -> list[AttentionCall]:
    """What is unfused, and nobody says why."""
    return [call for _, call in calls.made if route(kernels, call) == (Route.UNFUSED, "")]


def described(layer: Layer) -> str:
    kind = "full" if layer.full else "sliding"
    return f"{layer.family.name}-{kind}-{'drafter' if layer.drafter else 'target'}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layer", LAYERS, ids=described)
def test_every_default_is_fused_or_says_why_not(layer: Layer, device: str, calls: Calls) -> None:
    """At every depth, alone and beside rows of every other depth, in every context."""
    kernels = DEVICES[device]
    for context in CONTEXTS:
        for depth in range(1 if layer.drafter else DEPTH_MAX + 1):
            deep = Span(3, context, depth + 1)
            layer.attend(kernels, [deep])
            layer.attend(kernels, [Span(0, context, 1), Span(1, 700, 2), Span(2, 90, 9), deep])
    assert bare(kernels, calls) == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layer", [e for e in LAYERS if not e.drafter], ids=described)
def test_a_slice_of_any_length_is_fused_or_says_why_not(
    layer: Layer, device: str, calls: Calls
) -> None:
    """Of one token, all but one of which a prefix hit spared, to as many as a step has."""
    kernels = DEVICES[device]
    for queries in SLICES:
        for context in CONTEXTS if queries <= 2 * VECTOR_QUERIES_MAX else CONTEXTS[1::3]:
            layer.slice(kernels, queries, context)
    assert bare(kernels, calls) == []


@pytest.mark.parametrize("device", ["metal", "max", "m5"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_short_slice_stays_on_the_vector_kernel(name: str, device: str, calls: Calls) -> None:
    """Sliding layers: with E2B's eight heads to a K/V head in two calls of four queries at most."""
    layer = Layer(FAMILIES[name], full=False)
    for queries in range(1, VECTOR_QUERIES_MAX + 1):
        calls.made.clear()
        layer.slice(DEVICES[device], queries, 3000)
        assert {way for way, _ in calls.routes(DEVICES[device])} <= VECTORS
        assert sum(call.queries for _, call in calls.made) == queries
        assert len(calls.made) == (2 if name == "E2B" and queries > 4 else 1)
    layer.slice(CPU_KERNELS, VECTOR_QUERIES_MAX, 3000)
    assert len(calls.folded) == 1, "a CPU cuts nothing"


@pytest.mark.parametrize("device", ["metal", "max", "m5"])
@pytest.mark.parametrize("name", FAMILIES)
def test_sliding_attention_of_rounds_stays_on_the_vector_kernel(
    name: str, device: str, calls: Calls
) -> None:
    """Whatever the depth: nobody's depth is capped, and nobody leaves the kernel for another's."""
    layer = Layer(FAMILIES[name], full=False)
    for depth in range(DEPTH_MAX + 1):
        layer.attend(DEVICES[device], [Span(0, 3000, 1), Span(1, 40, depth + 1), Span(2, 900, 1)])
    assert {way for way, _ in calls.routes(DEVICES[device])} <= VECTORS
    assert calls.folded == []


def test_a_deep_row_of_e2b_goes_on_in_calls_of_its_own(calls: Calls) -> None:
    """Three calls: four queries of everybody, then the deep row's next four and its last."""
    layer = Layer(FAMILIES["E2B"], full=False)
    spans = [Span(0, 3000, 1), Span(1, 900, 3), Span(2, 40, 9), Span(3, 3000, 4)]
    layer.attend(METAL, spans)
    ring = ring_tokens(512, DEPTH_MAX + 1)
    assert calls.made == [
        (4, AttentionCall(256, 8, 4, ring, "array")),
        (1, AttentionCall(256, 8, 4, 64, "array")),
        (1, AttentionCall(256, 8, 1, 64, "array")),
    ]
    layer.attend(CPU_KERNELS, spans)
    assert calls.folded == [(4, 1, 9 * 8, ring)], "a CPU cuts nothing"


@pytest.mark.parametrize("device", ["metal", "max", "cuda"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_group_is_one_matrix_at_head_size_512(name: str, device: str, calls: Calls) -> None:
    """One product for each K/V head of each row, in rounds and slices."""
    layer, kernels = Layer(FAMILIES[name], full=True), DEVICES[device]
    group = layer.heads // layer.kv_heads
    layer.attend(kernels, [Span(0, 600, 3), Span(1, 600, 2)])
    layer.slice(kernels, 512, 100)
    assert calls.made == []
    kv_heads = layer.kv_heads
    assert calls.folded == [(2, kv_heads, 3 * group, 640), (1, kv_heads, 512 * group, 612)]


def test_a_lone_query_of_a_long_context_has_a_kernel_at_head_size_512(calls: Calls) -> None:
    """MLX takes it for eight heads to a K/V head, and under no mask: so it is handed none."""
    for name, fused in (("E2B", True), ("26B-A4B", True), ("31B", True), ("E4B", False)):
        layer = Layer(FAMILIES[name], full=True)
        layer.attend(METAL, [Span(1, 1499, 1)])
        group = layer.heads // layer.kv_heads
        wanted = [(1, AttentionCall(512, group, 1, 1500, "none"))]
        assert calls.made == (wanted if fused else []), name
        calls.made.clear()
    for short in ([Span(0, 900, 1)], [Span(0, 1499, 2)], [Span(0, 1499, 1), Span(1, 1499, 1)]):
        Layer(FAMILIES["E2B"], full=True).attend(METAL, short)
    assert calls.made == []


def test_a_slice_of_head_size_256_is_long_enough_on_matrix_units_once_folded(calls: Calls) -> None:
    layer = Layer(FAMILIES["E2B"], full=False)
    layer.slice(M5, 512, 5000)
    layer.slice(M5, 64, 5000)
    layer.slice(METAL, 512, 5000)
    assert calls.made == [
        (1, AttentionCall(256, 1, 4096, 1023, "array")),
        (1, AttentionCall(256, 8, 64, 575, "array")),
        (1, AttentionCall(256, 8, 512, 1023, "array")),
    ]
    assert [way for way, _ in calls.routes(M5)][:2] == [Route.FULL, Route.UNFUSED]


def test_a_gpu_has_larger_tiles(calls: Calls) -> None:
    """Passes over K and V of a slice at 32,768 tokens: 4 instead of 32."""
    layer = Layer(FAMILIES["26B-A4B"], full=True)
    for kernels in (METAL, CUDA):
        layer.slice(kernels, 512, 32_768 - 512)
        assert [rows // 8 for _, _, rows, _ in calls.folded] == [128] * 4
        assert max(int(np.prod(shape)) for shape in calls.folded) == 1 << 26
        calls.folded.clear()
    layer.slice(CPU_KERNELS, 512, 32_768 - 512)
    assert {rows // 8 for _, _, rows, _ in calls.folded} == {8}, "the least"


def test_a_cpu_folds_everything(calls: Calls) -> None:
    """MLX has no kernel there, and its softmax takes several times as long as ours."""
    for layer in LAYERS:
        layer.attend(CPU_KERNELS, [Span(0, 1500, 3), Span(1, 90, 1)])
        layer.slice(CPU_KERNELS, 10, 5000)
    assert calls.made == []


def numbers(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)) * 0.3


@pytest.mark.parametrize("device", ["cpu", "metal", "m5", "cuda"])
@pytest.mark.parametrize(("dim", "heads", "kv_heads"), [(256, 8, 1), (512, 8, 1), (512, 8, 2)])
@pytest.mark.parametrize("reach", [None, 70])
def test_rounds_give_the_same_however_they_are_laid_out(
    device: str,
    dim: int,
    heads: int,
    kv_heads: int,
    reach: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of 1 to 9 queries in two classes, then one query of a long context alone."""
    placement = Placement(lambda tokens: 128 if tokens <= 128 else 1536)
    spans = [Span(0, 3, 1), Span(1, 100, 5), Span(2, 50, 9), Span(5, 1100, 1), Span(4, 130, 8)]
    placement.reserve((slot, 200 if slot == 4 else 20) for slot in range(5))
    placement.reserve((span.slot, span.end) for span in spans)
    pools = {
        capacity: (
            numbers(capacity, placement.rows(capacity), kv_heads, capacity, dim),
            numbers(capacity + 1, placement.rows(capacity), kv_heads, capacity, dim),
        )
        for capacity in (128, 1536)
    }
    for step in (spans, spans[3:4]):
        queries = numbers(3, sum(span.length for span in step), heads, dim)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "folds", lambda *_: False)  # MLX's own
            uncut = PoolHistory(CPU_KERNELS, Batch(step), placement, pools, reach)
            plain = np.array(uncut.attend(queries))
        history = PoolHistory(DEVICES[device], Batch(step), placement, pools, reach)
        laid_out = np.array(history.attend(queries))
        np.testing.assert_allclose(laid_out, plain, atol=2e-6)


@pytest.mark.parametrize("device", ["cpu", "metal", "m5", "cuda"])
@pytest.mark.parametrize(("dim", "heads", "kv_heads"), [(256, 8, 1), (512, 8, 2), (512, 4, 4)])
@pytest.mark.parametrize("reach", [None, 100])
@pytest.mark.parametrize("queries", few_quick([1, 7, 40, 150], 1, 40))
def test_slices_give_the_same_however_they_are_laid_out(
    device: str,
    dim: int,
    heads: int,
    kv_heads: int,
    reach: int | None,
    queries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, values = (numbers(seed, 1, kv_heads, 200, dim) for seed in (1, 2))
    rows, mask = numbers(3, queries, heads, dim), slice_mask(queries, 200, reach)
    laid_out = np.array(over_slice(DEVICES[device], rows, keys, values, mask))
    monkeypatch.setattr(attention, "folds", lambda *_: False)  # MLX's own
    plain = np.array(over_slice(CPU_KERNELS, rows, keys, values, mask))
    np.testing.assert_allclose(laid_out, plain, atol=2e-6)
