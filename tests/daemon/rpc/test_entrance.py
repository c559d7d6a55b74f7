"""Bounds below the transport's: whoever is refused learns why and when to come again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import tracemalloc
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.rpc.admission import Admission
from sapwood.daemon.rpc.field_count import has_more_fields
from sapwood.daemon.rpc.services import server_options
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import SamplingDefaults
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from tests.daemon.conftest import (
    Running,
    collect,
    details_of,
    error_of,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    stats,
    until,
)
from tests.daemon.fakes import FACTS, SOMEBODY, ByteTokenizer, FakeDevice
from tests.daemon.process.test_lifecycle import SERVING, health_of

pytestmark = pytest.mark.anyio

BUSY = ("RESOURCE_EXHAUSTED", "QUEUE_FULL")


def rejected(run: Running) -> int:
    """Requests that the core has not seen."""
    return run.daemon._gate.turned_away[Outcome.REJECTED]


def is_busy(error: grpc.aio.AioRpcError) -> bool:
    retry = details_of(error, error_details_pb2.RetryInfo)
    return reason_of(error) == BUSY and retry.retry_delay.ToMilliseconds() > 0


async def test_too_many_rpcs_are_refused_with_reason_and_counted() -> None:
    """Of every service of ours, while health answers and who leaves makes room."""
    async with running(FakeDevice(gated=True), Limits(rpcs_max=2)) as run:
        calls = [run.generation.Generate(prompt_of(5 + n)) for n in range(2)]
        await until(lambda: open_rpcs(run) == len(calls))
        assert is_busy(await error_of(run.generation.Generate(prompt_of(5))))
        assert is_busy(await error_of(run.generation.Tokenize(pb.TokenizeRequest(text="a"))))
        assert rejected(run) == 1, "a Tokenize is no request"
        assert await health_of(run.channel) == SERVING
        calls[0].cancel()
        await until(lambda: open_rpcs(run) == 1)
        assert len((await run.generation.Tokenize(pb.TokenizeRequest(text="a"))).token_ids) == 2


async def test_a_burst_on_a_fresh_connection_is_served_or_refused_by_us() -> None:
    """More at once than any bound of ours, before the connection's settings have arrived."""
    limits = Limits(slots_max=4, queued_max=20, rpcs_max=60)
    async with running(FakeDevice(gated=True), limits) as run:
        calls = [run.generation.Generate(prompt_of(5 + n % 90, max_tokens=2)) for n in range(500)]
        results = asyncio.gather(*map(collect, calls), return_exceptions=True)
        await until(lambda: open_rpcs(run) + sum(call.done() for call in calls) == 500)
        run.device.ungate()
        errors = [result for result in await results if isinstance(result, BaseException)]
        counted = rejected(run) + stats(run).requests[Outcome.REJECTED]
    assert 440 <= len(errors) < 500
    for error in errors:
        assert isinstance(error, grpc.aio.AioRpcError)
        assert is_busy(error), error
    assert counted == len(errors)


def test_the_transports_bounds_lie_above_ours() -> None:
    limits = Limits()
    assert limits.transport_rpcs_max > limits.rpcs_max + limits.watches_max
    assert limits.rpcs_max > limits.slots_max + limits.queued_max
    options = dict(server_options(limits, listeners=1))
    assert options["grpc.max_concurrent_streams"] == limits.transport_rpcs_max


async def test_what_is_malformed_is_counted_as_rejected() -> None:
    async with running() as run:
        generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        generate = run.channel.unary_stream("/sapwood.v1.GenerationService/Generate")
        for size in (3, 100_000):
            error = await error_of(generate(b"\xff" * size))
            assert reason_of(error) == ("INVALID_ARGUMENT", "BAD_REQUEST")
        assert rejected(run) == 2


async def test_a_large_request_is_parsed_as_a_small_one() -> None:
    async with running() as run:
        text = "é" * 40_000
        ids = (await run.generation.Tokenize(pb.TokenizeRequest(text=text))).token_ids
        assert len(ids) == 1 + 80_000


async def test_the_loop_turns_between_two_large_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a step's tokens wait for one of them, however many have come."""
    async with running() as run:
        turns: list[int] = []
        parsed: list[int] = []

        def parse(*_given: Any) -> bool:
            parsed.append(len(turns))
            return False

        async def turn() -> None:
            while True:
                turns.append(0)
                await asyncio.sleep(0)

        monkeypatch.setattr("sapwood.daemon.rpc.boundary.has_more_fields", parse)
        turning = asyncio.ensure_future(turn())
        text = "x" * 100_000
        calls = [run.generation.Tokenize(pb.TokenizeRequest(text=text)) for _ in range(8)]
        await asyncio.gather(*calls)
        turning.cancel()
    assert len(parsed) == 8
    assert len(set(parsed)) == 8


def _messages(count: int, **fields: Any) -> pb.GenerateRequest:
    message = prompt_pb2.Message(**fields)
    return pb.GenerateRequest(messages=prompt_pb2.Messages(messages=[message] * count))


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (_messages(100), 101),
        (_messages(20, role="user", content="x" * 300), 61),
        pytest.param(_messages(100, role="user", content="x" * 300), 301, marks=pytest.mark.long),
        (pb.GenerateRequest(stop=["a"] * 50, text="x"), 51),
        (prompt_of(*range(1000)), 2),
        (pb.GenerateRequest(sampling=pb.Sampling(seed=1 << 63, logit_bias={7: 1.0, 900: 2})), 8),
    ],
)
async def test_fields_are_counted_to_the_last(request_: pb.GenerateRequest, fields: int) -> None:
    data, message = request_.SerializeToString(), pb.GenerateRequest.DESCRIPTOR
    assert has_more_fields(data, message, fields - 1)
    assert not has_more_fields(data, message, fields)
    for end in range(len(data)):
        has_more_fields(data[:end], message, fields)  # cut off anywhere: it ends, and says no
    assert not has_more_fields(b"\xff" * 100, message, fields)


async def test_more_fields_than_a_request_may_have_are_refused_unparsed() -> None:
    async with running() as run:
        error = await error_of(run.generation.Generate(_messages(40_000)))
        assert reason_of(error) == ("INVALID_ARGUMENT", "BAD_REQUEST")
        assert "fields" in str(error.details())


def _door(tokenizer: ByteTokenizer, limits: Limits) -> Admission:
    card = ModelCard("m", "f", b"key", FACTS, SamplingDefaults(), tokenizer)
    return Admission(card, limits)


async def _held(door: Admission, tokenizer: ByteTokenizer, *requests: Any) -> list[Any]:
    """Calls that wait for the tokenizer's gate."""

    async def ask(request: Any) -> None:
        if isinstance(request, pb.TokenizeRequest):
            await door.tokenize(request)
        else:
            await door.admit(request, 0, SOMEBODY)

    tasks = [asyncio.ensure_future(ask(request)) for request in requests]
    await until(lambda: bool(tokenizer.threads))
    await asyncio.sleep(0)
    return tasks


async def test_whoever_counts_tokens_holds_up_nobody_who_generates() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.gate.clear()
    door = _door(tokenizer, Limits(codec_calls_max=3))
    tasks = await _held(door, tokenizer, *[pb.TokenizeRequest(text="a")] * 3)
    with pytest.raises(Refused) as caught:
        await door.tokenize(pb.TokenizeRequest(text="b"))
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s
    admitting = asyncio.ensure_future(door.admit(pb.GenerateRequest(text="c"), 0, SOMEBODY))
    await until(lambda: any(name.startswith("tokenise") for name in tokenizer.threads))
    tokenizer.gate.set()
    await asyncio.gather(*tasks, admitting)
    assert await door.tokenize(pb.TokenizeRequest(text="b"))
    door.close()


async def test_texts_that_wait_have_a_bounded_number_of_bytes() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.gate.clear()
    door = _door(tokenizer, Limits(tokenise_bytes_max=1000))
    tasks = await _held(door, tokenizer, *[pb.GenerateRequest(text="a" * 400)] * 2)
    with pytest.raises(Refused) as caught:
        await door.admit(pb.GenerateRequest(text="a" * 400), 0, SOMEBODY)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s
    tokenizer.gate.set()
    await asyncio.gather(*tasks)
    assert await door.admit(pb.GenerateRequest(text="a" * 400), 0, SOMEBODY)
    door.close()


async def test_whoever_leaves_takes_the_work_along() -> None:
    """Though the gate stays shut: the tokenizer looks whether anybody still waits."""
    tokenizer = ByteTokenizer()
    tokenizer.gate.clear()
    door = _door(tokenizer, Limits(tokenise_calls_max=2))
    for _ in range(3):
        tasks = await _held(door, tokenizer, *[pb.GenerateRequest(text="a")] * 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: door._workers._calls == 0)
    assert door._workers._bytes == 0
    door.close()
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("tokenise")])


async def test_tokenize_and_detokenize_have_a_limit_of_their_own() -> None:
    door = _door(ByteTokenizer(), Limits(codec_tokens_max=10))
    assert len(await door.tokenize(pb.TokenizeRequest(text="a" * 9))) == 10
    assert await door.detokenize([100] * 10)
    with pytest.raises(Refused, match="at least 21 tokens; at most 10") as caught:
        await door.tokenize(pb.TokenizeRequest(text="a" * 21))
    assert (caught.value.reason, caught.value.field) == (Reason.BAD_REQUEST, "text")
    with pytest.raises(Refused, match="11 ids; at most 10") as caught:
        await door.detokenize([100] * 11)
    assert (caught.value.reason, caught.value.field) == (Reason.BAD_REQUEST, "token_ids")
    door.close()


async def test_what_was_refused_is_given_back_at_once() -> None:
    """Without a collection: a cycle through an exception's frames would hold it until one."""
    text = "x" * 1_000_000
    requests = {
        "Generate": pb.GenerateRequest(text=text).SerializeToString(),
        "Tokenize": pb.TokenizeRequest(text=text).SerializeToString(),
        "Detokenize": pb.DetokenizeRequest(token_ids=[5] * 1_000_000).SerializeToString(),
    }
    async with running(limits=Limits(codec_tokens_max=1000)) as run:

        async def refuse_all() -> None:
            for method, data in [*requests.items(), ("Generate", b"\xff" * 1_000_000)]:
                call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
                call = run.channel.unary_stream(f"/sapwood.v1.GenerationService/{method}")
                # Not pytest.raises: what that keeps is a cycle through this frame.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(data).read()

        await refuse_all()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(5):
                await refuse_all()
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert held_bytes < 2_000_000, "five times four megabytes came"
