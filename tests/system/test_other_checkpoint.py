"""S1 on checkpoints that nobody has looked at: the near-tie rule.

Every emitted token's logit lies within 1e-3 of its place's maximum in one plain mlx-lm forward over
prompt and reply. Near ties are counted and printed (`pytest -s`); anything else is a fault.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from sapwood.model.pair import Pair
from sapwood.scheduler.limits import Limits
from tests.model.reference import NAMES
from tests.system.oracle import Oracle
from tests.system.stack import Stack
from tests.system.tiny import WINDOW, random_pair

VOCABULARY = 1024


def crowd(pair: Pair, seed: str, count: int = 40) -> Stack:
    """`count` greedy requests over a few beginnings, all depths, joining at random steps."""
    random, stack = Random(seed), Stack(pair, Limits(slots_max=16, prefill_tokens_max=24))
    beginnings = [[random.randrange(2, VOCABULARY) for _ in range(5 * WINDOW)] for _ in range(3)]
    for number in range(count):
        kept = random.choice(beginnings)[: random.randrange(5 * WINDOW)]
        tail = [random.randrange(2, VOCABULARY) for _ in range(random.randint(1, 2 * WINDOW))]
        depth = random.choice((None, number % 9))
        stack.submit(kept + tail, random.randint(1, 40), depth=depth)
        while random.random() < 0.5:
            stack.step()
    stack.run()
    return stack


@pytest.mark.long
@pytest.mark.parametrize("base", NAMES)
def test_greedy_text_differs_from_plain_decoding_at_near_ties_only(
    base: str, tmp_path: Path
) -> None:
    pair = random_pair(base, tmp_path, VOCABULARY, seed=1, borrowing=2 if base == NAMES[0] else 0)
    stack = crowd(pair, base)
    verdicts = stack.check(Oracle(pair))  # asserts that there is no fault
    tokens = sum(len(stream.tokens) for stream in stack.streams)
    print(f"{base}: {sum(len(v.near_ties) for v in verdicts)} near ties in {tokens} tokens")
    assert tokens > 500
    stack.close()


def test_where_every_token_has_a_twin_near_ties_are_counted_and_are_no_faults(
    tmp_path: Path,
) -> None:
    """Two tokens that differ by less than float32 noise everywhere: either is the right one."""
    pair = random_pair(NAMES[0], tmp_path, VOCABULARY, seed=2, twins=True)
    stack = crowd(pair, "twins")
    near = sum(len(verdict.near_ties) for verdict in stack.check(Oracle(pair)))
    tokens = sum(len(stream.tokens) for stream in stack.streams)
    print(f"twins: {near} near ties in {tokens} tokens")
    assert 0 < near < tokens
    stack.close()


def test_a_token_that_is_not_nearly_the_best_is_a_fault(tmp_path: Path) -> None:
    """The rule itself can fail: one token of a true reply replaced by its runner-up."""
    pair = random_pair(NAMES[0], tmp_path, VOCABULARY, seed=1)
    stack = Stack(pair)
    stream = stack.generate((2, 7, 40), 12, depth=0)
    oracle = Oracle(pair)
    second = oracle.logits([2, 7, 40, *stream.tokens])[3 + 4].argsort()[-2]
    stream.tokens[5] = int(second)
    assert 5 in oracle.judge((2, 7, 40), stream.tokens, stream.request.sampling).faults
    stack.close()
