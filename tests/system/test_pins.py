"""A pinned prefix on real arrays: what is served from it says what a cold daemon says."""

from __future__ import annotations

import pytest

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.model.pair import model_facts
from sapwood.scheduler.events import Clear, Pinned, PinTerms, Unpin
from sapwood.scheduler.limits import Limits
from tests.system.pairs import oracle, pair
from tests.system.stack import Stack, Stream, budget_bytes

NAME = "e2b-tiny"
LIMITS = Limits(slots_max=4, prefill_tokens_max=32, prefill_slices_max=2)
SHARED = tuple((7 * i * i + 3 * i) % 800 + 20 for i in range(150))


def pinned(stack: Stack, tokens: tuple[int, ...]) -> Stream:
    stream = stack.generate(tokens, 1, pin=PinTerms("system"))
    assert isinstance(stream.end, Pinned), stream.end
    return stream


def others(stack: Stack) -> None:
    """Prompts that share nothing with it, until room is short."""
    for seed in range(12):
        stack.generate([(seed + 13 * i) % 800 + 20 for i in range(120)], 6)


def test_t13_what_is_served_from_a_pin_is_what_is_computed_cold() -> None:
    """Through evictions and a clearing, from its end and from before it, drafted or not."""
    room = budget_bytes(pair(NAME), LIMITS, slots=2, tokens_max=256, snapshot_tokens=500)
    stack = Stack(pair(NAME), LIMITS, room)
    pin = pinned(stack, SHARED)
    others(stack)
    evictions = stack.core.stats().tree_evictions
    assert evictions["evicted"] + evictions["thinned"] > 0
    stack.core.handle(Clear(9001), stack.now)
    stack.core.take_effects()
    parts = [(150, 3), (149, 0), (150 - PIN_MARGIN_TOKENS, 3)]
    served = [stack.generate((*SHARED[:end], 11, 12), 16, depth=depth) for end, depth in parts]
    assert [stream.cached for stream in served] == [end for end, _ in parts]
    stack.check(oracle(NAME))
    kept, facts = stack.tree.pinned, model_facts(pair(NAME), LIMITS.draft_depth_max)
    window = min(150, facts.window_tokens + PIN_MARGIN_TOKENS)
    assert kept.bytes == facts.stored_bytes(150, window)
    stack.core.handle(Unpin(9002, pin.request.pin.name if pin.request.pin else ""), stack.now)
    stack.core.take_effects()
    stack.close()


def test_company_behind_a_pin_reads_it_where_it_lies() -> None:
    limits = Limits(slots_max=4, prefill_tokens_max=64, referred_reads_min=64)
    stack = Stack(pair(NAME), limits)
    pinned(stack, SHARED)
    streams = [stack.submit((*SHARED, 11 + n), 12) for n in range(3)]
    while not all(stream.tokens for stream in streams):
        stack.step()
    assert max(stack.core.readers().values()) >= 2
    stack.run()
    assert [stream.cached for stream in streams] == [150, 150, 150]
    stack.check(oracle(NAME))
    stack.core.handle(Unpin(9001, "system"), stack.now)
    stack.core.take_effects()
    stack.close()


@pytest.mark.parametrize("depth", [0, 3])
def test_t14_what_is_cleared_is_computed_again_and_says_the_same(depth: int) -> None:
    stack = Stack(pair(NAME), LIMITS)
    first = stack.generate((*SHARED, 11), 12, depth=depth)
    stack.core.handle(Clear(9001, SHARED), stack.now)
    stack.core.take_effects()
    again = stack.generate((*SHARED, 11), 12, depth=depth)
    assert (first.cached, again.cached) == (0, 0)
    assert first.tokens == again.tokens
    stack.check(oracle(NAME))
    stack.close()


@pytest.mark.long
def test_what_an_operator_pins_is_served_to_another_tenant_bit_for_bit() -> None:
    """By a copy under its own root, also where what was copied is evicted and copied again."""
    room = budget_bytes(pair(NAME), LIMITS, slots=2, tokens_max=256, snapshot_tokens=700)
    stack = Stack(pair(NAME), LIMITS, room)
    stack.generate(SHARED, 1, pin=PinTerms("system", public=True))
    for ends in ((150, 3), (150 - PIN_MARGIN_TOKENS, 0)):
        end, depth = ends
        stream = stack.generate((*SHARED[:end], 11, 12), 16, depth=depth, root=b"tenant %d" % end)
        assert stream.cached == end
        others(stack)
    again = stack.generate((*SHARED, 9, 9, 9), 12, root=b"tenant 150")
    assert again.cached >= 150
    stack.check(oracle(NAME))
    stack.core.handle(Unpin(9002, "system"), stack.now)
    stack.core.take_effects()
    stack.close()
