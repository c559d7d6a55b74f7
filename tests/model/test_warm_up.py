"""What a daemon has run before it serves: every kind of row, and nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model import runner as runner_module
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.constraints.compiler import ConstraintCompiler
from sapwood.model.pair import Pair, load_pair
from sapwood.model.runner import Runner
from sapwood.model.sampling import acceptance
from sapwood.model.sampling.distribution import NUCLEUS, RANKED, WHOLE, DrawRows
from sapwood.model.warm_up import warm_up
from sapwood.scheduler.plan import StepPlan
from tests.model.reference import FAMILIES, checkpoint
from tests.system.held import vocabulary_of


def loaded(name: str) -> Pair:
    return load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> tuple[list[StepPlan], list[DrawRows]]:
    """The plans that any runner gets, and the rows that it verifies."""
    plans: list[StepPlan] = []
    drawn: list[DrawRows] = []
    submit: Callable[..., Any] = Runner.submit

    def submitted(self: Runner, plan: StepPlan) -> Any:
        plans.append(plan)
        return submit(self, plan)

    def verified(logits: mx.array, rows: DrawRows, *args: Any) -> Any:
        drawn.append(rows)
        return acceptance.verify(logits, rows, *args)

    monkeypatch.setattr(Runner, "submit", submitted)
    monkeypatch.setattr(runner_module, "verify", verified)
    return plans, drawn


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_has_rows_of_every_kind(
    name: str, seen: tuple[list[StepPlan], list[DrawRows]]
) -> None:
    warm_up(loaded(name), 1)
    plans, drawn = seen
    (mixed,) = (plan for plan in plans if plan.decodes and plan.prefills)
    assert [row.depth for row in mixed.decodes] == [1, 1]
    assert any(admit.base for admit in mixed.admits), "one is restored, half by reference"
    assert any(plan.captures for plan in plans)
    alone = [plan.decodes[0] for plan in plans if len(plan.decodes) == 1]
    (restored,) = (admit.slot for admit in mixed.admits if admit.base)
    told = [(row.slot, row.depth) for row in alone]
    assert told == [(0, 1), (0, 0), (restored, 1), (restored, 0)], "one row has kernels of its own"
    both = [plan for plan in plans if [row.slot for row in plan.decodes] == [0, restored]]
    assert len(both) == 2
    rows = next(each for each in drawn if each.depth_max)
    assert set(rows.reaches.tolist()) == {0, WHOLE, NUCLEUS, *RANKED}
    assert rows.adjusted.any()
    assert rows.seeded.any()
    # Unseeded rounds: of changed logits, and over the whole vocabulary.
    assert {(int(rows.reaches[b]), bool(rows.adjusted[b])) for b in (0, 1)} == {
        (WHOLE, False),
        (RANKED[0], True),
    }
    assert not rows.seeded[:2].any()


@pytest.mark.parametrize(("drafter", "depth"), [(False, 1), (True, 0)])
def test_without_drafts_it_decodes_all_the_same(
    drafter: bool, depth: int, seen: tuple[list[StepPlan], list[DrawRows]]
) -> None:
    pair = loaded("e2b-tiny")
    warm_up(pair if drafter else replace(pair, assistant=None), depth)
    assert {row.depth for plan in seen[0] for row in plan.decodes} == {0}


def test_it_leaves_no_array_and_no_random_state() -> None:
    pair = loaded("e2b-tiny")
    warm_up(pair, 1)  # what MLX and the model's modules keep once and for all
    mx.synchronize()
    random: list[mx.array] = mx.random.state  # type: ignore[assignment]
    state = [np.array(part) for part in random]
    before = mx.get_active_memory()
    warm_up(pair, 1)
    mx.synchronize()
    assert mx.get_active_memory() == before
    assert all(np.array_equal(a, np.array(b)) for a, b in zip(state, random, strict=True))


def test_rings_are_short_whatever_the_models_window() -> None:
    """A large model's are a gigabyte for each slot, and six would not fit beside its weights."""
    pair = loaded("e2b-tiny")
    config = pair.target_config
    wide = replace(config, text=replace(config.text, window=1 << 20, context_tokens_max=1 << 20))
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    warm_up(replace(pair, target_config=wide), 1)
    assert mx.get_peak_memory() - before < 32 << 20


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_device_that_cannot_do_it_is_refused(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*_: object) -> None:
        raise error("[metal::load_device] no such kernel")

    monkeypatch.setattr(runner_module, "verify", verify)
    with pytest.raises(ModelRefused, match=r"does not run in float32 on this device: .*no such"):
        warm_up(loaded("e2b-tiny"), 1)


def test_logits_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = loaded("e2b-tiny")
    pair.target.model.norm.weight = pair.target.model.norm.weight * mx.nan
    with pytest.raises(ModelRefused, match="a log-probability that is no number"):
        warm_up(pair, 1)


def test_a_row_that_is_held_is_among_them(seen: tuple[list[StepPlan], list[DrawRows]]) -> None:
    """With a draft and without, alone and beside a free one: masks are unpacked in steps too."""
    pair = loaded("e2b-tiny")
    compiler = ConstraintCompiler(vocabulary_of(pair), 5.0, 1 << 28, 5.0, takes_lark=False)
    warm_up(pair, 1, compiler.anything())
    shapes = {(rows.constrained, rows.depth) for rows in seen[1] if any(rows.constrained)}
    assert {((True,), (1,)), ((True,), (0,))} <= shapes
    assert any(held.count(False) for held, _ in shapes)
