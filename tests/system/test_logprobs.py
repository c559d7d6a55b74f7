"""Reported log probabilities are the target's own, of a plain forward, whatever drew the token."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.system.oracle import Oracle
from tests.system.pairs import QUICK_E2B, oracle, pair, prompts
from tests.system.stack import GREEDY, Stack, Stream

REPLY = 20
ATOL = 1e-4  # what packed logits may differ by from mlx-lm's own
PENALISED = Sampling(1.0, 20, 0.95, 0.0, True, 5, 1.3, 0.5, 0.5, ((9, 5.0),))


def check_reports(oracle: Oracle, stream: Stream) -> None:
    """Against one plain forward over prompt and reply."""
    prompt, count = stream.request.prompt, stream.request.top_logprobs
    logits = oracle.logits([*prompt, *stream.tokens])[len(prompt) - 1 : -1]
    distributions = log_softmax(logits.astype(np.float64), axis=-1)
    assert len(stream.logprobs) == len(stream.tokens) > 0
    for distribution, token, reported in zip(
        distributions, stream.tokens, stream.logprobs, strict=True
    ):
        assert reported.logprob == pytest.approx(distribution[token], abs=ATOL)
        ids, values = zip(*reported.alternatives, strict=True)
        assert len(set(ids)) == len(ids) == count
        np.testing.assert_allclose(values, np.sort(distribution)[::-1][:count], atol=ATOL)
        np.testing.assert_allclose(values, distribution[list(ids)], atol=ATOL)


@pytest.mark.parametrize("name", QUICK_E2B)
def test_logprobs_are_the_raw_targets_at_any_depth_cold_or_hit(name: str) -> None:
    """Greedy, seeded and unseeded rows with every depth, beside rows that do not ask."""
    stack = Stack(pair(name), Limits(slots_max=8, prefill_tokens_max=40, referred_reads_min=1))
    kinds = (GREEDY, PENALISED, Sampling(0.9, top_p=0.9, noise_key=3), Sampling(1.0, noise_key=4))
    for depths in ((0, 1, 3, 8), (4, None, 2, 1)):
        asked = [
            stack.submit(
                prompts(name)[i], REPLY, sampling=kind, depth=depth, top_logprobs=1 + 6 * i
            )
            for i, (kind, depth) in enumerate(zip(kinds, depths, strict=True))
        ]
        silent = stack.submit(prompts(name)[0], REPLY, depth=3)
        stack.run()
        for stream in asked:
            check_reports(oracle(name), stream)
        assert not silent.logprobs
    assert asked[3].cached > 0
    accepted = sum(s.finished.usage.accepted_tokens for s in stack.streams if s.logprobs)
    assert accepted > 0, "some of the tokens must have been drafts"
    stack.close()


@pytest.mark.parametrize("name", QUICK_E2B)
def test_logprobs_stay_with_their_ids_where_text_is_held_back_and_cut(name: str) -> None:
    """A stop string in mid-round: the text leaves late, ids and logprobs with their step."""
    stack, prompt = Stack(pair(name)), prompts(name)[0]
    whole = stack.generate(prompt, REPLY, depth=4, top_logprobs=2)
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = stack.generate(prompt, REPLY, depth=4, top_logprobs=2, stop=(stop, "\x00never"))
    assert 0 < len(cut.tokens) < len(whole.tokens)
    assert cut.finished.stop_sequence == stop
    check_reports(oracle(name), cut)
    for reported, expected in zip(cut.logprobs, whole.logprobs, strict=False):
        assert reported.logprob == pytest.approx(expected.logprob, abs=ATOL)
    stack.close()
