"""S9: with strict numerics a request's tokens and log-probabilities are the same bits however it is
served: alone or in company, at any depth, cold, behind a hit or by reference, in other slices, and
after it was parked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest

from sapwood.model.pair import Pair, load_pair, model_facts
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import PROMPTS, checkpoint, golden
from tests.quick import few_quick
from tests.system.device_bytes import exact_buffers
from tests.system.stack import GREEDY, Stack, Stream

FAMILIES = ("e2b-tiny", "a4b-tiny", "e4b-tiny", "12b-tiny", "31b-tiny")
TILE = 64
SAMPLINGS = (
    GREEDY,
    Sampling(0.9, 40, seeded=True, noise_key=7),
    Sampling(1.1, top_p=0.95, seeded=True, noise_key=8, repetition_penalty=1.1),
)
Told = tuple[tuple[int, ...], tuple[Any, ...]]


@cache
def pair(name: str) -> Pair:
    return load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32", strict=True)


@cache
def story(name: str) -> tuple[int, ...]:
    return tuple(int(t) for i in PROMPTS for t in golden(name)[f"p{i}_ids"])


def told(stream: Stream) -> Told:
    assert stream.tokens and stream.finished
    return tuple(stream.tokens), tuple((p.logprob, p.alternatives) for p in stream.logprobs)


def alone(name: str, asked: Sequence[tuple[Sequence[int], Sampling]], count: int) -> list[Told]:
    """Each by itself, cold, without a drafter."""
    stack = Stack(replace(pair(name), assistant=None), row_tokens_min=3 * TILE)
    replies = [
        told(stack.generate(p, count, sampling=s, top_logprobs=2, cache_bypass=True))
        for p, s in asked
    ]
    assert not stack.core.stats().parks
    stack.close()
    return replies


@pytest.mark.parametrize("name", few_quick(FAMILIES, "a4b-tiny"))
def test_the_same_bits_in_company_at_any_depth_behind_any_hit(name: str) -> None:
    """S9."""
    random = Random(name)
    # Beyond a tile and the window, around a tile's end, and short.
    prompts = [story(name)[:150], story(name)[:129], story(name)[:63], story(name)[70:81]]
    asked = [(prompt, sampling) for prompt in prompts for sampling in SAMPLINGS]
    due = alone(name, asked, 10)
    limits = Limits(
        slots_max=8, prefill_tokens_max=48, referred_reads_min=1, referred_edge_tokens_min=1
    )
    stack = Stack(pair(name), limits, row_tokens_min=3 * TILE)
    plans: list[StepPlan | None] = []
    for depths in ((0, 2), (1, 3, 8, None)):
        order = random.sample(range(len(asked)), len(asked))
        streams = {}
        for i in order:
            prompt, sampling = asked[i]
            options = {"sampling": sampling, "depth": random.choice(depths)}
            streams[i] = stack.submit(prompt, 10, top_logprobs=2, **options)
            while random.random() < 0.5:
                plans.append(stack.step())
        while stack.core.has_work:
            plans.append(stack.step())
        assert [told(streams[i]) for i in range(len(asked))] == due
    admits = [admit for plan in plans if plan is not None for admit in plan.admits]
    assert any(admit.base for admit in admits), "nothing was held by reference"
    assert all(admit.base % TILE == 0 for admit in admits)
    usages = [stream.finished.usage for stream in stack.streams]
    assert sum(u.accepted_tokens for u in usages) > 0 and sum(u.cached_tokens for u in usages) > 0
    stack.close()


@pytest.mark.long
@pytest.mark.parametrize("name", few_quick(FAMILIES, "e2b-tiny"))
def test_the_same_bits_after_parking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 2 * story(name)  # of some it is shorter than what is asked
    asked = [(text[i * 30 : i * 30 + 40], SAMPLINGS[i % 3]) for i in range(5)]
    due = alone(name, asked, 50)
    limits = Limits(slots_max=6, prefill_tokens_max=40, reply_tokens_guess=1, draft_depth_max=8)
    with exact_buffers(monkeypatch):
        facts = replace(model_facts(pair(name), limits.draft_depth_max), row_tokens_min=TILE)
        wide = facts.draw_bytes_per_row(SAMPLINGS[2])
        room = slots_bytes(facts, limits, [Demand(TILE, wide)] * 3)
        stack = Stack(pair(name), limits, facts.weights_bytes + room, row_tokens_min=TILE)
        streams = [stack.submit(p, 50, sampling=s, top_logprobs=2) for p, s in asked]
        stack.run()
    assert stack.core.stats().parks
    assert [told(stream) for stream in streams] == due
    stack.close()
