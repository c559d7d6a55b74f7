"""What a constraint forces is drafted without being asked for, as far as a round may have it."""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.scheduler.plan import DecodeRow
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, prompt

REPLY = 150


class Watched:
    """A house whose device says what is forced, and what its rounds made of that."""

    def __init__(self, *, has_drafter: bool = True) -> None:
        self.house = House(facts=toy_facts(has_drafter=has_drafter))
        self.rounds: list[tuple[DecodeRow, int]] = []  # with what was told to be forced

    def run(self, depths: Sequence[int | None], constraint: object) -> list[Stream]:
        streams = [
            self.house.submit(
                prompt(12, n), REPLY, depth=depth, constraint=constraint, ignore_eos=True
            )
            for n, depth in enumerate(depths)
        ]
        while self.house.core.has_work:
            told = {number: slot.forced for number, slot in self.house.device.slots.items()}
            plan = self.house.step()
            self.rounds += [(row, told[row.slot]) for row in plan.decodes] if plan else []
        return streams


def left(row: DecodeRow) -> int:
    """Drafts that may still be emitted."""
    return REPLY - row.index - 1


def test_a_round_has_all_that_is_forced_and_what_it_may_have() -> None:
    watched = Watched()
    watched.run([None] * 3, "held")
    for row, told in watched.rounds:
        assert row.forced == min(told, left(row)) <= row.depth
        assert row.iterations == (row.depth if row.depth > row.forced else 0)
    assert {row.iterations > 0 for row, _ in watched.rounds if row.forced} == {True, False}


def test_a_pinned_depth_stays_what_was_asked_for() -> None:
    """draft_tokens = 0 is no draft, whoever would draw it."""
    watched = Watched()
    pinned = (0, 3, 8)
    watched.run(pinned, "held")
    for row, told in watched.rounds:
        assert row.depth == min(pinned[row.slot], left(row))
        assert row.forced == min(told, row.depth)
    assert any(row.forced for row, _ in watched.rounds)


def test_nobody_says_anything_else_and_nobody_beside_it() -> None:
    free, held = Watched(), Watched()
    replies = [watched.run([None, 2, 0], of) for watched, of in ((free, None), (held, "held"))]
    assert [s.tokens for s in replies[0]] == [s.tokens for s in replies[1]]
    assert not any(row.forced for row, _ in free.rounds)


def test_without_a_drafter_nothing_is_drafted() -> None:
    watched = Watched(has_drafter=False)
    watched.run([None], "held")
    assert watched.rounds and not any(row.depth for row, _ in watched.rounds)
