"""Both clients against a scripted daemon over real sockets; each test runs for either client."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

import sapwood
from sapwood.v1 import cache_pb2, generation_pb2, prompt_pb2
from tests.sapwood.fake import FakeDaemon, delta, finish, prefill, refuse, serving

pytestmark = pytest.mark.anyio

USAGE = {
    "prompt_tokens": 9,
    "cached_tokens": 4,
    "completion_tokens": 3,
    "decode_steps": 1,
    "rounds": 1,
    "draft_tokens": 2,
    "accepted_tokens": 1,
    "queue_seconds": 0.25,
    "prefill_seconds": 0.5,
    "decode_seconds": 2.0,
}


def whole_reply(request, context):
    yield prefill(4, 6, 9)
    yield prefill(4, 9, 9)
    yield delta("Hi ", 10)
    yield delta("", 11)
    yield delta("there", 12)
    yield finish(generation_pb2.FINISH_REASON_STOP_SEQUENCE, "\n", **USAGE)


def endless_reply(request, context):
    yield prefill(0, 1, 1)
    turn = threading.Event()
    context.add_callback(turn.set)
    while not turn.wait(0.005):
        yield delta("x", 1)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=["sync", "async"])
def connect(request):
    """Opens a client of the one or the other kind."""

    @asynccontextmanager
    async def opened(address):
        if request.param == "sync":
            with sapwood.Client(address) as client:
                yield client
        else:
            async with sapwood.AsyncClient(address) as client:
                yield client

    return opened


async def done(result):
    return await result if inspect.isawaitable(result) else result


async def each(stream):
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


async def read_to_a_delta(stream):
    async for event in each(stream):
        if isinstance(event, sapwood.Delta):
            return


@pytest.fixture
def daemon():
    return FakeDaemon(whole_reply)


@pytest.fixture
def address(daemon):
    with serving(daemon, "127.0.0.1:0") as address:
        yield address


async def test_events_arrive_in_order_and_typed(connect, address):
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


async def test_collect_includes_what_was_read_before(connect, address):
    async with connect(address) as client:
        stream = client.generate("hello")
        await read_to_a_delta(stream)
        reply = await done(stream.collect())
        assert await done(stream.text()) == "Hi there"
    assert reply.text == "Hi there"
    assert reply.token_ids == (10, 11, 12)
    assert reply.prefill == sapwood.Prefill(4, 9, 9)
    assert reply.finish.usage.accepted_tokens == 1


async def test_logprobs_arrive_with_their_tokens(connect, daemon, address):
    def reply(request, context):
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


async def test_stream_that_ends_without_finish_is_no_reply(connect, daemon, address):
    daemon.reply = lambda request, context: iter([prefill(0, 1, 1), delta("x", 1)])
    async with connect(address) as client:
        with pytest.raises(sapwood.SapwoodError, match="before the reply did"):
            await done(client.generate("hello").collect())


async def test_unset_options_stay_unset(connect, daemon, address):
    async with connect(address) as client:
        await done(client.generate("hello", max_tokens=None, temperature=None).collect())
    (request,) = daemon.requests
    assert request == generation_pb2.GenerateRequest(
        text="hello",
        sampling=generation_pb2.Sampling(),
        cache=generation_pb2.CacheOptions(store_reply=True),
    )


async def test_every_option_reaches_the_daemon(connect, daemon, address):
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
    )


async def test_messages_may_be_values_or_mappings(connect, daemon, address):
    async with connect(address) as client:
        messages = [
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


async def test_a_conversation_carries_tools_thinking_and_calls(connect, daemon, address):
    call = sapwood.ToolCall("weather", {"city": "Paris", "days": [1, None]})
    messages = [
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


async def test_a_reply_is_the_next_prompts_message(connect, daemon, address):
    """What the model thought and called comes apart from its text, and goes back as it came."""

    def reply(request, context):
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


def part(**fields):
    return generation_pb2.GenerateResponse(delta=generation_pb2.Delta(**fields))


async def test_token_ids_may_be_any_sequence_or_array(connect, daemon, address):
    async with connect(address) as client:
        for ids in ([2, 7], (2, 7), range(2, 12, 5), np.array([2, 7]), np.array([])):
            await done(client.generate(ids).collect())
    sent = [list(request.token_ids.ids) for request in daemon.requests]
    assert sent == [[2, 7]] * 4 + [[]]


async def test_unknown_option_is_a_type_error(connect, address):
    async with connect(address) as client:
        with pytest.raises(TypeError, match="'temprature'"):
            client.generate("hello", temprature=1)


async def test_cancel_reaches_the_daemon_and_ends_the_reader(connect, daemon, address):
    """R2: after cancel() reading raises Cancelled, and the daemon's handler ends."""
    daemon.reply = endless_reply
    async with connect(address) as client:
        stream = client.generate("hello")
        await read_to_a_delta(stream)
        stream.cancel()
        with pytest.raises(sapwood.Cancelled):
            await done(stream.collect())
        assert await asyncio.to_thread(daemon.ended.wait, 10)


async def test_leaving_a_stream_cancels_it(daemon, address):
    daemon.reply = endless_reply
    with sapwood.Client(address) as client:
        with client.generate("hello") as stream:
            next(stream)
        assert await asyncio.to_thread(daemon.ended.wait, 10)


async def test_leaving_an_async_stream_cancels_it(daemon, address):
    daemon.reply = endless_reply
    async with sapwood.AsyncClient(address) as client:
        async with client.generate("hello") as stream:
            await anext(stream)
        assert await asyncio.to_thread(daemon.ended.wait, 10)


async def test_cancelled_reader_task_stays_cancelled(daemon, address):
    """A task's own cancellation is never turned into an error of ours, and ends the stream."""

    def silent(request, context):
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


async def test_deadline(connect, daemon, address):
    daemon.reply = endless_reply
    async with connect(address) as client:
        stream = client.generate("hello", timeout=0.2)
        with pytest.raises(sapwood.DeadlineExceeded) as caught:
            await done(stream.collect())
    assert caught.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == ""


CLASSES = {
    "INVALID_ARGUMENT": sapwood.InvalidArgument,
    "NOT_FOUND": sapwood.NotFound,
    "FAILED_PRECONDITION": sapwood.FailedPrecondition,
    "RESOURCE_EXHAUSTED": sapwood.ResourceExhausted,
    "UNAUTHENTICATED": sapwood.Unauthenticated,
    "PERMISSION_DENIED": sapwood.PermissionDenied,
    "UNAVAILABLE": sapwood.Unavailable,
    "DEADLINE_EXCEEDED": sapwood.DeadlineExceeded,
    "CANCELLED": sapwood.Cancelled,
    "UNIMPLEMENTED": sapwood.Unimplemented,
    "INTERNAL": sapwood.SapwoodError,
}


@pytest.mark.parametrize("status", CLASSES)
async def test_each_status_has_its_class(connect, daemon, address, status):
    daemon.reply = lambda request, context: refuse(context, grpc.StatusCode[status], "no")
    async with connect(address) as client:
        with pytest.raises(sapwood.SapwoodError) as caught:
            await done(client.generate("hello").collect())
    assert type(caught.value) is CLASSES[status]
    assert caught.value.message == "no"


async def test_details_are_decoded(connect, daemon, address):
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="sampling.top_p", description="not in (0, 1]"
    )
    daemon.reply = lambda request, context: refuse(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        "bad sampling",
        error_details_pb2.ErrorInfo(domain="sapwood", reason="BAD_SAMPLING"),
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
    )
    async with connect(address) as client:
        with pytest.raises(sapwood.InvalidArgument, match="BAD_SAMPLING: bad sampling") as caught:
            await done(client.generate("hello").collect())
    assert caught.value.reason == "BAD_SAMPLING"
    assert caught.value.fields == {"sampling.top_p": "not in (0, 1]"}
    assert caught.value.retry_after_s == 1.5


async def test_foreign_and_broken_details_count_as_none(connect, daemon, address):
    def foreign(request, context):
        info = error_details_pb2.ErrorInfo(domain="proxy.example", reason="QUEUE_FULL")
        refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", info)

    def broken(request, context):
        context.set_trailing_metadata([("grpc-status-details-bin", b"\xff\xff")])
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    async with connect(address) as client:
        for daemon.reply in foreign, broken:
            with pytest.raises(sapwood.ResourceExhausted, match="busy") as caught:
                await done(client.generate("hello").collect())
            assert (caught.value.reason, caught.value.retry_after_s) == ("", None)


async def test_unavailable_is_retried_before_the_first_event_only(daemon, address):
    """By the async client: see sapwood.channel for why the other does not."""

    def loading_twice(request, context):
        if len(daemon.requests) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        return whole_reply(request, context)

    def breaks_later(request, context):
        yield prefill(0, 1, 1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "broken")

    async with sapwood.AsyncClient(address) as client:
        daemon.reply = loading_twice
        assert await client.generate("hello").text() == "Hi there"
        assert len(daemon.requests) == 3

        daemon.requests.clear()
        daemon.reply = breaks_later
        with pytest.raises(sapwood.Unavailable, match="broken"):
            await client.generate("hello").collect()
        assert len(daemon.requests) == 1


def test_the_sync_client_says_unavailable_at_once(daemon, address):
    daemon.reply = lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
    with sapwood.Client(address) as client, pytest.raises(sapwood.Unavailable, match="loading"):
        client.generate("hello").collect()
    assert len(daemon.requests) == 1


async def test_no_daemon_is_unavailable_not_a_hang(connect, tmp_path):
    async with connect(f"unix:{tmp_path}/nobody.sock") as client:
        with pytest.raises(sapwood.Unavailable):
            await done(client.generate("hello").collect())
        with pytest.raises(sapwood.Unavailable):
            await done(client.is_serving())


async def test_calls_over_a_unix_socket(connect, daemon, tmp_path):
    with serving(daemon, f"unix:{tmp_path}/d.sock") as address:
        async with connect(address) as client:
            assert await done(client.tokenize("seven nine")) == [2, 7, 9]
            assert await done(client.detokenize([7, 9])) == "seven nine"
            assert await done(client.get_model()) == sapwood.Model(
                name="demo",
                family="gemma4",
                fingerprint="c0ffee",
                context_tokens_max=4096,
                vocabulary_size=1024,
                eos_token_ids=(1, 106),
                drafter="demo-assistant",
                quantization="",
                numerics="fast",
                device="cpu",
            )
    tokenize, detokenize = daemon.requests
    assert tokenize.text == "seven nine"
    assert list(detokenize.token_ids) == [7, 9]


async def test_health(connect, daemon, address):
    async with connect(address) as client:
        assert await done(client.is_serving()) is True
        daemon.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await done(client.is_serving()) is False


STORED = [
    cache_pb2.StoredBytes(tier=cache_pb2.TIER_DEVICE, layer=cache_pb2.LAYER_KIND_FULL, bytes=64),
    cache_pb2.StoredBytes(tier=cache_pb2.TIER_DISK, layer=cache_pb2.LAYER_KIND_SLIDING, bytes=8),
    cache_pb2.StoredBytes(tier=77, layer=cache_pb2.LAYER_KIND_FULL, bytes=1),
]
STORED_VALUES = {
    (sapwood.Tier.DEVICE, sapwood.LayerKind.FULL): 64,
    (sapwood.Tier.DISK, sapwood.LayerKind.SLIDING): 8,
}


async def test_cache_stats(connect, daemon, address):
    counts = {"nodes": 1, "depth_tokens": 2, "leased_bytes": 3, "splits": 4, "merges": 5}
    counts |= {"evictions": 6, "hit_tokens": 7, "miss_tokens": 8}
    memory = {"budget_bytes": 15, "weights_bytes": 1, "live_bytes": 2, "snapshots_bytes": 3}
    memory |= {"workspace_bytes": 4, "free_bytes": 5}
    daemon.stats = cache_pb2.GetCacheStatsResponse(
        stored=STORED, memory=cache_pb2.Memory(**memory), **counts
    )
    async with connect(address) as client:
        assert await done(client.cache_stats()) == sapwood.CacheStats(
            stored=STORED_VALUES, memory=sapwood.Memory(**memory), **counts
        )


async def test_describe_tree(connect, daemon, address):
    root = {"id": 1, "start": 0, "end": 3, "leases": 2, "age_steps": 0, "pinned": True}
    leaf = {"id": 2, "start": 3, "end": 5, "leases": 0, "age_steps": 9, "pinned": False}
    daemon.nodes = [
        cache_pb2.TreeNode(hit_count=4, stored=STORED, **root),
        cache_pb2.TreeNode(hit_count=0, parent_id=1, token_ids=[5, 6], text="ab", **leaf),
    ]
    async with connect(address) as client:
        nodes = [node async for node in each(client.describe_tree(include_tokens=True))]
    assert nodes == [
        sapwood.TreeNode(
            parent_id=None, hit_count=4, stored=STORED_VALUES, token_ids=(), text=None, **root
        ),
        sapwood.TreeNode(parent_id=1, hit_count=0, stored={}, token_ids=(5, 6), text="ab", **leaf),
    ]
    assert daemon.requests[0].include_tokens is True


async def test_closing_the_client_ends_its_streams(connect, daemon, address):
    daemon.reply = endless_reply
    async with connect(address) as client:
        stream = client.generate("hello")
        await read_to_a_delta(stream)
    assert await asyncio.to_thread(daemon.ended.wait, 10)
    with pytest.raises(sapwood.Cancelled):
        await done(stream.collect())
