"""A pin is a prompt that is read and kept: bounded, refused where it is too much, and let go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.node import Room
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.pins import CUTS_SPARE, Pins
from sapwood.scheduler.events import Cleared, Finished, Pinned
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason
from tests.fakes import FULL_BYTES, SLIDING_BYTES
from tests.scheduler.fake_device import WINDOW, toy_facts
from tests.scheduler.house import House, Stream, failed, finished, prompt

LIMITS = Limits(slots_max=2, prefill_tokens_max=16, share_tokens_min=8)
SYSTEM = prompt(80, 5)
KEPT_BYTES = 80 * FULL_BYTES + (WINDOW + PIN_MARGIN_TOKENS) * SLIDING_BYTES


def pinned(stream: Stream) -> Pinned:
    assert isinstance(stream.end, Pinned), stream.end
    return stream.end


def asked(house: House, *tokens: int) -> Finished:
    stream = house.submit(tokens, 2)
    house.run()
    return finished(stream)


def test_a_pin_is_read_in_slices_beside_others_and_draws_nothing() -> None:
    house = House(limits=LIMITS)
    talks = house.submit(prompt(10), 30, ignore_eos=True)
    stream = house.pin(SYSTEM)
    house.run()
    assert [each.processed for each in stream.progress][-1] == 80 > stream.progress[0].processed
    pin = pinned(stream).pin
    assert (pin.tokens, pin.size, pin.expires_at) == (80, KEPT_BYTES, None)
    assert finished(talks) and not stream.tokens
    assert house.core.pins(house.now) == (pin,)
    house.close()


def test_it_counts_as_no_request() -> None:
    """Its tokens are computed, so those count."""
    house = House(limits=LIMITS)
    pinned_first = house.pin(SYSTEM)
    house.run()
    house.pin(SYSTEM)
    house.cancel(house.pin(prompt(30)))
    house.run()
    stats = house.core.stats()
    assert pinned(pinned_first)
    assert sum(stats.requests.values()) == sum(stats.rejected.values()) == 0
    assert stats.generated_tokens == stats.time_to_first_token.count == 0
    assert stats.request_queue.count == stats.request_duration.count == 0
    assert stats.prompt_tokens == 160
    assert stats.tree_pinned_bytes == KEPT_BYTES
    house.close()


def test_t13_it_survives_pressure_and_a_clearing() -> None:
    room = LIMITS.pins_share_max * 2 * (KEPT_BYTES + 10)
    house = House(limits=LIMITS, budget_bytes=house_budget(int(2 * room)))
    pinned_first = house.pin(SYSTEM)
    house.run()
    assert pinned(pinned_first)
    for seed in range(6, 12):
        house.submit(prompt(100, seed), 4)
        house.run()
    assert sum(house.core.stats().tree_evictions.values()) > 0
    house.clear()
    assert asked(house, *SYSTEM, 44).usage.cached_tokens == 80
    early = SYSTEM[: 80 - PIN_MARGIN_TOKENS]
    assert asked(house, *early, 45).usage.cached_tokens == len(early)
    house.close()


def house_budget(beside: int) -> int:
    facts = toy_facts()
    return facts.weights_bytes + facts.live_bytes(110) + 16 + 9 + beside


def test_it_ends_when_its_time_is_over_or_somebody_says_so() -> None:
    house = House(limits=LIMITS)
    short, long = house.pin(SYSTEM, 5.0), house.pin(prompt(40))
    house.run()
    expires_at = pinned(short).pin.expires_at
    assert expires_at is not None and expires_at <= house.now + 5.0
    house.now = expires_at - 0.001
    house.step()
    assert len(house.core.pins(house.now)) == 2
    house.now = expires_at
    assert [pin.name for pin in house.core.pins(house.now)] == [pinned(long).pin.name]
    house.step()
    assert house.core.stats().tree_pinned_bytes == pinned(long).pin.size
    assert not house.unpin(short)
    assert house.unpin(long)
    assert not house.unpin(long)
    assert house.core.stats().tree_pinned_bytes == 0
    house.close()


def test_pins_are_counted() -> None:
    house = House(limits=replace(LIMITS, pins_max=2, queued_max=10))
    first, second, third = (house.pin(prompt(10, seed)) for seed in range(3))
    house.run()
    assert pinned(first) and pinned(second)
    assert failed(third).reason is Reason.CLIENT_QUOTA, "those under way count"
    house.unpin(first)
    fourth = house.pin(prompt(10, 2))
    house.run()
    assert pinned(fourth)
    house.close()


def test_a_principals_own_bound_counts_its_pins_whole_and_those_under_way() -> None:
    house = House(limits=LIMITS)
    bound = 2 * KEPT_BYTES
    first = house.pin(SYSTEM, bytes_max=bound, principal="alice")
    house.run()
    second = house.pin(SYSTEM, bytes_max=bound, principal="alice")
    third = house.pin(SYSTEM, bytes_max=bound, principal="alice")
    other = house.pin(SYSTEM, bytes_max=bound, principal="bob")
    house.run()
    assert failed(third).reason is Reason.CLIENT_QUOTA, "the second was under way"
    assert [pin.principal for pin in house.core.pins(house.now)] == ["alice", "alice", "bob"]
    assert pinned(second) and pinned(other)
    assert house.unpin(first)
    last = house.pin(SYSTEM, bytes_max=bound, principal="alice")
    house.run()
    assert pinned(last)
    house.close()


def test_what_would_be_more_than_their_share_is_refused_at_once() -> None:
    facts = toy_facts()
    limits = replace(LIMITS, pins_share_max=0.25)
    house = House(limits=limits, budget_bytes=facts.weights_bytes + 4 * KEPT_BYTES)
    fits = house.pin(SYSTEM)
    house.run()
    assert pinned(fits)
    again = house.pin(SYSTEM)
    too_much = house.pin((*prompt(9, 3), *SYSTEM))
    house.run()
    assert failed(too_much).reason is Reason.OUT_OF_MEMORY
    assert failed(too_much).retry_after_s is None
    assert pinned(again), "it keeps nothing more"
    house.close()


def test_l5_who_was_let_in_still_fits_and_who_comes_is_measured_against_the_pins() -> None:
    facts, limits = toy_facts(), replace(LIMITS, pins_share_max=1.0)
    large = facts.live_bytes(200) + 16 + 9
    house = House(limits=limits, budget_bytes=facts.weights_bytes + large + KEPT_BYTES - 1)
    waits = house.submit(prompt(100), 100, ignore_eos=True)
    refused = house.pin(SYSTEM)
    house.run()
    assert failed(refused).reason is Reason.OUT_OF_MEMORY, "it would keep out who was let in"
    assert finished(waits)
    kept = house.pin(SYSTEM)
    house.run()
    assert pinned(kept)
    refused = house.submit(prompt(100), 100, ignore_eos=True)
    assert not house.core.has_work or house.deliver()
    assert failed(refused).reason is Reason.OUT_OF_MEMORY
    house.unpin(kept)
    fits = house.submit(prompt(100), 100, ignore_eos=True)
    house.run()
    assert finished(fits)
    house.close()


def test_a_pin_that_finds_no_room_while_it_is_read_fails_and_says_when_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, not when all of it is read."""
    house = House(limits=LIMITS)
    stream = house.pin(SYSTEM)
    house.step()
    monkeypatch.setattr(DeviceMemory, "promise", lambda *_, **__: False)
    house.run()
    assert failed(stream).reason is Reason.OUT_OF_MEMORY
    assert failed(stream).retry_after_s is not None
    assert stream.progress[-1].processed < 80
    monkeypatch.undo()
    again = house.pin(SYSTEM)
    house.run()
    assert pinned(again)
    house.close()


def test_cancelled_or_late_it_leaves_no_pin_and_no_claim() -> None:
    house = House(limits=replace(LIMITS, pins_max=1))
    house.cancel(house.pin(SYSTEM))
    late = house.pin(SYSTEM, deadline=house.now + 0.01)
    house.run()
    assert failed(late).reason is Reason.DEADLINE_EXCEEDED
    made = house.pin(SYSTEM)
    house.run()
    assert pinned(made)
    house.close()


def test_what_pins_keep_is_not_cut_beyond_their_bound() -> None:
    """M1: on a device with pages each cut takes some; what would cut too often is not stored."""
    facts = replace(toy_facts(), page_bytes=64, buffers_max=10**6, reuse_bytes=64)
    house = House(limits=LIMITS, facts=facts, budget_bytes=10**6)
    made = house.pin(SYSTEM)
    house.run()
    assert pinned(made)
    for end in range(79, 79 - 2 * CUTS_SPARE, -1):
        house.submit((*SYSTEM[:end], 47, 46, 45), 2)
        house.run()
    assert asked(house, *SYSTEM, 44).usage.cached_tokens == 80
    house.close()


def test_t14_a_clearing_leaves_what_runs_until_it_ends() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(30, 1), 2)
    house.run()
    talks = house.submit(prompt(30), 20, ignore_eos=True)
    for _ in range(5):
        house.step()
    before = house.tree.bytes
    told = house.clear()
    assert isinstance(told, Cleared)
    assert told.nodes > 0 and told.freed_bytes + told.held_bytes == before
    house.run()
    assert finished(talks)
    house.step()
    assert house.tree.nodes == 0
    house.close()


def test_a_clearing_of_a_prefix_reaches_who_is_still_reading_it() -> None:
    """T14: his prompt begins so, though less of it is stored."""
    house = House(limits=LIMITS)
    reads = house.submit(SYSTEM, 4)
    other = house.submit(prompt(40, 9), 4)
    house.step()
    house.step()
    assert reads.progress and reads.progress[-1].processed < 80
    assert house.clear(SYSTEM[:79]).nodes == 0
    house.run()
    assert finished(reads) and finished(other)
    house.step()
    assert house.tree.match(b"root", (*SYSTEM, 1)).matched == 0
    assert house.tree.match(b"root", (*prompt(40, 9), 1)).tokens > 30
    house.close()


def test_l8_a_pin_over_in_idle_time_is_over_for_the_next_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody need look while nothing happens: so a recording need not say that somebody did."""
    looked: list[float] = []
    right = Pins.expire

    def expire(pins: Pins, step: int, now: float) -> None:
        looked.append(now)
        right(pins, step, now)

    monkeypatch.setattr(Pins, "expire", expire)
    house = House(limits=LIMITS)
    house.pin(SYSTEM, 1.0)
    house.run()
    house.now += 2.0
    house.submit(prompt(10), 2)
    assert looked[-1] == house.now
    assert house.core.stats().tree_pinned_bytes == 0
    house.run()
    house.close()


def test_readers_are_those_who_read_it_where_it_lies() -> None:
    limits = replace(LIMITS, slots_max=3, referred_reads_min=8)
    house = House(limits=limits)
    house.pin(SYSTEM)
    house.run()
    assert house.core.readers() == {}
    for token in (41, 42, 43):
        house.submit((*SYSTEM, token), 20, ignore_eos=True)
    while not all(s.tokens for s in list(house.streams.values())[1:]):
        house.step()
    held = {n.id for n in house.tree.describe() if n.pinned}
    assert house.core.readers().keys() == held
    assert max(house.core.readers().values()) >= 2
    house.run()
    house.close()


def test_of_what_is_there_already_the_margin_is_computed_again() -> None:
    """It was slack, and went: from a turn within it a pin would have to do without the rest."""
    house = House(limits=LIMITS)
    asked(house, *SYSTEM[:70])
    house.core._memory._stored.make(Room(house.ledger.free + 1), len(house.plans))
    assert house.tree.match(b"root", SYSTEM).tokens == 70
    made = house.pin(SYSTEM)
    house.run()
    assert pinned(made)
    assert made.progress[0].cached < 80 - PIN_MARGIN_TOKENS
    early = SYSTEM[: 80 - PIN_MARGIN_TOKENS]
    assert asked(house, *early, 45).usage.cached_tokens == len(early)
    house.close()
