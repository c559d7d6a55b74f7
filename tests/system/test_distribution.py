"""S2 end to end: replies drawn with drafts are distributed as the target's own.

The target is tiny and random, its distribution exact: plain forwards over every beginning of
three tokens. The drafter is random and scores half of the vocabulary only. Noise keys are fixed:
no run differs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.pair import Pair
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import Array
from tests.model.sampling.markov import adjusted_logits, filtered_probs, p_value
from tests.system.stack import Stack
from tests.system.tiny import random_pair

VOCABULARY, DEPTH = 16, 2
PROMPT = (2, 9, 5)
FILTERS = Sampling(temperature=1.3, top_k=13, top_p=0.95, min_p=0.01)
PENALTIES = replace(
    FILTERS,
    repetition_penalty=1.4,
    presence_penalty=0.8,
    frequency_penalty=-0.9,
    logit_bias=((4, 1.5), (9, -2.0)),
)
FEW = 1_500  # draws; a law that is as far off as without one penalty is seen in them
SLOTS = 128
LIMITS = Limits(
    slots_max=SLOTS, queued_max=SLOTS, prefill_slices_max=SLOTS, prefill_tokens_max=4 * SLOTS
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return random_pair("e2b-tiny", tmp_path_factory.mktemp("tiny"), VOCABULARY, seed=5)


def distribution(tiny: Pair, sampling: Sampling) -> Array:
    """[V, V, V]: the joint probability of a reply's first three tokens."""
    joint = np.ones((VOCABULARY,) * 3)
    for count in range(3):
        beginnings = list(product(range(VOCABULARY), repeat=count))
        prompts = mx.array([(*PROMPT, *beginning) for beginning in beginnings])
        logits = np.array(tiny.target(prompts)[:, -1])
        scores = [
            adjusted_logits(row, sampling, PROMPT, beginning)
            for row, beginning in zip(logits, beginnings, strict=True)
        ]
        distributions = np.array([filtered_probs(row, sampling) for row in scores])
        joint *= distributions.reshape(*(VOCABULARY,) * (count + 1), *(1,) * (2 - count))
    return joint


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("sampling", "seeded", "draws"),
    [
        pytest.param(FILTERS, False, 20_000, id="rejection", marks=pytest.mark.long),
        pytest.param(FILTERS, True, 20_000, id="shared-noise", marks=pytest.mark.long),
        pytest.param(PENALTIES, False, FEW, id="few-rejection-penalties"),
        pytest.param(PENALTIES, False, 5_000, id="rejection-penalties", marks=pytest.mark.long),
        pytest.param(PENALTIES, True, 5_000, id="shared-noise-penalties", marks=pytest.mark.long),
    ],
)
def test_replies_drawn_with_drafts_have_the_targets_distribution(
    tiny: Pair, sampling: Sampling, seeded: bool, draws: int
) -> None:
    """The first three tokens jointly; two of them are drafted in one round."""
    stack = Stack(tiny, LIMITS, check_steps=False)
    todo = deque(range(draws))
    while todo or stack.core.has_work:
        while todo and stack.core.stats().requests_waiting < SLOTS:
            own = replace(sampling, seeded=seeded, noise_key=todo.popleft())
            stack.submit(PROMPT, DEPTH + 2, sampling=own, depth=DEPTH, cache_bypass=True)
        stack.step()
    usages = [stream.finished.usage for stream in stack.streams]
    accepted, drafted = (
        sum(getattr(u, f"{n}_tokens") for u in usages) for n in ("accepted", "draft")
    )
    assert 0.05 < accepted / drafted < 0.95, "both ends of a draft must occur"
    replies = np.array([stream.tokens[:3] for stream in stack.streams])
    joint = distribution(tiny, sampling)
    assert (joint * draws >= 5).sum() > min(100, draws // 50), "too few cells to say anything"
    assert p_value(replies, joint) > 1e-4
    if sampling is PENALTIES:  # the inverse
        without = distribution(tiny, replace(sampling, frequency_penalty=0.0))
        assert p_value(replies, without) < 1e-4
    stack.close()
