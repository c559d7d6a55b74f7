"""What a model's own file bans is never generated: by whom, how deep and how it is asked.

Ids 541 and 565 are what the pair would say here. The values expected are those of mlx-lm's own
forward over all tokens so far, its logits masked in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.drafting import Drafter, Drafts
from sapwood.model.pair import Pair, load_pair
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import checkpoint, copied, edit
from tests.model.sampling.markov import adjusted_logits
from tests.system.oracle import Oracle
from tests.system.stack import GREEDY, Stack
from tests.system.test_logprobs import check_reports

PROMPT = (2, 105, 448, 656, 107, 547, 480, 464, 106, 107, 105, 855, 473, 439, 107)
BANNED = (541, 565)
DEPTHS = (0, 1, 3, 8)
REPLY = 32
PULLED = tuple((id, 100.0) for id in BANNED)
LIKED = tuple((id, 9.0) for id in (300, 301, 302))
GREEDY_SAMPLERS = (
    GREEDY,
    Sampling(repetition_penalty=1.3, logit_bias=(*LIKED, *PULLED)),
    Sampling(repetition_penalty=0.4, presence_penalty=2.0),
    Sampling(presence_penalty=-1.0, frequency_penalty=-0.5, logit_bias=PULLED),
)
SEEDED_SAMPLERS = (
    Sampling(1.0, seeded=True, noise_key=1),
    Sampling(0.9, top_k=40, seeded=True, noise_key=2, logit_bias=PULLED),
    Sampling(1.2, top_p=0.9, seeded=True, noise_key=3, repetition_penalty=1.2),
    Sampling(1.0, min_p=0.01, seeded=True, noise_key=4, frequency_penalty=0.5),
)


def banning(place: Path, name: str = "12b-tiny", **keys: Any) -> Pair:
    """The reference pair with these keys in its generation_config.json, made below `place`."""
    directory = copied(name, place, weights=True)
    edit(directory, "generation_config.json", keys)
    return load_pair(directory, checkpoint(f"{name}-assistant"), "float32")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return banning(tmp_path_factory.mktemp("banned"), suppress_tokens=list(BANNED))


def plain_greedy(
    pair: Pair, sampling: Sampling, banned: Mapping[int, Sequence[int]] = {}, count: int = REPLY
) -> list[int]:
    """banned[i]: what may not be at place i of the reply, beside BANNED."""
    oracle, reply = Oracle(pair), list[int]()
    while len(reply) < count:
        newest = oracle.logits([*PROMPT, *reply])[-1]
        scores = adjusted_logits(newest, sampling, PROMPT, reply)
        scores[[*BANNED, *banned.get(len(reply), ())]] = -np.inf
        reply.append(int(scores.argmax()))
    return reply


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Every token that is drafted while a test runs."""
    seen, run = set[int](), Drafter.run

    def spied(self: Drafter, *arguments: Any) -> Drafts:
        drafts = run(self, *arguments)
        seen.update(np.array(drafts.tokens).tolist())
        return drafts

    monkeypatch.setattr(Drafter, "run", spied)
    return seen


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_suppress_tokens_names_is_not_said(pair: Pair, depth: int) -> None:
    stack = Stack(pair)
    reply = stack.generate(PROMPT, REPLY, depth=depth).tokens
    assert reply[:4] == [998, 388, 931, 791]
    assert reply == plain_greedy(pair, GREEDY)
    stack.close()


@pytest.mark.parametrize(
    "samplers",
    [pytest.param(GREEDY_SAMPLERS, marks=pytest.mark.long), SEEDED_SAMPLERS],
    ids=["greedy", "seeded"],
)
def test_whatever_is_asked_at_any_depth_and_in_any_company(
    pair: Pair, samplers: Sequence[Sampling], drafted: set[int]
) -> None:
    """Bias, penalties, filters and seeds, against the oracle; the second time from the tree."""
    stack, oracle = Stack(pair, Limits(slots_max=8, prefill_tokens_max=40)), Oracle(pair)
    for depths in (DEPTHS, DEPTHS[::-1]):
        streams = [
            stack.submit(PROMPT, REPLY, sampling=sampling, depth=depth, top_logprobs=5)
            for sampling, depth in zip(samplers, depths, strict=True)
        ]
        stack.run()
        for stream in streams:
            assert not set(BANNED) & set(stream.tokens), stream.request
            check_reports(oracle, stream)
            if stream.request.sampling.greedy:
                assert stream.tokens == plain_greedy(pair, stream.request.sampling)
    reported = {id for s in stack.streams for place in s.logprobs for id, _ in place.alternatives}
    assert reported & set(BANNED), "the model's own opinion is reported with all tokens"
    stack.check(oracle)
    assert drafted and not drafted & set(BANNED)
    assert sum(s.finished.usage.accepted_tokens for s in stack.streams) > 0
    stack.close()


@pytest.mark.long
def test_unseeded_draws_keep_to_it(pair: Pair, drafted: set[int]) -> None:
    stack = Stack(pair, Limits(slots_max=16), check_steps=False)
    for key in range(16):
        stack.submit(
            PROMPT,
            48,
            sampling=Sampling(1.5, noise_key=key, logit_bias=PULLED[: key % 2]),
            depth=key % 5,
        )
    stack.run()
    said = {token for stream in stack.streams for token in stream.tokens}
    assert len(said) > 100 and not said & set(BANNED)
    assert drafted and not drafted & set(BANNED)
    stack.close()


@pytest.mark.parametrize("depth", DEPTHS)
def test_begin_suppress_tokens_holds_for_the_first_token_alone(tmp_path: Path, depth: int) -> None:
    """998, the first choice, may come later: a bias makes it the second token."""
    pair = banning(tmp_path, suppress_tokens=list(BANNED), begin_suppress_tokens=[998, 541])
    stack, likes = Stack(pair), Sampling(logit_bias=((998, 100.0),))
    for sampling in (GREEDY, likes):
        reply = stack.generate(PROMPT, 8, sampling=sampling, depth=depth).tokens
        assert reply == plain_greedy(pair, sampling, {0: (998,)}, 8)
    assert reply[0] != 998 and reply[1] == 998
    stack.check(Oracle(pair))
    stack.close()


def test_begin_suppress_tokens_alone_beside_a_row_in_mid_reply(tmp_path: Path) -> None:
    pair = banning(tmp_path, begin_suppress_tokens=[565])
    stack = Stack(pair)
    stack.submit(PROMPT, 8, sampling=Sampling(logit_bias=((565, 100.0),)), depth=2)
    stack.step()
    stack.step()
    late = stack.submit(PROMPT, 8, sampling=Sampling(logit_bias=((565, 100.0),)), depth=2)
    stack.run()
    first = int(np.delete(Oracle(pair).logits(PROMPT)[-1], 565).argmax())
    expected = [first + (first >= 565), *[565] * 7]
    assert [stream.tokens for stream in stack.streams] == [expected, expected]
    assert late.finished.usage.accepted_tokens > 0, "a draft may be what is no first token"
    stack.close()


def test_an_ordered_head_that_has_only_banned_tokens_still_drafts(tmp_path: Path) -> None:
    """e2b's drafter scores clusters of 16 tokens: most are banned here, and every law holds."""
    allowed = set(range(0, 1024, 97)) | {1, 106}
    banned = [id for id in range(1024) if id not in allowed]
    pair = banning(tmp_path, "e2b-tiny", suppress_tokens=banned)
    samplers = (GREEDY, *SEEDED_SAMPLERS, *(Sampling(1.0, noise_key=key) for key in range(4)))
    stack = Stack(pair, Limits(slots_max=16))
    for sampling in samplers:
        stack.submit(PROMPT, REPLY, sampling=sampling, depth=4)
    stack.run()
    for stream in stack.streams:
        assert set(stream.tokens) <= allowed, stream.request
    stack.check(Oracle(pair))
    stack.close()


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    directory = copied("12b-tiny", tmp_path, weights=True)
    edit(directory, "generation_config.json", {"suppress_tokens": list(BANNED)})
    pair = load_pair(directory, checkpoint("12b-tiny-assistant"), "bfloat16")
    stack = Stack(pair)
    logits = mx.zeros((1, 1024), mx.bfloat16)
    assert stack.runner.suppression.of_target(logits, np.array([False])).dtype == mx.bfloat16
    assert not set(BANNED) & set(stack.generate(PROMPT, 8, depth=3).tokens)
    stack.close()
