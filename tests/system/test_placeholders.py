"""Placeholders of images and sound are tokens that the target computes as its pad token.

What transformers computes for them: tests/model/test_odd_configs.py, whose texts hold some.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.plain_forward import shortfalls
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import FAMILIES, Array
from tests.system.oracle import NEAR_TIE, Oracle
from tests.system.pairs import pair, prompts
from tests.system.stack import Stack

IMAGE, PLACEHOLDERS = 96, (93, 96, 97)
DELIMITERS = (91, 92, 94, 95)


def plain(name: str, tokens: Sequence[int]) -> Array:
    """[L, V] of the tokens' own rows, by mlx-lm's own forward."""
    return np.array(pair(name).target(mx.array([list(tokens)]))[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_placeholder_is_computed_as_the_pad_token_and_a_delimiter_as_itself(name: str) -> None:
    prompt = [*prompts(name)[2], *PLACEHOLDERS, *DELIMITERS, 300]
    padded = [0 if id in PLACEHOLDERS else id for id in prompt]
    stack = Stack(pair(name))
    reply = stack.generate(prompt, 1, depth=0, top_logprobs=20).logprobs[0].alternatives
    logits = plain(name, padded)[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert max(abs(logprob - expected[id]) for id, logprob in reply) < NEAR_TIE
    assert np.abs(plain(name, prompt)[-1] - logits).max() > 0.1, "it would have shown"
    stack.close()


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_that_holds_one_goes_on_by_its_ids(name: str, depth: int) -> None:
    """Generated, taken back as a draft's neighbour, stored in the tree and found there again."""
    stack, oracle = Stack(pair(name)), Oracle(pair(name))
    likes = Sampling(logit_bias=((IMAGE, 100.0),), frequency_penalty=2.0)
    first = stack.generate(prompts(name)[0], 4, sampling=likes, depth=depth)
    assert first.tokens == [IMAGE] * 4
    prompt = (*first.request.prompt, *first.tokens, 300, *PLACEHOLDERS)
    second = stack.generate(prompt, 24, depth=depth)
    assert second.cached == len(first.request.prompt) + 3
    stack.check(oracle)
    assert max(shortfalls(pair(name), prompt, second.tokens)) < NEAR_TIE
    cold = Stack(pair(name))
    assert cold.generate(prompt, 24, depth=0).tokens == second.tokens
    for used in (stack, cold):
        used.close()
