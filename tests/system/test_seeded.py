"""S5: a seed gives the same tokens at any depth, with or without drafter, in company, after a hit.

The oracle knows neither drafts nor company: it adds each index's noise to a plain forward.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import QUICK_E2B, oracle, pair, prompts
from tests.system.stack import Stack

REPLY = 24


def sampler(random: Random) -> Sampling:
    plain = Sampling(
        temperature=random.choice((0.3, 0.8, 1.2)),
        top_k=random.choice((0, 0, 5, 64, 100)),
        top_p=random.choice((1.0, 0.9)),
        min_p=random.choice((0.0, 0.05)),
        seeded=True,
        noise_key=random.getrandbits(64),
    )
    if random.random() < 0.4:
        return plain
    return replace(
        plain,
        repetition_penalty=random.choice((1.0, 1.2)),
        presence_penalty=random.choice((0.0, 0.8)),
        frequency_penalty=random.choice((0.0, 0.4)),
        logit_bias=random.choice(((), ((7, 3.0), (300, -100.0)))),
    )


@pytest.mark.parametrize("name", QUICK_E2B)
def test_a_seed_gives_the_same_tokens_in_every_circumstance(name: str) -> None:
    """The same requests cold at depth 0 in one crowd, with drafts and hits in another, alone."""
    random = Random(f"seeded {name}")
    asked = [(prompt, sampler(random)) for prompt in prompts(name) for _ in range(3)]
    replies = []
    stack = Stack(pair(name), Limits(slots_max=16, prefill_tokens_max=40, referred_reads_min=1))
    for depths in ((0,), (1, 2, 3, 5, 8, None)):
        streams = [
            stack.submit(prompt, REPLY, sampling=sampling, depth=depths[i % len(depths)])
            for i, (prompt, sampling) in enumerate(asked)
        ]
        stack.run()
        replies.append([stream.tokens for stream in streams])
    alone = [stack.generate(prompt, REPLY, sampling=s).tokens for prompt, s in asked[::5]]
    stack.check(oracle(name))
    usages = [stream.finished.usage for stream in stack.streams]
    stack.close()
    plain = Stack(pair(name, drafter=False))
    undrafted = [plain.generate(prompt, REPLY, sampling=s).tokens for prompt, s in asked[1::5]]
    plain.close()
    assert replies[1] == replies[0]
    assert alone == replies[0][::5]
    assert undrafted == replies[0][1::5]
    assert sum(u.accepted_tokens for u in usages) > 0 and sum(u.cached_tokens for u in usages) > 0
    assert len({tuple(reply) for reply in replies[0]}) > len(asked) // 2, "seeds must differ"
    assert 0 < sum(sampling.adjusted for _, sampling in asked) < len(asked)
