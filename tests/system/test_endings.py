"""R2: cancelled or timed out at any moment, a request is gone by the next step; its prefix stays.

Nobody else notices: every other stream is judged whole, and every byte is back at the end.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason, FinishReason
from sapwood.scheduler.reasons import Reason
from tests.model.reference import NAMES
from tests.quick import few_quick
from tests.system.pairs import oracle, pair, prompts
from tests.system.stack import Stack, Stream

LIMITS = Limits(slots_max=4, prefill_tokens_max=16)
FEW = 20  # victims, which meet all kinds of ends at all moments


def phase(stream: Stream) -> str:
    """How far it came before it ended."""
    if stream.tokens:
        return "decode"
    return "prefill" if stream.progress else "queue"


def end(stack: Stack, victim: Stream, random: Random) -> None:
    """Cancel at a random moment, or let the deadline pass at one."""
    if victim.request.deadline is None:
        for _ in range(random.randint(0, 10)):
            stack.step()
        stack.cancel(victim, random.choice((CancelReason.CANCELLED, CancelReason.SLOW_READER)))
        stack.step()
        return
    while victim.end is None:
        stack.step()


def stored(victim: Stream) -> int:
    """What a repeat of its prompt must find: all that was computed, but for one token."""
    if not victim.progress:
        return 0
    return min(victim.progress[-1].processed, len(victim.request.prompt) - 1)


@pytest.mark.parametrize(
    ("name", "victims"),
    few_quick([("e2b-tiny", FEW), ("e2b-tiny", 40), ("a4b-tiny", 40)], ("e2b-tiny", FEW)),
)
def test_r2_ended_at_any_moment_it_is_gone_and_leaves_its_prefix(name: str, victims: int) -> None:
    random, phases = Random(f"endings {name}"), Counter[tuple[str, Reason | FinishReason | None]]()
    stack = Stack(pair(name), LIMITS)
    for number in range(victims):
        while sum(stream.end is None for stream in stack.streams) < random.randint(2, 5):
            depth = random.choice((None, 0, 2, 8))
            stack.submit(random.choice(prompts(name)), random.randint(5, 40), depth=depth)
        deadline = random.choice((None, stack.now + random.uniform(0.01, 0.4)))
        prompt = [random.randrange(5, 900) for _ in range(random.randint(20, 60))]
        own = {"root": b"victim %d" % number}  # nobody else's prompts are found
        victim = stack.submit(prompt, 60, deadline=deadline, depth=number % 5 or None, **own)
        end(stack, victim, random)
        assert victim.end is not None
        roster = stack.core._roster
        here = {sequence.id for sequence in (*roster.live.values(), *roster.leaving)}
        assert victim.request.id not in here, "R2: it still has its slot after a step"
        phases[phase(victim), getattr(victim.end, "reason", None)] += 1
        repeat = stack.submit(prompt, 3, **own)
        while not repeat.progress:
            stack.step()
        assert repeat.cached == stored(victim), victim.end
    stack.run()
    stack.check(oracle(name))
    stack.close()
    reasons = {Reason.CANCELLED, Reason.DEADLINE_EXCEEDED, Reason.SLOW_READER}
    assert {reason for _, reason in phases} == reasons
    for moment in ("queue", "prefill", "decode"):
        assert len({r for m, r in phases if m == moment}) > 1, phases


@pytest.mark.parametrize("name", NAMES)
def test_r2_a_cancelled_reply_is_found_by_whoever_continues_it(name: str) -> None:
    stack, prompt = Stack(pair(name), LIMITS), prompts(name)[3]
    first = stack.submit(prompt, 60, depth=4)
    while len(first.tokens) < 20:
        stack.step()
    stack.cancel(first)
    stack.step()
    second = stack.generate((*prompt, *first.tokens, 9), 8)
    assert second.cached == len(prompt) + len(first.tokens) - 1, "the bonus is in no cache"
    stack.check(oracle(name))
    stack.close()
