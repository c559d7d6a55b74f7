"""What is left of a step whose parts are taken out is its matmuls, and these are what is timed.

- Two graphs are compared: of the real runner's step without its parts, and of the matmuls that
  bench/matmuls.py times. Every product of both counts, with the shapes of all that goes in.
- Nothing is computed in either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any
from unittest import mock

import mlx.core as mx
import pytest

from bench.matmuls import MatmulWork, PairMatmuls
from bench.parts import Cell, RepeatedStep
from bench.stand_ins import STAND_INS, without
from sapwood.cache.arrays import attention, pool_history
from sapwood.cache.arrays.pool_history import PoolHistory
from sapwood.cache.arrays.pools import Pools
from sapwood.model import runner
from sapwood.model.checkpoint.config import Quantization
from sapwood.model.dense import Heads, Rotation
from sapwood.model.norms import CpuNorm
from sapwood.model.pair import Pair, load_pair
from sapwood.model.runner import Runner
from sapwood.model.sampling.suppression import Suppression
from sapwood.scheduler.plan import Admit, PrefillSlice, StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.model.hollow import nothing_starts
from tests.model.packs import packed, plain
from tests.model.reference import FAMILIES, checkpoint

PRODUCTS = {"AddMM", "GatherMM", "GatherQMM", "Matmul", "QuantizedMatmul"}
CONTEXT = 40
Product = tuple[str, tuple[tuple[int, ...], ...]]


def primitives(step: Callable[[], Sequence[mx.array]]) -> list[Product]:
    """(name, shapes of its inputs) of all primitives behind what a step leads to."""
    events: list[dict[str, Any]] = []
    mx.disable_compile()
    try:
        with mock.patch.object(mx, "contiguous", lambda a, *rest, **how: mx.stop_gradient(a)):
            mx.export_function(events.append, lambda _: list(step()), mx.zeros(()))
    finally:
        mx.enable_compile()
    made = [event for event in events if event["type"] == "primitive"]
    return [(e["name"], tuple(shape for _, shape, _ in e["inputs"])) for e in made]


def products(found: Sequence[Product]) -> Counter[Product]:
    return Counter(one for one in found if one[0] in PRODUCTS)


def started(runner: Runner, plan: StepPlan) -> list[mx.array]:
    """What a submit of the plan would start."""
    with nothing_starts() as calls:
        runner.submit(plan)
    return [array for call in calls for array in call]


@pytest.fixture(scope="module", params=[*FAMILIES, "e2b-tiny packed", "a4b-tiny packed"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, _, is_packed = str(request.param).partition(" ")
    if not is_packed:
        return load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")
    place = tmp_path_factory.mktemp("packed")
    return load_pair(
        *packed(plain(name, place), place, Quantization(bits=4, group_size=32, mode="affine")),
        "float32",
    )


def step_without(pair: Pair, cell: Cell, parts: Sequence[str]) -> list[Product]:
    """Of a runner of its own: a step that is built and not run is in the way of the next."""
    with closing(Runner(pair, slots_max=4, depth_max=8)) as runner:
        step = RepeatedStep(runner, cell, CONTEXT)
        with without(runner, parts):
            return primitives(lambda: started(runner, step.plan))


def matmuls_of(pair: Pair, work: MatmulWork) -> Counter[Product]:
    return products(primitives(lambda: PairMatmuls(pair).graph(work)))


def test_a_step_without_its_parts_is_its_matmuls(pair: Pair) -> None:
    cell = Cell(3, 0)
    left = products(step_without(pair, cell, cell.parts))
    # A layer's heads, what follows attention, and three of its MLP; then the head.
    assert left.total() > 5 * len(pair.target.model.layers)
    assert left == matmuls_of(pair, MatmulWork.of_round(3, 0)) == matmuls_of(pair, cell.target)


def test_a_round_that_drafts_is_its_matmuls(pair: Pair) -> None:
    """Attention is out in the drafter as well; its last hidden row is nobody's."""
    cell = Cell(3, 2)
    drafting = [part for part in cell.parts if part != "draft"]
    both, target = (products(step_without(pair, cell, out)) for out in (drafting, cell.parts))
    assert both == matmuls_of(pair, MatmulWork.of_round(3, 2))
    assert target == matmuls_of(pair, cell.target)
    assert both - target == matmuls_of(pair, cell.drafter)


def test_prompts_are_their_matmuls(pair: Pair) -> None:
    """Two prompts of six tokens: rows that nobody needs go no further than the last own K/V."""
    slots, tokens = range(2), tuple(range(10, 16))
    plan = StepPlan(
        1,
        admits=tuple(Admit(slot, 0, (), Sampling(), 16) for slot in slots),
        prefills=tuple(PrefillSlice(slot, 0, tokens, draws=True, capture=False) for slot in slots),
    )
    parts = [part for part in STAND_INS if part != "draft"]
    with closing(Runner(pair, slots_max=4, depth_max=8)) as runner, without(runner, parts):
        left = products(primitives(lambda: started(runner, plan)))
    assert left == matmuls_of(pair, MatmulWork.of_prompts(2, 6))


REPLACED = (
    *((Rotation, "at"), (PoolHistory, "attend"), (Pools, "append"), (Pools, "arrays")),
    *((mx.fast, "rms_norm"), (CpuNorm, "__call__"), (Heads, "__call__")),
    (pool_history, "position_mask"),
    *((runner, "verify"), (Suppression, "of_target")),
)


def test_each_part_takes_its_own_out_and_leaves_no_trace(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MASK_ON_HOST", 0)  # as of many rows: in the graph
    cell = Cell(3, 2)
    before = [vars(owner)[name] for owner, name in REPLACED]
    counts = [
        Counter(name for name, _ in step_without(pair, cell, cell.parts[:count]))
        for count in range(len(cell.parts) + 1)
    ]
    assert [vars(owner)[name] for owner, name in REPLACED] == before
    sizes = [counted.total() for counted in counts]
    assert sizes == sorted(set(sizes), reverse=True)
    pairs = zip(cell.parts, counts, counts[1:], strict=False)
    gone = {part: before - after for part, before, after in pairs}
    layers, assistant = pair.target.model.layers, pair.assistant
    assert assistant is not None
    owners = sum(layer.self_attn.has_kv for layer in layers)
    # Powers of two, each seen thrice as other bits: a softmax a layer.
    assert gone["draft"]["View"] == 3 * cell.depth * len(assistant.model.layers)
    # Masks, sines and cosines: once for each kind of layer.
    assert gone["draft"]["Cos"] == gone["masks"]["Remainder"] == gone["rope"]["Cos"] == 2
    assert gone["attention"]["View"] == 3 * len(layers)
    assert gone["append"]["Scatter"] == 2 * owners
    assert gone["sampler"]["ArgReduce"] == 1
    assert gone["norms"]["Sqrt"] > 4 * len(layers) and counts[-1]["Sqrt"] == 0
    # Mean, root and weight: that of queries and keys too, multiplied behind a norm without any.
    assert gone["norms"]["Multiply"] == 3 * gone["norms"]["Sqrt"]
