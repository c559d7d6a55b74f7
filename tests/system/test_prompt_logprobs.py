"""Scores of prompts through real core and runner, against mlx-lm's own forward."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import DEMO, oracle, pair, prompts
from tests.system.stack import Stack, Stream

LIMITS = Limits(slots_max=6, prefill_tokens_max=48, scored_tokens_max=20)
NAMES = [DEMO, *(pytest.param(name, marks=pytest.mark.long) for name in ("e2b-tiny", "a4b-tiny"))]


def is_scored(name: str, stream: Stream, alternatives: int) -> None:
    prompt = stream.request.prompt
    logits = oracle(name).logits(prompt)[:-1].astype(np.float64)
    plain = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    plain -= logits.max(-1, keepdims=True)
    assert len(stream.prompt_logprobs) == len(prompt) - 1
    for row, token, told in zip(plain, prompt[1:], stream.prompt_logprobs, strict=True):
        assert abs(told.logprob - row[token]) < 1e-3
        best = [value for _, value in told.alternatives]
        assert len(best) == alternatives and best == sorted(best, reverse=True)
        assert all(abs(row[id] - value) < 1e-3 for id, value in told.alternatives)
        assert abs(best[0] - row.max()) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_models_own_whatever_else_is_in_a_step(name: str) -> None:
    """Beside rows that decode, prompts that are read and another that is scored; then from a tree
    that has all of it, which is not read."""
    stack, asked = Stack(pair(name), LIMITS), [tuple(p[:90]) for p in prompts(name)[:3]]
    beside = [stack.submit(asked[0], 30, depth=2), stack.submit(asked[1], 30)]
    stack.step()
    adjusted = Sampling(0.8, 20, repetition_penalty=1.3, logit_bias=((7, 4.0),), noise_key=3)
    scored = [
        stack.submit(asked[2], 4, prompt_logprobs=5, top_logprobs=2, depth=2),
        stack.submit(asked[0], 4, prompt_logprobs=1, sampling=adjusted),
        stack.submit(asked[2][:1], 2, prompt_logprobs=1),
    ]
    stack.run()
    again = stack.generate(asked[2], 4, prompt_logprobs=5)
    cached = stack.generate(asked[2], 4)
    for stream, alternatives in ((scored[0], 5), (scored[1], 1), (scored[2], 1), (again, 5)):
        is_scored(name, stream, alternatives)
        assert stream.finished.usage.cached_tokens == 0
    assert scored[0].tokens == again.tokens == cached.tokens
    assert cached.cached == len(asked[2]) - 1
    assert not any(stream.prompt_logprobs for stream in beside)
    stack.check(oracle(name))
    stack.close()
