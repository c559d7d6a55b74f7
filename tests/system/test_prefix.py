"""One prefix is computed once: while it is computed, while it is used, and after a cancel."""

from __future__ import annotations

import pytest

from sapwood.scheduler.limits import Limits
from tests.model.reference import NAMES
from tests.system.pairs import oracle, pair
from tests.system.stack import Stack, Stream

LIMITS = Limits(slots_max=8, prefill_tokens_max=32, prefill_slices_max=2)
SHARED = tuple((7 * i * i + 3 * i) % 800 + 20 for i in range(150))


def pair_of_cold(stack: Stack) -> tuple[Stream, Stream]:
    """Two requests with one long prefix, submitted before anything is computed."""
    first = stack.submit((*SHARED, 11, 12, 13), 12, depth=3)
    second = stack.submit((*SHARED, 14, 15), 12, depth=1)
    return first, second


@pytest.mark.parametrize("name", NAMES)
def test_the_second_of_two_cold_requests_computes_only_what_is_its_own(name: str) -> None:
    stack = Stack(pair(name), LIMITS)
    first, second = pair_of_cold(stack)
    stack.run()
    assert (first.cached, second.cached) == (0, len(SHARED))
    stack.check(oracle(name))
    stack.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_second_takes_over_where_the_first_was_cancelled(name: str) -> None:
    stack = Stack(pair(name), LIMITS)
    first, second = pair_of_cold(stack)
    stack.step()
    stack.step()
    assert not second.progress, "it waits for the first"
    done = first.progress[-1].processed if first.progress else 0
    stack.cancel(first)
    stack.run()
    assert 0 < done <= second.cached < len(SHARED), "what the first computed is kept"
    stack.check(oracle(name))
    assert len(second.tokens) == 12
    stack.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_is_matchable_while_its_first_user_decodes(name: str) -> None:
    stack = Stack(pair(name), LIMITS)
    first = stack.submit((*SHARED, 11), 30)
    while len(first.tokens) < 5:
        stack.step()
    second = stack.submit((*SHARED, 12), 8)
    while not second.end:
        assert first.end is None
        stack.step()
    stack.run()
    assert second.cached == len(SHARED)
    stack.check(oracle(name))
    stack.close()
