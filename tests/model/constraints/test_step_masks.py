"""Masks of a step under a clock: one who takes too long ends, and nobody else hears of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from llguidance import LLExecutor

from sapwood.model.constraints import mask_worker
from sapwood.model.constraints.guide import Guide, MaskRows, Walk
from sapwood.model.constraints.step_masks import StepMasks
from tests.model.constraints.test_guide import ORDER, TEXT
from tests.model.constraints.toy import TOKEN_BYTES, allowed, encode, schema

LIMIT_S = 0.5


@pytest.fixture
def guides() -> list[Guide]:
    """Of one schema, each at another place."""
    made = [Guide(schema(ORDER), ()) for _ in range(3)]
    for count, guide in enumerate(made):
        guide.push(encode(TEXT)[: 3 * count])
    return made


def due(guides: Sequence[Guide]) -> list[set[int]]:
    return [allowed(guide, StepMasks(len(TOKEN_BYTES), 5.0))[0] for guide in guides]


def hold_up(
    monkeypatch: pytest.MonkeyPatch, who: Guide, how: BaseException | threading.Event
) -> list[int]:
    """The library hangs, or breaks down, wherever this guide's matcher is asked; how often."""
    fill, asked = mask_worker._fill, [0]
    handed_over: list[object] = []
    how_often = [0]

    def held(executor: LLExecutor, masks: MaskRows, walks: Sequence[Walk]) -> None:
        # One that a thread was left with is nobody else's any more.
        assert not any(walk.matcher is other for walk in walks for other in handed_over)
        handed_over.extend(walk.matcher for walk in walks if how_often[0] == 0)
        how_often[0] += 1
        if any(walk.matcher is who._matcher for walk in walks):
            asked[0] += 1
            if isinstance(how, BaseException):
                raise how
            how.wait(30)
        fill(executor, masks, walks)

    monkeypatch.setattr(mask_worker, "_fill", held)
    return asked


class Panic(BaseException):
    """What the library's bindings raise where it panics is no Exception."""


@pytest.mark.parametrize("breaks", [False, True])
def test_who_takes_too_long_is_failed_alone(
    monkeypatch: pytest.MonkeyPatch, guides: list[Guide], breaks: bool
) -> None:
    expected, masks = due(guides), StepMasks(len(TOKEN_BYTES), LIMIT_S)
    hangs = threading.Event()
    asked = hold_up(monkeypatch, guides[1], Panic() if breaks else hangs)
    begun = time.monotonic()
    found = masks.of(guides, [[], [], []])
    assert time.monotonic() - begun < 60 * LIMIT_S
    assert asked == [2], "with everybody, and alone"
    assert [bool(guide.failure) for guide in guides] == [False, True, False]
    rows = [set(_tokens(row)) for row in found]
    assert rows == [expected[0], set(range(len(TOKEN_BYTES))), expected[2]]
    # They go on; who failed is not asked again.
    for count, guide in enumerate(guides):
        guide.push(encode(TEXT)[3 * count :][:1])
    assert len(masks.of(guides, [[], encode("ab"), []])) == 5
    assert asked == [2] and [bool(guide.failure) for guide in guides] == [False, True, False]
    hangs.set()
    masks.close()


def test_what_is_handed_to_a_thread_that_is_left_stays_its_own(
    monkeypatch: pytest.MonkeyPatch, guides: list[Guide]
) -> None:
    """It writes into its masks when nobody waits any more: they are nobody else's memory."""
    masks, hangs = StepMasks(len(TOKEN_BYTES), LIMIT_S), threading.Event()
    before = due(guides)
    hold_up(monkeypatch, guides[0], hangs)
    found = masks.of(guides, [[], [], []])
    told = found.copy()
    hangs.set()
    time.sleep(0.05)
    assert (found == told).all()
    assert [set(_tokens(row)) for row in found[1:]] == before[1:]
    masks.close()


def _tokens(row: MaskRows) -> list[int]:
    return [id for id in range(len(TOKEN_BYTES)) if row[id // 32] >> (id % 32) & 1]
