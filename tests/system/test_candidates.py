"""Several replies to one prompt through real core and runner: each as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.scheduler.events import Fork, Submit
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import DEMO, oracle, pair, prompts
from tests.system.stack import Stack, Stream

LIMITS = Limits(slots_max=6, prefill_tokens_max=64)
SEEDED = Sampling(0.9, 40, 0.95, seeded=True, noise_key=5)
KEYS = (5, 11, 12)
NAMES = [DEMO, *(pytest.param(name, marks=pytest.mark.long) for name in ("e2b-tiny", "a4b-tiny"))]


def candidates(stack: Stack, prompt: tuple[int, ...], depth: int | None) -> list[Stream]:
    """As one request; their streams."""
    forks = tuple(Fork(1000 * len(stack.streams) + key, key) for key in KEYS[1:])
    request = replace(
        stack.submit(prompt[:1], 1).request,
        id=1000 * len(stack.streams) + 1,
        prompt=prompt,
        max_tokens=24,
        sampling=SEEDED,
        depth=depth,
        forks=forks,
    )
    streams = [Stream(row) for row in request.rows]
    stack._by_id |= {stream.request.id: stream for stream in streams}
    stack.core.handle(Submit(request), stack.now)
    return streams


@pytest.mark.parametrize("name", NAMES)
def test_each_has_the_reply_of_its_seed_at_any_depth(name: str) -> None:
    prompt = tuple(prompts(name)[1])
    stack = Stack(pair(name), LIMITS)
    alone = [
        stack.generate(prompt, 24, sampling=replace(SEEDED, noise_key=key), depth=0).tokens
        for key in KEYS
    ]
    stack.close()
    assert len({tuple(tokens) for tokens in alone}) == 3
    for depth in (0, 4):
        stack = Stack(pair(name), LIMITS)
        streams = candidates(stack, prompt, depth)
        read = 0
        while stack.core.has_work:
            plan = stack.step()
            read += 0 if plan is None else sum(len(p.tokens) for p in plan.prefills)
        assert [stream.tokens for stream in streams] == alone
        assert read == 1 + len(prompt) + 2, "the prompt once, and its last token for each fork"
        for stream, key in zip(streams, KEYS, strict=True):
            sampling = replace(SEEDED, noise_key=key)
            assert not oracle(name).judge(prompt, stream.tokens, sampling).faults
        stack.close()
