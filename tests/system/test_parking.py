"""Sequences that are parked for want of memory go on as if nothing had been, on real arrays.

Rows are so short that replies outgrow them. The budget holds three requests as they come, and what
one of them may grow to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sapwood.model.pair import Pair, model_facts
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.system.device_bytes import exact_buffers
from tests.system.pairs import ALL, oracle, pair, prompts
from tests.system.stack import GREEDY, Stack

ROW_TOKENS, PROMPT, REPLY = 16, 20, 44
LIMITS = Limits(slots_max=6, prefill_tokens_max=40, reply_tokens_guess=1, draft_depth_max=8)
SEEDED = Sampling(0.9, 40, 0.9, seeded=True, noise_key=11)
PENALISED = Sampling(repetition_penalty=1.3, presence_penalty=0.5, logit_bias=((9, 2.0),))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that rows decide, and not what is kept for each buffer."""
    with exact_buffers(monkeypatch):
        yield


def budget_bytes(loaded: Pair, sampling: Sampling, snapshot_tokens: int) -> int:
    """Three slots of what a prompt and its first round take; alone each could grow to the end."""
    facts = replace(model_facts(loaded, LIMITS.draft_depth_max), row_tokens_min=ROW_TOKENS)
    slots = slots_bytes(facts, LIMITS, [Demand(32, facts.draw_bytes_per_row(sampling))] * 3)
    stored = snapshot_tokens * (facts.full_bytes_per_token + facts.sliding_bytes_per_token)
    return facts.weights_bytes + slots + stored


def serve(stack: Stack, name: str, **options: Any) -> list[list[int]]:
    """Five prompts at once that have nothing in common."""
    known = [token for prompt in prompts(name) for token in prompt]
    asked = [known[n * PROMPT : (n + 1) * PROMPT] for n in range(5)]
    streams = [stack.submit(prompt, REPLY, **options) for prompt in asked]
    stack.run()
    assert all(stream.finished for stream in streams)
    return [stream.tokens for stream in streams]


def tight(
    name: str, snapshot_tokens: int, sampling: Sampling = GREEDY, drafter: bool = True
) -> Stack:
    loaded = pair(name, drafter)
    budget = budget_bytes(loaded, sampling, snapshot_tokens)
    return Stack(loaded, LIMITS, budget, row_tokens_min=ROW_TOKENS)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"sampling": SEEDED},
    "penalised": {"sampling": PENALISED, "depth": 3},
    "logprobs": {"top_logprobs": 3},
}
CASES = [
    ("e2b-tiny", "greedy", 0), ("a4b-tiny", "penalised", 60),
    *(pytest.param(*case, marks=pytest.mark.long) for case in (
        ("e2b-tiny", "penalised", 60), ("e2b-tiny", "logprobs", 0), ("e2b-tiny", "seeded", 60),
        ("a4b-tiny", "greedy", 0), ("a4b-tiny", "seeded", 60), ("a4b-tiny", "logprobs", 0),
        *((name, "greedy", 60) for name in ALL),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "snapshot_tokens"), CASES)
def test_who_is_parked_says_what_it_would_have_said(
    name: str, kind: str, snapshot_tokens: int
) -> None:
    options = OPTIONS[kind]
    roomy = Stack(pair(name), LIMITS)
    stack = tight(name, snapshot_tokens, options.get("sampling", GREEDY))
    undisturbed = serve(roomy, name, **options)
    assert serve(stack, name, **options) == undisturbed
    assert stack.core.stats().parks and not roomy.core.stats().parks
    assert len(stack.check(oracle(name))) == len(undisturbed)
    for one, other in zip(stack.streams, roomy.streams, strict=True):
        assert one.text == other.text
        for told, due in zip(one.logprobs, other.logprobs, strict=True):
            assert told.logprob == pytest.approx(due.logprob, abs=1e-3)
    stack.close()
    roomy.close()


@pytest.mark.long
def test_who_is_parked_without_a_drafter() -> None:
    stack = tight("e2b-tiny", 0, drafter=False)
    serve(stack, "e2b-tiny")
    assert stack.core.stats().parks
    stack.check(oracle("e2b-tiny"))
    stack.close()
