"""S1: greedy text at any depth, in any company, after any hit is the references' and mlx-lm's own.

Exact on the committed pairs and on the bundled one; the near-tie rule is in test_other_checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from tests.quick import few_quick
from tests.system.pairs import (
    ALL,
    DEMO,
    QUICK_A4B,
    QUICK_E2B,
    REPLY,
    mlx_lm_greedy,
    oracle,
    pair,
    prompts,
    replies,
)
from tests.system.stack import GREEDY, Stack, Stream

DEPTHS = (*range(9), None)
SMALL_SLICES = Limits(prefill_tokens_max=48)
LONG = 3  # a prompt beyond the window
# Whatever two sequences share is held by reference.
BY_REFERENCE = Limits(referred_reads_min=1, referred_edge_tokens_min=1)


@pytest.mark.parametrize("name", QUICK_A4B)
def test_the_references_are_what_mlx_lm_generates(name: str) -> None:
    for prompt, reply in list(zip(prompts(name), replies(name), strict=True))[:LONG]:
        assert mlx_lm_greedy(pair(name), prompt, 24) == reply[:24]
        assert not any(oracle(name).judge(prompt, reply, GREEDY).faults)


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK_A4B)
def test_alone_at_any_depth_and_without_a_drafter(name: str) -> None:
    expected, drafted = replies(name)[LONG], 0
    for drafter in (True, False):
        stack = Stack(pair(name, drafter), SMALL_SLICES)
        for depth in DEPTHS if drafter else (0, None):
            stream = stack.generate(prompts(name)[LONG], 40, depth=depth, cache_bypass=True)
            assert tuple(stream.tokens) == expected[:40], depth
            assert stream.cached == 0
            drafted += stream.finished.usage.accepted_tokens
        stack.close()
    assert drafted > 0, "nothing was accepted: the comparison would be empty"


@pytest.mark.parametrize("name", few_quick(ALL, "a4b-tiny", DEMO))
def test_in_company_at_any_depth_cold_or_hit(name: str) -> None:
    """Every prompt at every depth, 16 at a time with others that join, leave and are cut off."""
    random = Random(f"company {name}")
    stack = Stack(pair(name), replace(BY_REFERENCE, slots_max=16, prefill_tokens_max=64))
    todo = [(i, depth) for i in range(len(prompts(name))) for depth in DEPTHS]
    random.shuffle(todo)
    asked: list[tuple[int, Stream]] = []
    plans: list[StepPlan | None] = []
    while todo or stack.core.has_work:
        while todo and random.random() < 0.6:
            i, depth = todo.pop()
            bypass = random.random() < 0.3
            count = random.choice((REPLY // 4, REPLY // 2, REPLY))
            stream = stack.submit(prompts(name)[i], count, depth=depth, cache_bypass=bypass)
            asked.append((i, stream))
        if random.random() < 0.1:
            stack.submit([random.randrange(2, 900) for _ in range(random.randint(1, 70))], REPLY)
        running = [s for s in stack.streams if s.end is None and s not in [a for _, a in asked]]
        if running and random.random() < 0.2:
            stack.cancel(random.choice(running))
        plans.append(stack.step())
    planned = [plan for plan in plans if plan is not None]
    assert sum(bool(admit.base) for plan in planned for admit in plan.admits) > len(asked) // 8
    assert any(plan.repoints for plan in planned)
    for i, stream in asked:
        assert tuple(stream.tokens) == replies(name)[i][: stream.request.max_tokens], stream.request
    verdicts = stack.check(oracle(name))
    assert len(verdicts) > len(asked), "the company said nothing"
    assert not any(verdict.near_ties for verdict in verdicts)
    assert sum(stream.cached > 0 for _, stream in asked) > len(asked) // 4
    stack.close()


@pytest.mark.parametrize("name", QUICK_E2B)
def test_after_a_hit_at_any_offset(name: str) -> None:
    """Before, inside and beyond the window, in another's prompt and in another's reply."""
    prompt, reply = prompts(name)[LONG], replies(name)[LONG]
    window, story = pair(name).target_config.text.window, prompts(name)[LONG] + reply
    assert len(prompt) > window + 2
    last = len(prompt) - 1
    hits = [1, 7, window - 1, window, window + 1, last - 1, last]
    deep = [last + n for n in (1, 2, 9, 24)]  # within the reply of whoever asked before
    stack = Stack(pair(name), SMALL_SLICES)
    for offset in hits:  # a tenant each, so that everyone finds exactly one way that was gone
        elsewhere = (story[offset] + 1) % 900 + 2
        stack.submit((*prompt[:offset], elsewhere, 5, 9), 8, root=b"%d" % offset)
    for offset in deep:
        stack.submit(prompt, offset - last + 4, root=b"%d" % offset)
    stack.run()
    later: list[tuple[int, Stream]] = []
    for offset in hits + deep:
        end = max(offset + 1, len(prompt))
        stream = stack.submit(story[:end], len(story) - end, root=b"%d" % offset, depth=offset % 9)
        later.append((offset, stream))
    stack.run()
    for offset, stream in later:
        assert stream.cached == offset
        assert tuple(stream.tokens) == story[len(stream.request.prompt) :], offset
    stack.check(oracle(name))
    stack.close()
