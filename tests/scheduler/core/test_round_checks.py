"""Which rounds are computed once more, and when (S10)."""

from __future__ import annotations

from collections import Counter

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.replay import Replay, Replayed, ReplayVerdict
from tests.scheduler.house import House, prompt

EAGER = Limits(slots_max=4, prefill_tokens_max=32, check_share=1.0)


class Watched(House):
    """Remembers what was computed once more, and beside how many others."""

    def __init__(self, limits: Limits = EAGER, *, on: bool = True, **options: object) -> None:
        super().__init__(limits=limits, **options)  # type: ignore[arg-type]
        self.done: list[tuple[int, Replay]] = []
        if on:
            self.core.check_rounds()

    def replays(self, due: Replay) -> None:
        self.done.append((len(self.device.slots), due))

    @property
    def slots_kept(self) -> Counter[int]:
        return Counter(plan.kept_slot for plan in self.plans if plan.kept_slot is not None)


def test_a_replay_has_the_very_tokens_that_the_slot_had_evaluated() -> None:
    house = Watched()
    for seed in range(4):
        house.submit(prompt(20, seed), 60, ignore_eos=True)
    house.run()
    assert len(house.done) >= 5
    assert house.core.stats().self_check_rounds == len(house.done)
    assert not any(house.core.stats().self_check_mismatches.values()), "S10"
    assert any(replay.rows > 1 for _, replay in house.done), "no round with drafts"
    house.close()


def test_every_row_has_its_turn() -> None:
    house = Watched()
    for seed in range(4):
        house.submit(prompt(20, seed), 150, ignore_eos=True)
    house.run()
    assert sorted(house.slots_kept) == [0, 1, 2, 3]
    house.close()


def test_nothing_is_kept_unless_it_is_asked_for() -> None:
    house = Watched(on=False)
    house.submit(prompt(20), 60, ignore_eos=True)
    house.run()
    assert not house.done and not house.slots_kept
    house.close()


def test_one_that_goes_on_after_it_was_parked_is_whole_too() -> None:
    """The reply that was read again is in its tokens."""
    limits = Limits(slots_max=3, prefill_tokens_max=32, check_share=1.0, reply_tokens_guess=1)
    house = Watched(limits, budget_bytes=4500)
    for seed in range(3):
        house.submit(prompt(100, seed), 200, ignore_eos=True)
    house.run()
    assert house.core.stats().parks and house.done
    assert not any(house.core.stats().self_check_mismatches.values()), "S10"
    house.close()


def test_what_is_too_long_is_never_kept() -> None:
    house = Watched(Limits(prefill_tokens_max=32, check_share=1.0, check_tokens_max=30))
    house.submit(prompt(40), 60, ignore_eos=True)
    house.run()
    assert not house.slots_kept
    house.close()


def test_where_streams_would_wait_long_it_waits_until_nobody_is_served() -> None:
    limits = Limits(
        slots_max=4, prefill_tokens_max=32, check_share=1.0, check_s_max=1e-9, check_idle_s_max=9.0
    )
    house = Watched(limits)
    house.submit(prompt(300), 40, ignore_eos=True)
    house.run()
    assert [beside for beside, _ in house.done] == [0]
    house.close()


def test_it_is_made_in_free_room_or_not_at_all() -> None:
    house = Watched()
    house.submit(prompt(20), 60, ignore_eos=True)
    while not house.slots_kept:
        house.step()
    house.done.clear()
    house.run()
    (_, replay), *_ = house.done
    checks = house.core._checks
    checks._pending = replay
    assert checks.take(replay.start, served=False) is None
    assert checks.take(house.core.spare_bytes, served=False) is replay
    house.close()


def test_what_came_of_it_is_counted_by_kind() -> None:
    house = Watched()
    house.submit(prompt(20), 60, ignore_eos=True)
    house.run()
    (_, replay), *_ = house.done
    before = house.core.stats().self_check_rounds
    for verdict in (ReplayVerdict.NEAR_TIE, ReplayVerdict.FAULT, ReplayVerdict.SKIPPED):
        house.core.replayed(replay, Replayed(verdict, 1.0), 0.0)
    stats = house.core.stats()
    assert stats.self_check_rounds == before + 2
    assert stats.self_check_mismatches == {ReplayVerdict.NEAR_TIE: 1, ReplayVerdict.FAULT: 1}
    assert "tokens [" in replay.story and "prompt 20" in replay.story
    house.close()
