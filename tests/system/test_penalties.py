"""Greedy replies with bias and penalties are those of a plain loop, one token at a time.

The loop knows neither cache nor draft: mlx-lm's own forward over all tokens so far, penalties in
NumPy over all tokens so far, the maximum. Seeded: test_seeded; distributions: test_distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sapwood.model.sampling.penalties import Tally
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.model.sampling.markov import adjusted_logits
from tests.system.pairs import QUICK_A4B, QUICK_E2B, oracle, pair, prompts
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


@pytest.mark.parametrize("name", QUICK_E2B)
def test_greedy_with_penalties_is_the_plain_loop_at_any_depth_cold_or_hit(name: str) -> None:
    """All together beside rows without penalties; then again, their prompts restored."""
    asked = [(prompts(name)[i], s) for i, s in zip((3, 0, 1, 3), SAMPLERS, strict=True)]
    expected = [plain_greedy(name, prompt, sampling) for prompt, sampling in asked]
    biased = [replace(GREEDY, logit_bias=sampling.logit_bias) for _, sampling in asked]
    for (prompt, _), sampling, reply in zip(asked, biased, expected, strict=True):
        assert reply != plain_greedy(name, prompt, sampling), "its penalties change nothing"
    stack = Stack(pair(name), Limits(slots_max=8, prefill_tokens_max=40, referred_reads_min=1))
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


@pytest.mark.parametrize("name", QUICK_A4B)
def test_penalties_without_a_drafter(name: str) -> None:
    prompt, sampling = prompts(name)[0], SAMPLERS[1]
    stack = Stack(pair(name, drafter=False))
    assert stack.generate(prompt, REPLY, sampling=sampling).tokens == plain_greedy(
        name, prompt, sampling
    )
    stack.close()


@pytest.mark.parametrize("name", QUICK_A4B)
def test_s6_a_history_holds_what_was_committed_and_goes_with_its_sequence(name: str) -> None:
    """Nine sequences through four slots, whose rows change places, with drafts that are rejected.

    At every step each one's history is that of its own prompt and reply, whoever had the slot.
    """
    owners: dict[int, set[int]] = {}
    orders: set[tuple[int, ...]] = set()

    def look(stack: Stack) -> None:
        places, live = stack.runner.caches.rings.places, stack.core._roster.live.values()
        orders.add(tuple(sorted((s.slot for s in live), key=lambda slot: places[slot].row)))
        for sequence in live:
            request, held = sequence.request, stack.runner._samplers[sequence.slot].tally
            owners.setdefault(sequence.slot, set()).add(request.id)
            assert held is not None
            due = Tally(request.sampling, request.prompt, stack.runner.vocabulary)
            due.push(sequence.reply.tokens)
            assert held.reply_tokens == due.reply_tokens, sequence.tell()
            np.testing.assert_array_equal(held.ids, due.ids)
            np.testing.assert_array_equal(held.columns, due.columns)

    stack = Stack(pair(name), Limits(slots_max=4, prefill_tokens_max=40), before_step=look)
    streams = []
    for lengths in ((4, 5, 24, 30), (7, 20, 9, 16, 12)):
        for i, tokens in enumerate(lengths):
            sampling = SAMPLERS[(i + len(lengths)) % 4]
            streams.append(stack.submit(prompts(name)[i % 3], tokens, sampling=sampling, depth=4))
        while streams[1].end is None:  # two slots are free then, and the rows close up
            stack.step()
        stack.step()
        stack.step()
    stack.run()
    assert sum(len(requests) > 1 for requests in owners.values()) > 1, "no slot had two owners"
    assert any(list(order) != sorted(order) for order in orders), "no row ever changed places"
    usages = [stream.finished.usage for stream in streams]
    assert sum(usage.draft_tokens - usage.accepted_tokens for usage in usages) > 20
    stack.check(oracle(name))
    stack.close()
