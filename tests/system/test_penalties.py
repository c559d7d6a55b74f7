"""Greedy replies with bias and penalties are those of a plain loop, one token at a time.

The loop knows neither cache nor draft: mlx-lm's own forward over all tokens so far, penalties in
NumPy over all tokens so far, the maximum. Seeded: test_seeded; distributions: test_distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.model.sampling.markov import adjusted_logits
from tests.system.pairs import ALL, oracle, pair, prompts
from tests.system.stack import GREEDY, Stack

REPLY = 20
# These models seldom repeat themselves; a few tokens that they are made to like do the rest.
LIKED = tuple((id, 12.0) for id in range(300, 306))
SAMPLERS = (
    Sampling(repetition_penalty=1.3, logit_bias=LIKED),
    Sampling(presence_penalty=1.5, frequency_penalty=0.5, logit_bias=LIKED),
    Sampling(presence_penalty=-1.0, frequency_penalty=1.5, logit_bias=(*LIKED, (11, -100.0))),
    Sampling(repetition_penalty=0.4, presence_penalty=2.0),
)


def plain_greedy(name: str, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    reply: list[int] = []
    while len(reply) < REPLY:
        newest = oracle(name).logits([*prompt, *reply])[-1]
        reply.append(int(adjusted_logits(newest, sampling, prompt, reply).argmax()))
    return reply


@pytest.mark.parametrize("name", ALL)
def test_greedy_with_penalties_is_the_plain_loop_at_any_depth_cold_or_hit(name: str) -> None:
    """All together beside rows without penalties; then again, their prompts restored."""
    asked = [(prompts(name)[i], s) for i, s in zip((3, 0, 1, 3), SAMPLERS, strict=True)]
    expected = [plain_greedy(name, prompt, sampling) for prompt, sampling in asked]
    biased = [replace(GREEDY, logit_bias=sampling.logit_bias) for _, sampling in asked]
    for (prompt, _), sampling, reply in zip(asked, biased, expected, strict=True):
        assert reply != plain_greedy(name, prompt, sampling), "its penalties change nothing"
    stack = Stack(pair(name), Limits(slots_max=8, prefill_tokens_max=40))
    for depths in ((0, 1, 3, 8), (4, None, 2, 1)):
        streams = [
            stack.submit(prompt, REPLY, sampling=sampling, depth=depth)
            for (prompt, sampling), depth in zip(asked, depths, strict=True)
        ]
        others = [stack.submit(prompts(name)[i], REPLY, depth=3) for i in (0, 3)]
        stack.run()
        assert [stream.tokens for stream in streams] == expected
        assert all(stream.request.sampling == GREEDY for stream in others)
    assert all(stream.cached for stream in streams), "the second time the prompts were restored"
    assert sum(s.finished.usage.accepted_tokens for s in stack.streams if s in streams) > 0
    stack.check(oracle(name))
    stack.close()


@pytest.mark.parametrize("name", ALL)
def test_penalties_without_a_drafter(name: str) -> None:
    prompt, sampling = prompts(name)[0], SAMPLERS[1]
    stack = Stack(pair(name, drafter=False))
    assert stack.generate(prompt, REPLY, sampling=sampling).tokens == plain_greedy(
        name, prompt, sampling
    )
    stack.close()
