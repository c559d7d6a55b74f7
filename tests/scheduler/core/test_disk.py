"""What the core makes of a disk: prefixes that outlive it, and nobody who waits in vain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.core.page_ins import PROBE_EVERY, ReadCost
from sapwood.scheduler.disk import DiskStats
from sapwood.scheduler.events import Clear
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason
from tests.fakes import Tracker
from tests.scheduler.disk_house import BLOCK, WRITING, DiskHouse, FakeDisk, reopened
from tests.scheduler.house import failed, finished, prompt

LIMITS = Limits(slots_max=4, prefill_tokens_max=32, share_tokens_min=8)
LONG = 61


def stats(house: DiskHouse) -> DiskStats:
    return house.core.stats().disk


def restarted(house: DiskHouse, **options: object) -> DiskHouse:
    """The next process on the same folder."""
    catalogue = house.core._memory.disk._catalogue  # type: ignore[attr-defined]
    disk = house.disk.left()
    return DiskHouse(disk, limits=LIMITS, folder=reopened(disk, catalogue), **options)


@pytest.fixture
def written() -> DiskHouse:
    """One that has answered a long prompt, and written it down."""
    house = DiskHouse(limits=LIMITS)
    house.submit(prompt(LONG))
    house.run()
    return house


def test_a_prefix_outlives_the_process(written: DiskHouse) -> None:
    first = finished(written.streams[1])
    house = restarted(written)
    again = house.submit(prompt(LONG))
    house.run()
    cached = LONG // BLOCK * BLOCK
    assert finished(again).usage.cached_tokens == cached
    assert again.tokens == written.streams[1].tokens
    assert first.usage.cached_tokens == 0
    assert house.device.evaluated_tokens == written.device.evaluated_tokens - cached
    assert stats(house).read_bytes > 0
    house.close()


def test_what_is_written_is_full_and_of_windows_sliding(written: DiskHouse) -> None:
    """Up to the reply's end: the window before it, and the window before the prompt's end."""
    kinds = {"full": 0, "sliding": 0}
    for _, kind in written.disk.files:
        kinds[kind] += 1
    reply = len(written.streams[1].tokens)
    assert kinds["full"] == (LONG + reply - 1) // BLOCK
    assert 0 < kinds["sliding"] <= 3 < kinds["full"]
    assert stats(written).written_bytes == sum(stats(written).bytes.values()) > 0
    written.submit(prompt(LONG))
    operations = written.disk.operations
    written.run()
    assert written.disk.operations == operations, "what is there is not written again"
    written.close()


def test_each_node_says_what_of_it_is_on_disk(written: DiskHouse) -> None:
    """Wherever the tree cut its edges: together all that is there."""
    written.submit((*prompt(LONG)[:37], 9, 9))
    written.run()
    by_node = written.core.on_disk()
    assert by_node.keys() == {n.id for n in written.tree.describe() if n.parent is not None}
    assert len(by_node) > 2
    for kind, size in stats(written).bytes.items():
        assert sum(sizes[kind] for sizes in by_node.values()) == size > 0
    written.close()


def test_of_so_many_tokens_it_is_asked_and_no_more(written: DiskHouse) -> None:
    """What is told is what would be told of all."""
    for seed in range(2, 6):
        written.submit(prompt(40, seed=seed))
    written.run()
    everything = written.core.on_disk()
    some = written.core.on_disk(40)
    assert 0 < len(some) < len(everything)
    assert all(everything[id] == sizes for id, sizes in some.items())
    assert written.core.on_disk(0) == {}
    written.close()


def test_another_root_finds_nothing(written: DiskHouse) -> None:
    """R9."""
    house = restarted(written)
    other = house.submit(prompt(LONG), root=b"tenant")
    house.run()
    assert finished(other).usage.cached_tokens == 0
    assert stats(house).read_bytes == 0
    house.close()


def test_others_go_on_while_one_waits(written: DiskHouse) -> None:
    house = restarted(written)
    waiting = house.submit(prompt(LONG))
    other = house.submit(prompt(20, seed=5))
    while other.end is None:
        assert house.step_alone() is not None
    assert not waiting.progress, "nobody told the core that it is there"
    house.run()
    assert finished(waiting).usage.cached_tokens
    house.close()


def test_a_plan_of_nothing_is_none_while_all_wait(written: DiskHouse) -> None:
    house = restarted(written)
    house.submit(prompt(LONG))
    assert house.core.has_work
    assert house.core.plan(house.now) is None
    assert not house.core.has_work and not house.core.finished, "it waits for a report"
    house.run()
    house.close()


def test_nobody_waits_longer_than_the_bound(written: DiskHouse) -> None:
    house = restarted(written)
    slow = house.submit(prompt(LONG))
    assert house.core.plan(house.now) is None
    house.now += LIMITS.page_in_s_max
    while slow.end is None:
        assert house.step_alone() is not None, "it is read, and nobody waits for it"
    assert finished(slow).usage.cached_tokens == 0
    house.run()
    assert not house.core._memory.disk.is_reading
    house.close()


def test_of_two_with_one_prefix_one_is_read(written: DiskHouse) -> None:
    house = restarted(written)
    two = [house.submit(prompt(LONG)), house.submit((*prompt(LONG), 9, 9))]
    house.run()
    assert all(finished(stream).usage.cached_tokens >= LONG // BLOCK * BLOCK for stream in two)
    assert stats(house).read_bytes <= sum(stats(house).bytes.values())
    house.close()


@pytest.mark.parametrize("number", range(4))
def test_what_is_damaged_is_computed(written: DiskHouse, number: int) -> None:
    """T15: whichever of the reads fails, with what came before it in the tree or not."""
    house = restarted(
        written,
    )
    house.limits = LIMITS
    house.disk.fails_at = lambda at: at == number
    again = house.submit(prompt(LONG))
    house.run()
    assert again.tokens == written.streams[1].tokens
    assert finished(again).usage.cached_tokens % BLOCK == 0
    house.close()


def test_a_disk_that_is_not_verified_gives_wrong_text(
    written: DiskHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above is one: were damage handed on, this is where it would show."""
    house = restarted(written)
    house.disk.fails_at = lambda at: True
    monkeypatch.setattr(FakeDisk, "verifies", False)
    house.submit(prompt(LONG))
    with pytest.raises(AssertionError):
        house.run()


def test_who_leaves_while_it_is_read_takes_everything_along(written: DiskHouse) -> None:
    """R2, M3."""
    house = restarted(written)
    gone = house.submit(prompt(LONG))
    house.core.plan(house.now)
    house.pass_on()
    house.cancel(gone)
    house.deliver()
    assert failed(gone).reason is Reason.CANCELLED
    assert not house.core._memory.disk.is_reading
    house.run()
    assert house.tree.bytes == 0
    house.close()


@pytest.mark.parametrize("stage", range(len(WRITING)))
def test_a_disk_that_fails_is_left_alone(stage: int) -> None:
    """At the third block: as it is written, renamed, told of in the journal."""
    house = DiskHouse(limits=LIMITS)
    house.disk.fails_at = lambda at: at == 2 * len(WRITING) + stage
    house.submit(prompt(LONG))
    house.run()
    assert stats(house).state == "degraded"
    assert house.disk.broke == {WRITING[stage]: 1}
    assert len(house.disk.files) == 2
    again = house.submit((*prompt(LONG), 9))
    house.run()
    assert finished(again).usage.cached_tokens == LONG
    assert house.disk.operations == 2 * len(WRITING) + stage + 1
    house.clear(prompt(LONG))
    assert not house.disk.files and not house.disk.lost
    house.close()


def test_memory_that_others_need_is_not_held_for_what_is_read(written: DiskHouse) -> None:
    """L5: whoever was let in is served, with what was being read or without."""
    large = replace(written.streams[1].request, prompt=prompt(4 * LONG, seed=3))
    wanted = slots_bytes(written.facts, LIMITS, [Demand.of(large, written.facts)])
    read = LONG * written.facts.full_bytes_per_token
    house = restarted(written, budget_bytes=written.facts.weights_bytes + wanted + read)
    small = house.submit(prompt(LONG))
    assert house.core.plan(house.now) is None and house.core._memory.disk.is_reading
    other = house.submit(large.prompt)
    assert house.step_alone() is not None, "it comes at once"
    assert not house.core._memory.disk.is_reading
    house.run()
    assert finished(small) and finished(other)
    house.close()


def test_what_is_cleared_is_gone_from_disk_before_it_is_told(written: DiskHouse) -> None:
    """T14."""
    assert written.disk.files
    written.disk.files[b"not known", "full"] = ()
    written.handle(Clear(99))
    written.pass_on()
    assert written.core.take_effects() == (), "told before it is so"
    written.run()
    assert len(written.answers) == 1
    assert not written.disk.files and not any(stats(written).bytes.values())
    written.close()


def test_what_is_evicted_takes_its_files_and_others_stay(written: DiskHouse) -> None:
    other = written.submit(prompt(LONG, seed=7))
    written.run()
    kept = len(written.disk.files)
    written.clear(prompt(2 * BLOCK))
    assert 0 < len(written.disk.files) < kept
    house = restarted(written)
    mine, theirs = house.submit(prompt(LONG)), house.submit(prompt(LONG, seed=7))
    house.run()
    assert finished(mine).usage.cached_tokens == 0
    assert finished(theirs).usage.cached_tokens
    assert theirs.tokens == other.tokens
    house.close()


def test_files_that_cannot_be_removed_are_told_of(written: DiskHouse) -> None:
    written.disk.fails_at, written.disk.erases_fail = lambda at: True, True
    stream = written.submit(prompt(4))
    written.run()
    written.handle(Clear(99))
    written.pass_on()
    for report in written.disk.turn():
        written.core.handle(report, written.now)
    [told] = written.core.take_effects()
    assert told.reason is Reason.UNSUPPORTED  # type: ignore[union-attr]
    assert stream.end is not None


def test_what_was_cleared_while_it_ran_is_not_written() -> None:
    house = DiskHouse(limits=LIMITS)
    house.submit(prompt(LONG))
    for _ in range(3):
        house.step_alone()
    house.clear()
    house.run()
    assert not house.disk.files
    house.close()


def test_reading_has_to_pay() -> None:
    cost = ReadCost()
    assert cost.pays(1000, 0.0) and cost.pays(1000, 1e-9), "nothing is known yet"
    cost.observe(1000, 1.0)
    assert cost.pays(1000, 2.0)
    assert [cost.pays(1000, 0.5) for _ in range(PROBE_EVERY)] == [False] * (PROBE_EVERY - 1) + [
        True
    ]


def test_a_slow_disk_is_not_asked(written: DiskHouse) -> None:
    house = restarted(written)
    ins = house.core._memory.disk._ins  # type: ignore[attr-defined]
    ins.cost.observe(1, 1.0)
    house.submit(prompt(40, seed=9))
    house.run()  # what computing takes is known now
    again = house.submit(prompt(LONG))
    house.run()
    assert finished(again).usage.cached_tokens == 0
    assert stats(house).read_bytes == 0
    house.close()


def test_a_fake_keeps_what_it_was_given() -> None:
    disk = FakeDisk(Tracker())
    assert not disk.busy and disk.turn() == []
