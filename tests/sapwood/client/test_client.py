"""Both clients against a scripted daemon over real sockets; each test runs for either client."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import cast

import grpc
import numpy as np
import pytest

import sapwood
from sapwood.client.values import Messages
from sapwood.v1 import generation_pb2, prompt_pb2
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import (
    USAGE,
    FakeDaemon,
    Request,
    Responses,
    delta,
    done,
    each,
    endless_reply,
    finish,
    part,
    prefill,
    read_to_a_delta,
)

pytestmark = pytest.mark.anyio


async def test_events_arrive_in_order_and_typed(connect: Connect, address: str) -> None:
    """R1: exactly one Finish, last; nothing lost, doubled or reordered."""
    async with connect(address) as client:
        events = [event async for event in each(client.generate("hello"))]
    assert events == [
        sapwood.Prefill(4, 6, 9),
        sapwood.Prefill(4, 9, 9),
        sapwood.Delta("Hi ", (10,)),
        sapwood.Delta("", (11,)),
        sapwood.Delta("there", (12,)),
        sapwood.Finish(sapwood.FinishReason.STOP_SEQUENCE, "\n", sapwood.Usage(**USAGE)),
    ]


async def test_collect_includes_what_was_read_before(connect: Connect, address: str) -> None:
    async with connect(address) as client:
        stream = client.generate("hello")
        await read_to_a_delta(stream)
        reply = await done(stream.collect())
        assert await done(stream.text()) == "Hi there"
    assert reply.text == "Hi there"
    assert reply.token_ids == (10, 11, 12)
    assert reply.prefill == sapwood.Prefill(4, 9, 9)
    assert reply.finish.usage.accepted_tokens == 1


async def test_logprobs_arrive_with_their_tokens(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    def reply(request: Request, context: grpc.ServicerContext) -> Responses:
        yield prefill(4, 9, 9)
        for token in (10, 11):
            event = delta("x", token)
            told = event.delta.logprobs.add(logprob=-token / 2)
            told.alternatives.add(token_id=token + 1, logprob=-0.25)
            yield event
        yield finish(**USAGE)

    daemon.reply = reply
    async with connect(address) as client:
        whole = await done(client.generate("hello", top_logprobs=1).collect())
    assert whole.token_ids == (10, 11)
    assert whole.logprobs == tuple(
        sapwood.TokenLogprobs(-token / 2, (sapwood.Alternative(token + 1, -0.25),))
        for token in whole.token_ids
    )


async def test_stream_that_ends_without_finish_is_no_reply(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    daemon.reply = lambda request, context: iter([prefill(0, 1, 1), delta("x", 1)])
    async with connect(address) as client:
        with pytest.raises(sapwood.SapwoodError, match="before the reply did"):
            await done(client.generate("hello").collect())


async def test_a_newer_daemons_reason_is_unknown_and_the_reply_whole(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    newer = cast("generation_pb2.FinishReason.ValueType", 77)
    daemon.reply = lambda request, context: iter([prefill(0, 1, 1), finish(newer)])
    async with connect(address) as client:
        reply = await done(client.generate("hello").collect())
    assert reply.finish.reason is sapwood.FinishReason.UNKNOWN


async def test_unset_options_stay_unset(connect: Connect, daemon: FakeDaemon, address: str) -> None:
    async with connect(address) as client:
        await done(client.generate("hello", max_tokens=None, temperature=None).collect())
    (request,) = daemon.requests
    assert request == generation_pb2.GenerateRequest(
        text="hello",
        sampling=generation_pb2.Sampling(),
        cache=generation_pb2.CacheOptions(store_reply=True),
    )


async def test_every_option_reaches_the_daemon(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    async with connect(address) as client:
        stream = client.generate(
            [5, 6],
            max_tokens=7,
            temperature=0.0,
            top_k=0,
            top_p=0.5,
            min_p=0.25,
            seed=2**64 - 1,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            logit_bias={7: 2.0, 8: -100.0},
            top_logprobs=4,
            stop="\n\n",
            stop_token_ids=[8, 9],
            ignore_eos=True,
            draft_tokens=0,
            cache=sapwood.CacheOptions(bypass=True, store_reply=False, mark=True),
            priority="batch",
            deadline_policy="early",
            timeout=30,
        )
        await done(stream.collect())
    (request,) = daemon.requests
    assert request == generation_pb2.GenerateRequest(
        token_ids=prompt_pb2.TokenIds(ids=[5, 6]),
        max_tokens=7,
        sampling=generation_pb2.Sampling(
            temperature=0.0,
            top_k=0,
            top_p=0.5,
            min_p=0.25,
            seed=2**64 - 1,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            logit_bias={7: 2.0, 8: -100.0},
        ),
        top_logprobs=4,
        stop=["\n\n"],
        stop_token_ids=[8, 9],
        ignore_eos=True,
        draft_tokens=0,
        cache=generation_pb2.CacheOptions(bypass=True, store_reply=False, mark=True),
        priority=generation_pb2.PRIORITY_BATCH,
        deadline_policy=generation_pb2.DEADLINE_POLICY_EARLY,
    )


async def test_messages_may_be_values_or_mappings(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    async with connect(address) as client:
        messages: Messages = [
            sapwood.Message("system", "Be brief."),
            {"role": "user", "content": "<turn|>"},
        ]
        await done(client.generate(messages).collect())
        await done(client.tokenize(messages))
    generate, tokenize = daemon.requests
    assert generate.messages == tokenize.messages
    assert [(m.role, m.content) for m in generate.messages.messages] == [
        ("system", "Be brief."),
        ("user", "<turn|>"),
    ]


WEATHER = sapwood.Tool(
    "weather", "Weather of a place", {"type": "object", "properties": {"city": {"type": "string"}}}
)


async def test_a_conversation_carries_tools_thinking_and_calls(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    call = sapwood.ToolCall("weather", {"city": "Paris", "days": [1, None]})
    messages: Messages = [
        {"role": "user", "content": "hi"},
        sapwood.Message("assistant", "", thinking="hm", tool_calls=[call]),
        sapwood.Message("tool", "rain", tool_name="weather"),
    ]
    async with connect(address) as client:
        tools = [WEATHER, sapwood.Tool("now")]
        talk = sapwood.Conversation(messages, tools, thinking=False)
        await done(client.generate(talk).collect())
        await done(client.tokenize(sapwood.Conversation(messages[:1])))
        with pytest.raises(TypeError):
            client.generate([{"role": "user", "content": "x", "image": "y"}])
    sent, plain = (request.messages for request in daemon.requests)
    assert [tool.name for tool in sent.tools] == ["weather", "now"]
    assert json.loads(sent.tools[0].parameters) == WEATHER.parameters
    assert (sent.tools[1].parameters, sent.tools[1].description) == ("", "")
    assert (sent.HasField("thinking"), sent.thinking) == (True, False)
    _, asked, answer = sent.messages
    assert (asked.thinking, asked.tool_calls[0].name) == ("hm", "weather")
    assert json.loads(asked.tool_calls[0].arguments) == call.arguments
    assert (answer.role, answer.tool_name, answer.content) == ("tool", "weather", "rain")
    assert not plain.HasField("thinking") and not plain.tools


async def test_a_reply_is_the_next_prompts_message(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    """What the model thought and called comes apart from its text, and goes back as it came."""

    def reply(request: Request, context: grpc.ServicerContext) -> Responses:
        yield prefill(0, 3, 3)
        yield part(thinking="so ")
        yield part(thinking="so\n", text="Let me see. ")
        yield part(tool_calls=[{"name": "weather", "arguments": '{"city": "Paris"}'}])
        yield finish()

    daemon.reply = reply
    async with connect(address) as client:
        got = await done(client.generate("hello").collect())
    call = sapwood.ToolCall("weather", {"city": "Paris"})
    assert (got.text, got.thinking, got.tool_calls) == ("Let me see. ", "so so\n", (call,))
    assert got.message() == sapwood.Message("assistant", got.text, got.thinking, (call,))


async def test_token_ids_may_be_any_sequence_or_array(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    prompts: list[sapwood.Prompt] = [
        [2, 7],
        (2, 7),
        range(2, 12, 5),
        np.array([2, 7]),
        np.array([]),
    ]
    async with connect(address) as client:
        for ids in prompts:
            await done(client.generate(ids).collect())
    sent = [list(request.token_ids.ids) for request in daemon.requests]
    assert sent == [[2, 7]] * 4 + [[]]


async def test_unknown_option_is_a_type_error(connect: Connect, address: str) -> None:
    async with connect(address) as client:
        with pytest.raises(TypeError, match="'temprature'"):
            client.generate("hello", temprature=1)  # type: ignore[call-arg]


async def test_cancel_reaches_the_daemon_and_ends_the_reader(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    """R2: after cancel() reading raises Cancelled, and the daemon's handler ends."""
    daemon.reply = endless_reply
    async with connect(address) as client:
        stream = client.generate("hello")
        await read_to_a_delta(stream)
        stream.cancel()
        with pytest.raises(sapwood.Cancelled):
            await done(stream.collect())
        assert await asyncio.to_thread(daemon.ended.wait, 10)


async def test_leaving_a_stream_cancels_it(daemon: FakeDaemon, address: str) -> None:
    daemon.reply = endless_reply
    with sapwood.Client(address) as client:
        with client.generate("hello") as stream:
            next(stream)
        assert await asyncio.to_thread(daemon.ended.wait, 10)


async def test_leaving_an_async_stream_cancels_it(daemon: FakeDaemon, address: str) -> None:
    daemon.reply = endless_reply
    async with sapwood.AsyncClient(address) as client:
        async with client.generate("hello") as stream:
            await anext(stream)
        assert await asyncio.to_thread(daemon.ended.wait, 10)


async def test_cancelled_reader_task_stays_cancelled(daemon: FakeDaemon, address: str) -> None:
    """A task's own cancellation is never turned into an error of ours, and ends the stream."""

    def silent(request: Request, context: grpc.ServicerContext) -> Responses:
        yield prefill(0, 1, 1)
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(30)

    daemon.reply = silent
    async with sapwood.AsyncClient(address) as client:
        stream = client.generate("hello")
        await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        assert await asyncio.to_thread(daemon.ended.wait, 10)
        with pytest.raises(sapwood.Cancelled):
            await anext(stream)


async def test_closing_the_client_ends_its_streams(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    daemon.reply = endless_reply
    async with connect(address) as client:
        stream = client.generate("hello")
        await read_to_a_delta(stream)
    assert await asyncio.to_thread(daemon.ended.wait, 10)
    with pytest.raises(sapwood.Cancelled):
        await done(stream.collect())
