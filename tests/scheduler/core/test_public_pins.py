"""What operators pin serves every tenant, and tells none of them anything of another (T8)."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.radix import pack
from sapwood.scheduler.core import pins
from sapwood.scheduler.events import Clear
from sapwood.scheduler.limits import Limits
from tests.scheduler.house import House, Stream, finished, prompt

LIMITS = Limits(slots_max=4, prefill_tokens_max=32, share_tokens_min=8)
OPS, ALICE, BOB = b"operator", b"alice", b"bob"
SYSTEM = prompt(120)


@pytest.fixture
def house() -> House:
    """With a system prompt that an operator has pinned."""
    made = House(limits=LIMITS)
    made.pin(SYSTEM, root=OPS, public=True)
    made.run()
    return made


def asked(house: House, root: bytes, tail: tuple[int, ...], **options: Any) -> Stream:
    stream = house.submit((*SYSTEM, *tail), root=root, **options)
    house.run()
    return stream


def cached(stream: Stream) -> int:
    return finished(stream).usage.cached_tokens


def test_whoever_begins_with_it_finds_it(house: House) -> None:
    """And says the same as who computes all of it."""
    first, second = asked(house, ALICE, (7, 8, 9)), asked(house, BOB, (3, 4))
    assert cached(first) == cached(second) == len(SYSTEM)
    alone = asked(House(limits=LIMITS), ALICE, (7, 8, 9))
    assert alone.tokens == first.tokens and cached(alone) == 0
    house.close()


def test_what_lies_behind_it_stays_its_tenant_s(house: House) -> None:
    """Not even of the operator who pinned it anything more is found."""
    tail = prompt(30, seed=4)
    asked(house, OPS, tail)
    asked(house, ALICE, tail)
    assert cached(asked(house, BOB, tail)) == len(SYSTEM)
    assert house.tree.match(b"carol", pack((*SYSTEM, *tail))).matched == 0
    house.close()


@pytest.mark.parametrize("others", [0, 5])
def test_nobody_s_use_of_it_shows(house: House, others: int) -> None:
    """The same for who comes after many as for who comes first, but for what is its own."""
    for number in range(others):
        asked(house, b"other %d" % number, prompt(20, seed=number))
    streams = [asked(house, BOB, prompt(20, seed=2)) for _ in range(2)]
    assert [cached(stream) for stream in streams] == [len(SYSTEM), len(SYSTEM) + 19]
    assert house.device.evaluated_tokens
    house.close()


def test_a_prompt_may_part_from_it_shortly_before_its_end(house: House) -> None:
    """Where it was cut into other tokens; further up nothing is found."""
    near, far = PIN_MARGIN_TOKENS, PIN_MARGIN_TOKENS + 1
    for tokens, root in ((near, ALICE), (far, BOB)):
        end = len(SYSTEM) - tokens
        stream = house.submit((*SYSTEM[:end], 9, 9, 9), root=root)
        house.run()
        assert cached(stream) == (end if tokens == near else 0)
    house.close()


def test_a_user_s_pin_serves_nobody_else() -> None:
    house = House(limits=LIMITS)
    house.pin(SYSTEM, root=ALICE)
    house.run()
    assert cached(asked(house, BOB, (7, 8))) == 0
    house.close()


def test_a_pin_that_is_given_up_serves_nobody_new(house: House) -> None:
    """Who has it keeps what is its own."""
    pin = next(stream for stream in house.streams.values() if stream.request.pin)
    asked(house, ALICE, (7, 8))
    assert house.unpin(pin)
    assert cached(asked(house, BOB, (7, 8))) == 0
    assert cached(asked(house, ALICE, (5, 5))) >= len(SYSTEM)
    house.close()


def test_what_is_cleared_comes_again_from_the_pin(house: House) -> None:
    asked(house, ALICE, (7, 8))
    house.handle(Clear(next(house.ids)))
    house.deliver()
    assert house.tree.match(ALICE, pack(SYSTEM)).matched == 0
    assert cached(asked(house, ALICE, (7, 8))) == len(SYSTEM)
    house.close()


def test_who_goes_past_the_tree_gets_none(house: House) -> None:
    assert cached(asked(house, ALICE, (7, 8), cache_bypass=True)) == 0
    house.close()


def test_of_two_the_longer_one_is_found(house: House) -> None:
    house.pin((*SYSTEM, *prompt(60, seed=6)), root=b"other operator", public=True)
    house.run()
    assert cached(asked(house, ALICE, (*prompt(60, seed=6), 5))) == len(SYSTEM) + 60
    house.close()


def test_where_memory_is_short_it_is_computed() -> None:
    """And nobody's pin, nor running request, gives way for a copy."""
    house = House(limits=LIMITS, budget_bytes=5200)
    pin = house.pin(SYSTEM[:40], root=OPS, public=True)
    house.run()
    streams = [
        house.submit((*SYSTEM[:40], *prompt(40, seed=n)), 30, root=b"%d" % n, ignore_eos=True)
        for n in range(6)
    ]
    house.run()
    assert all(len(stream.tokens) == 30 for stream in streams)
    assert house.unpin(pin)
    house.close()


def test_without_the_mark_of_an_operator_it_would_leak(
    monkeypatch: pytest.MonkeyPatch, house: House
) -> None:
    """The checks above are ones: were the pin's root looked at whole, this is what would show."""
    found = pins.Pins.public_prefix

    def further(self: pins.Pins, request: Any, tokens: Any) -> Any:
        public = found(self, request, tokens)
        if public is None:
            return None
        matched = house.tree.match(public.root, tokens).matched
        return public._replace(end=min(matched, len(tokens) - 1))

    tail = prompt(30, seed=4)
    asked(house, OPS, tail)
    monkeypatch.setattr(pins.Pins, "public_prefix", further)
    assert cached(asked(house, BOB, tail)) > len(SYSTEM)
    house.close()
