"""The ceiling by hand, and the chances of drafts as transformers' own rounds have them."""

from __future__ import annotations

from itertools import accumulate

import pytest

from bench.ceiling import (
    Ceiling,
    ClientLoad,
    ceiling,
    emitted_chances,
    load_of,
    measured_chances,
    streams_of,
    tokens_of_round,
    tokens_per_s,
    works,
)
from bench.clients import Served, TimedReply
from bench.matmuls import MatmulWork
from sapwood.client.values import Usage
from sapwood.model.pair import load_pair
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import PROMPTS, checkpoint, golden
from tests.quick import few_quick

REPLY = 64
CHANCES = [0.8, 0.4]


def test_a_chance_is_a_share_of_the_drafts_at_its_position() -> None:
    assert emitted_chances((10, 10, 5, 0), (8, 4, 1, 0)) == [0.8, 0.4, 0.2, 0.0]


def test_a_round_gives_its_drafts_chances_and_one_more() -> None:
    assert [tokens_of_round(CHANCES, depth) for depth in (0, 1, 2)] == pytest.approx([1, 1.8, 2.2])


def test_the_first_token_needs_no_round() -> None:
    """45 tokens at 2.2 a round: 20 rounds of 0.1 s behind half a second of prompts."""
    assert tokens_per_s(ClientLoad(4, 7, 45.0), 2.2, 0.1, 0.5) == pytest.approx(4 * 45 / 2.5)
    assert tokens_per_s(ClientLoad(3, 7, 1.0), 2.2, 0.1, 0.5) == pytest.approx(3 * 1 / 0.5)


def seconds(clients: int, steps_s: list[float], prompts_s: float) -> dict[MatmulWork, float]:
    rounds = {MatmulWork.of_round(clients, d): step_s for d, step_s in enumerate(steps_s)}
    return rounds | {MatmulWork.of_prompts(clients, 7): prompts_s}


def test_the_best_depth_is_the_ceiling() -> None:
    """44 rounds of 1, 1.8 or 2.2 tokens: 44 x 0.1, 44 / 1.8 x 0.11, 20 x 0.2 s of steps."""
    load = ClientLoad(4, 7, 45.0)
    found = ceiling(load, CHANCES, seconds(4, [0.1, 0.11, 0.2], 0.5))
    assert found == Ceiling(1, found.tokens_s, 1.8, 0.11, 0.5)
    assert found.tokens_s == pytest.approx(180 / (0.5 + 44 / 1.8 * 0.11))
    deepest = ceiling(load, CHANCES, seconds(4, [0.1, 0.11, 0.12], 0.5))
    assert deepest.depth == 2 and deepest.tokens_s == pytest.approx(180 / (0.5 + 20 * 0.12))
    plain = ceiling(load, CHANCES, seconds(4, [0.1, 0.2, 0.3], 0.5))
    assert plain.depth == 0 and plain.tokens_s == pytest.approx(180 / 4.9)


def test_without_a_drafter_there_is_depth_0() -> None:
    assert ceiling(ClientLoad(4, 7, 45.0), [], seconds(4, [0.1], 0.5)).depth == 0


def test_all_that_a_ceiling_needs_is_timed() -> None:
    load = ClientLoad(4, 7, 45.0)
    needed = dict.fromkeys(works(load, len(CHANCES)), 1.0)
    assert len(needed) == 4
    assert ceiling(load, CHANCES, needed).tokens_s > 0


def test_a_demand_is_what_the_clients_replies_were() -> None:
    """Two clients, three replies: of 30 prompt tokens 24 came from the tree; 40 + 50 + 60."""
    replies = [
        TimedReply(0.0, 0.5, 1.0, tokens, Usage(10, cached, tokens, tokens, 0, 0, 0, 0.0, 0.5, 0.5))
        for tokens, cached in ((40, 8), (50, 9), (60, 7))
    ]
    assert load_of(2, Served(tuple(replies))) == ClientLoad(2, 2, 50.0)


def test_a_rate_is_taken_apart_as_its_streams_saw_it() -> None:
    """Two turns of two clients: a stream that leaves early, first texts, steps; then one alone."""
    turns = [
        Served((reply(0.0, 0.5, 4.5, 40, 8), reply(0.0, 1.0, 2.0, 20, 4))),
        Served((reply(9.0, 9.6, 11.6, 30, 6),)),
    ]
    seen = streams_of(turns)
    assert seen["our_streams"] == pytest.approx((4.5 + 2.0 + 2.6) / (4.5 + 2.6))
    assert seen["our_first_text_s"] == pytest.approx((0.5 + 1.0 + 0.6) / 3)
    assert seen["our_decode_steps"] == 6 and seen["our_step_s"] == pytest.approx(7 / 18)
    stream_s = seen["our_first_text_s"] + seen["our_decode_steps"] * seen["our_step_s"]
    assert seen["our_streams"] * 30 / stream_s == pytest.approx(90 / 7.1)


def reply(asked: float, first: float, ended: float, tokens: int, steps: int) -> TimedReply:
    usage = Usage(10, 8, tokens, steps, 0, 0, 0, 0.0, 0.5, 0.5)
    return TimedReply(asked, first, ended, tokens, usage)


@pytest.mark.parametrize("count", few_quick([1, 3], 1))
def test_chances_are_those_of_transformers_own_rounds(count: int) -> None:
    """Seven drafts a round, fewer where the reply has no room for them."""
    name, asked = "a4b-tiny", PROMPTS[:count]
    pair = load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")
    prompts = [tuple(golden(name)[f"p{i}_ids"].tolist()) for i in asked]
    requests = [
        Request(i, b"test", prompt, REPLY, Sampling(), depth=7, ignore_eos=True)
        for i, prompt in enumerate(prompts)
    ]
    positions = range(Limits().draft_depth_max)
    drafted, accepted = [0] * len(positions), [0] * len(positions)
    for i in asked:
        for depth, held in rounds(golden(name)[f"p{i}_rounds_hf_k7"].tolist()):
            for position in positions:
                drafted[position] += depth > position
                accepted[position] += held > position
    assert sum(accepted) > 0
    assert measured_chances(pair, requests) == emitted_chances(drafted, accepted)


def rounds(accepted: list[int]) -> list[tuple[int, int]]:
    """(drafts, those accepted) of each round of a reply; its first token came with the prompt."""
    done = accumulate((held + 1 for held in accepted), initial=1)
    return [
        (min(7, REPLY - before - 1), held) for before, held in zip(done, accepted, strict=False)
    ]
