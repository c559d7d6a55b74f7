"""What of a stream belongs together: scores of a prompt, and the deltas of several replies."""

from __future__ import annotations

import grpc
import pytest

import sapwood
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import (
    USAGE,
    FakeDaemon,
    Request,
    Responses,
    delta,
    done,
    finish,
    prefill,
)

pytestmark = pytest.mark.anyio


async def test_scores_of_the_prompt_are_joined(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    def reply(request: Request, context: grpc.ServicerContext) -> Responses:
        for processed in (3, 4):
            event = prefill(0, processed, 4)
            for n in range(processed - 2):
                event.prefill.logprobs.add(logprob=-processed).alternatives.add(token_id=n)
            yield event
        yield finish(**USAGE)

    daemon.reply = reply
    async with connect(address) as client:
        whole = await done(client.generate("hello", prompt_logprobs=1).collect())
    places = [(-3.0, 0), (-4.0, 0), (-4.0, 1)]
    assert whole.prompt_logprobs == tuple(
        sapwood.TokenLogprobs(logprob, (sapwood.Alternative(id, 0.0),)) for logprob, id in places
    )


async def test_several_candidates_are_told_apart(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    def reply(request: Request, context: grpc.ServicerContext) -> Responses:
        yield prefill(0, 4, 4)
        for candidate, token in ((0, 10), (1, 20), (0, 11), (1, 21)):
            event = delta(f"{token} ", token)
            event.delta.candidate = candidate
            yield event
        for candidate in (1, 0):
            event = finish(**USAGE)
            event.finish.candidate = candidate
            yield event

    daemon.reply = reply
    async with connect(address) as client:
        replies = await done(client.generate("hello", candidates=2).collect_all())
        first = await done(client.generate("hello", candidates=2).collect())
    assert [r.token_ids for r in replies] == [(10, 11), (20, 21)]
    assert [r.text for r in replies] == ["10 11 ", "20 21 "] and first == replies[0]
    assert [r.finish.candidate for r in replies] == [0, 1]
