"""Nothing in a step reads what the device has not computed, in whatever way: mlx itself says so.

- Under a transformation mlx computes nothing, so whatever reads a number of an array raises there:
  float, int, bool, item, tolist, an index, a format, NumPy with or without a dtype.
- The functions that start or await the device are stand-ins here; what they are called for is held
  by tests/model/test_hand_over.py and tests/cache/arrays/test_waits.py.
- All K/V, hidden rows and drafts come from one number that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays import live_caches, ranges
from sapwood.cache.arrays.pools import Pools
from sapwood.cache.arrays.ranges import EdgePayload, Range
from sapwood.cache.arrays.window import WindowStore
from sapwood.model.drafting import Drafter, Drafts
from sapwood.model.runner import Runner, Ticket
from sapwood.scheduler.plan import Admit, Capture, DecodeRow, Grow, PrefillSlice, StepPlan
from tests.model.hollow import SAMPLERS, nothing_starts
from tests.system.pairs import pair

PROMPT = tuple(range(5, 45))
ROOM = 200
NAMES = ("e2b-tiny", "a4b-tiny")


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Before anything is traced: what a load evaluates would be evaluated later, by other tests."""
    for name in NAMES:
        pair(name)


def unreadable(work: Callable[[mx.array], object]) -> None:
    """Do `work` with a zero that raises ValueError where it, or what is made from it, is read."""

    def traced(zero: mx.array) -> mx.array:
        waits = mock.patch.object(mx, "synchronize", side_effect=AssertionError("a wait"))
        with nothing_starts(), waits:
            work(zero)
        return zero

    mx.compile(traced)(mx.zeros(()))


def begun(name: str, zero: mx.array, monkeypatch: pytest.MonkeyPatch) -> tuple[Runner, Ticket]:
    """A runner and its first step: a prompt for each kind of sampler, all of them stored."""
    runner = Runner(pair(name), 2 * len(SAMPLERS), 7)
    embed = runner.target.embed
    monkeypatch.setattr(runner.target, "embed", lambda tokens: embed(tokens) + zero)
    runner.frontier = runner.frontier + zero
    ticket = runner.submit(
        StepPlan(
            1,
            admits=tuple(
                Admit(slot, 0, (), sampling, ROOM, PROMPT, 3 * (slot == 1))
                for slot, sampling in enumerate(SAMPLERS)
            ),
            prefills=tuple(
                PrefillSlice(slot, 0, PROMPT, True, True) for slot in range(len(SAMPLERS))
            ),
        )
    )
    committed(ticket)
    for slot in range(len(SAMPLERS)):
        runner._samplers[slot].push((7,))
    return runner, ticket


def committed(ticket: Ticket) -> None:
    """Of rounds one token and slices whole: `wait` would read how many."""
    assert ticket.transaction is not None
    for row in ticket.plan.decodes:
        ticket.transaction.commit(row.slot, 1)
    for piece in ticket.plan.prefills:
        ticket.transaction.commit(piece.slot, len(piece.tokens))


def edges(ticket: Ticket) -> list[EdgePayload]:
    """Two adjacent edges of the first prompt, after all that a tree does to them."""
    (whole,) = (p for p in ticket.payloads[:1] if p is not None)
    upper, lower = whole.split(25)
    upper, middle = upper.split(10)
    upper = upper.merge(middle).thin(20)
    assert isinstance(upper, EdgePayload) and isinstance(lower, EdgePayload)
    return [upper, lower]


def everything(runner: Runner, ticket: Ticket) -> None:
    """Drafts of many depths, restores, slices, and a capture out of a slot that is released."""
    last = len(SAMPLERS) - 1
    path = tuple(edges(ticket))
    again = last + 1
    second = runner.submit(
        StepPlan(
            2,
            captures=(Capture(last, 20, len(PROMPT)),),
            releases=(last,),
            admits=(Admit(again, 38, path, SAMPLERS[0], ROOM, PROMPT, 0),),
            decodes=tuple(DecodeRow(s, len(PROMPT), 7, s % 4, 1) for s in range(last)),
            prefills=(PrefillSlice(again, 38, PROMPT[38:], True, True),),
        )
    )
    committed(second)
    runner.make_copies(1 << 30)
    for slot in range(last - 1):  # what is left is packed and grows
        runner.submit(StepPlan(3 + slot, releases=(slot,)))
    longer = tuple(range(5, 305))
    runner.submit(
        StepPlan(
            20,
            pack=True,
            grows=(Grow(last - 1, 300),),
            admits=(Admit(0, 0, (), SAMPLERS[0], 400, longer, 0),),
            prefills=(PrefillSlice(0, 0, longer, False, True),),
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_submit_reads_an_array(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable(lambda zero: everything(*begun(name, zero, monkeypatch)))


READS: dict[str, Callable[[mx.array], object]] = {
    "float": lambda a: float(a.sum()),
    "int": lambda a: int(a.sum()),
    "bool": lambda a: bool(a.sum()),
    "item": lambda a: a.sum().item(),
    "tolist": lambda a: a.tolist(),
    "array": lambda a: np.array(a, np.float32),
    "asarray": np.asarray,
    "index": lambda a: [0, 1][a.sum().astype(mx.int32) * 0],
    "format": lambda a: f"{a}",
    "compare": lambda a: 1 if a.sum() == 0 else 2,
}


@pytest.mark.parametrize("read", READS)
def test_a_read_in_a_restore_would_be_noticed(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    restore = WindowStore.restore

    def reading(store: WindowStore, slot: int, snapshot: Any, target: int) -> bool:
        if snapshot is not None:
            READS[read](snapshot.keys)
        return restore(store, slot, snapshot, target)

    monkeypatch.setattr(WindowStore, "restore", reading)
    with pytest.raises(ValueError, match="Attempting to eval"):
        unreadable(lambda zero: everything(*begun("e2b-tiny", zero, monkeypatch)))


def arrays_of(found: object) -> list[mx.array]:
    """All arrays in what a method gave, or in the pools that it worked on."""
    if isinstance(found, mx.array):
        return [found]
    if isinstance(found, Range):
        return [found.stack]
    if isinstance(found, Pools):
        return found.arrays
    if isinstance(found, Drafts):
        return [found.tokens]
    return [a for each in found for a in arrays_of(each)] if isinstance(found, tuple) else []


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        *((Pools, name) for name in ("follow", "pack", "view", "write", "append")),
        *((ranges, name) for name in ("join_ranges", "split_range")),
        *((live_caches, name) for name in ("read_portions", "stack_layers")),
        (Drafter, "run"),
    ],
)
def test_a_read_anywhere_on_a_step_s_way_would_be_noticed(
    owner: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what moves K/V: admitted, captured, cut, joined, thinned, packed, grown and written."""
    right = getattr(owner, method)

    def reading(*arguments: Any) -> Any:
        found = right(*arguments)
        for array in arrays_of((found, *arguments[:1])):
            np.array(array, np.float32)
        return found

    monkeypatch.setattr(owner, method, reading)
    with pytest.raises(ValueError, match="Attempting to eval"):
        unreadable(lambda zero: everything(*begun("e2b-tiny", zero, monkeypatch)))
