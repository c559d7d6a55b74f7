"""Every row of the wire contract's error table that exists, over a real socket (R4, R7)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf, nan
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from sapwood.daemon.rpc.boundary import service_handler
from sapwood.daemon.rpc.entrance import Entrance
from sapwood.daemon.rpc.services import CACHE, GENERATION, HEALTH, SESSION
from sapwood.scheduler.limits import Limits
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
    until,
)
from tests.daemon.fakes import CONTEXT, FACTS, VOCABULARY, FakeDevice

pytestmark = pytest.mark.anyio

LIMITS = Limits()


def text_of(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x", **fields)


def said(role: str, content: str = "hi", times: int = 1, **more: Any) -> prompt_pb2.Messages:
    message = prompt_pb2.Message(role=role, content=content, **more)
    return prompt_pb2.Messages(messages=[message] * times)


BAD: dict[str, tuple[pb.GenerateRequest, str, str]] = {
    "no prompt": (pb.GenerateRequest(), "EMPTY_PROMPT", "prompt"),
    "empty text": (pb.GenerateRequest(text=""), "EMPTY_PROMPT", "text"),
    "no ids": (prompt_of(), "EMPTY_PROMPT", "token_ids"),
    "no messages": (pb.GenerateRequest(messages=prompt_pb2.Messages()), "EMPTY_PROMPT", "messages"),
    "unknown role": (
        pb.GenerateRequest(messages=said("<turn|>")),
        "BAD_REQUEST",
        "messages.messages[0].role",
    ),
    "template refuses": (
        pb.GenerateRequest(messages=said("assistant")),
        "BAD_REQUEST",
        "messages",
    ),
    "too many messages": (
        pb.GenerateRequest(messages=said("user", times=4097)),
        "BAD_REQUEST",
        "messages.messages",
    ),
    "id at the vocabulary": (prompt_of(5, VOCABULARY), "BAD_TOKEN_ID", "token_ids.ids"),
    "huge id": (prompt_of(2**32 - 1), "BAD_TOKEN_ID", "token_ids.ids"),
    "stop id at the vocabulary": (
        text_of(stop_token_ids=[VOCABULARY]),
        "BAD_TOKEN_ID",
        "stop_token_ids",
    ),
    "longer than it may be": (text_of(min_tokens=9, max_tokens=8), "BAD_REQUEST", "min_tokens"),
    "endless": (text_of(min_tokens=2**32 - 1, max_tokens=8), "BAD_REQUEST", "min_tokens"),
    "arguments are no object": (
        pb.GenerateRequest(
            messages=said("assistant", tool_calls=[{"name": "f", "arguments": "1"}])
        ),
        "BAD_REQUEST",
        "messages.messages[0].tool_calls[0].arguments",
    ),
    "result of no call": (
        pb.GenerateRequest(messages=said("tool")),
        "BAD_REQUEST",
        "messages.messages[0].tool_name",
    ),
    "text is hopelessly long": (
        pb.GenerateRequest(text="x" * 3 * CONTEXT),
        "CONTEXT_TOO_LONG",
        "prompt",
    ),
    "messages are hopelessly long": (
        pb.GenerateRequest(messages=said("user", "x" * 3 * CONTEXT)),
        "CONTEXT_TOO_LONG",
        "prompt",
    ),
    "prompt fills the context": (prompt_of(*[5] * CONTEXT), "CONTEXT_TOO_LONG", "prompt"),
    "max_tokens 0": (text_of(max_tokens=0), "BAD_REQUEST", "max_tokens"),
    "nine stops": (text_of(stop=["x"] * 9), "BAD_REQUEST", "stop"),
    "empty stop": (text_of(stop=[""]), "BAD_REQUEST", "stop"),
    "long stop": (text_of(stop=["ä" * 33]), "BAD_REQUEST", "stop"),
    "65 stop ids": (text_of(stop_token_ids=[5] * 65), "BAD_REQUEST", "stop_token_ids"),
    "unknown priority": (text_of(priority=9), "BAD_REQUEST", "priority"),
    "unknown deadline_policy": (text_of(deadline_policy=9), "BAD_REQUEST", "deadline_policy"),
    "negative temperature": (
        text_of(sampling={"temperature": -0.5}),
        "BAD_SAMPLING",
        "sampling.temperature",
    ),
    "temperature NaN": (
        text_of(sampling={"temperature": nan}),
        "BAD_SAMPLING",
        "sampling.temperature",
    ),
    "temperature inf": (
        text_of(sampling={"temperature": inf}),
        "BAD_SAMPLING",
        "sampling.temperature",
    ),
    "top_p 0": (text_of(sampling={"top_p": 0}), "BAD_SAMPLING", "sampling.top_p"),
    "top_p 1.5": (text_of(sampling={"top_p": 1.5}), "BAD_SAMPLING", "sampling.top_p"),
    "top_p NaN": (text_of(sampling={"top_p": nan}), "BAD_SAMPLING", "sampling.top_p"),
    "min_p -1": (text_of(sampling={"min_p": -1}), "BAD_SAMPLING", "sampling.min_p"),
    "min_p 2": (text_of(sampling={"min_p": 2}), "BAD_SAMPLING", "sampling.min_p"),
    "min_p NaN": (text_of(sampling={"min_p": nan}), "BAD_SAMPLING", "sampling.min_p"),
    **{
        f"{name} {value}": (
            text_of(sampling={name: value}),
            "BAD_SAMPLING",
            f"sampling.{name}",
        )
        for name, values in {
            "repetition_penalty": (0, -1, inf, nan),
            "presence_penalty": (2.01, -2.01, nan),
            "frequency_penalty": (2.01, -2.01, nan),
        }.items()
        for value in values
    },
    **{
        f"logit_bias {bias}": (
            text_of(sampling={"logit_bias": {5: 1, 6: bias}}),
            "BAD_SAMPLING",
            "sampling.logit_bias",
        )
        for bias in (100.5, -100.5, inf, nan)
    },
    "1025 biases": (
        prompt_of(5, sampling={"logit_bias": dict.fromkeys(range(1025), 0.0)}),
        "BAD_SAMPLING",
        "sampling.logit_bias",
    ),
    "bias at the vocabulary": (
        text_of(sampling={"logit_bias": {VOCABULARY: 1.0}}),
        "BAD_TOKEN_ID",
        "sampling.logit_bias",
    ),
    "top_logprobs 21": (text_of(top_logprobs=21), "BAD_REQUEST", "top_logprobs"),
    "prompt_logprobs 21": (text_of(prompt_logprobs=21), "BAD_REQUEST", "prompt_logprobs"),
    "candidates 9": (text_of(candidates=9), "BAD_REQUEST", "candidates"),
    "many candidates": (text_of(candidates=2**32 - 1), "BAD_REQUEST", "candidates"),
    "greedy candidates": (text_of(candidates=2), "BAD_SAMPLING", "candidates"),
    **{
        f"huge {field}": (text_of(**{field: 2**32 - 1}), reason, field)
        for field, reason in {
            "top_logprobs": "BAD_REQUEST",
            "prompt_logprobs": "BAD_REQUEST",
            "draft_tokens": "BAD_SAMPLING",
        }.items()
    },
    "marked and forgotten": (
        text_of(cache={"bypass": True, "mark": True}),
        "BAD_REQUEST",
        "cache.mark",
    ),
    "draft_tokens 9": (text_of(draft_tokens=9), "BAD_SAMPLING", "draft_tokens"),
}

UNSUPPORTED: dict[str, pb.GenerateRequest] = {
    "thinking_tokens_max": text_of(thinking_tokens_max=0),  # of this model, without channels
    "json_schema": text_of(json_schema="{}"),
    "regex": text_of(regex=""),
    "grammar": text_of(grammar="root ::= 'a'"),
}


async def test_r4_bad_requests_get_their_reason_and_name_the_field(run: Running) -> None:
    for name, (request, reason, field) in BAD.items():
        error = await error_of(run.generation.Generate(request))
        assert reason_of(error) == ("INVALID_ARGUMENT", reason), name
        violations = details_of(error, error_details_pb2.BadRequest).field_violations
        assert [violation.field for violation in violations] == [field], name
    _, _, events = await collect(run.generation.Generate(prompt_of(5, max_tokens=3)))
    assert events[-1].finish.usage.completion_tokens == 3


async def test_what_is_not_built_is_refused_by_name(run: Running) -> None:
    for field, request in UNSUPPORTED.items():
        error = await error_of(run.generation.Generate(request))
        assert reason_of(error) == ("FAILED_PRECONDITION", "UNSUPPORTED"), field
        assert field in (error.details() or "")


async def test_values_at_their_limits_are_served(run: Running) -> None:
    requests = (
        text_of(stop=["x" * 64] * 8, stop_token_ids=[VOCABULARY - 1] * 64, max_tokens=1),
        text_of(
            sampling={"temperature": 0, "top_p": 1, "min_p": 1, "top_k": 2**32 - 1}, max_tokens=1
        ),
        text_of(
            sampling={"repetition_penalty": 1e-45, "presence_penalty": 2, "frequency_penalty": -2},
            max_tokens=1,
        ),
        text_of(sampling={"logit_bias": {VOCABULARY - 1: 100, 0: -100}}, max_tokens=1),
        text_of(draft_tokens=8, top_logprobs=20, max_tokens=1, min_tokens=1),
        *(
            text_of(candidates=1, priority=urgency, max_tokens=1)
            for urgency in pb.Priority.values()
        ),
        text_of(deadline_policy=pb.DEADLINE_POLICY_EARLY, max_tokens=1),
        text_of(cache={"bypass": True, "store_reply": False}, max_tokens=1),
        prompt_of(*[5] * (CONTEXT - 1), max_tokens=2**32 - 1),
    )
    for request in requests:
        ids, _, _ = await collect(run.generation.Generate(request))
        assert len(ids) == 1


async def test_context_too_long_says_how_long_and_the_limit(run: Running) -> None:
    error = await error_of(run.generation.Generate(prompt_of(*[5] * 5000)))
    assert "5000" in (error.details() or "")
    assert str(CONTEXT) in (error.details() or "")
    error = await error_of(run.generation.Generate(pb.GenerateRequest(text="x" * 4999)))
    assert "5000" in (error.details() or "")


async def test_r7_a_status_carries_no_exception_text(run: Running) -> None:
    error = await error_of(run.generation.Generate(pb.GenerateRequest(messages=said("assistant"))))
    assert "secret" not in str(error.details()) + str(error.trailing_metadata())


async def test_a_draft_without_a_drafter_is_no_drafter() -> None:
    async with running(facts=replace(FACTS, has_drafter=False)) as run:
        error = await error_of(run.generation.Generate(text_of(draft_tokens=1)))
        assert reason_of(error) == ("FAILED_PRECONDITION", "NO_DRAFTER")
        ids, _, _ = await collect(run.generation.Generate(text_of(draft_tokens=0, max_tokens=2)))
        assert len(ids) == 2


async def test_a_full_queue_is_queue_full_with_a_time_to_retry() -> None:
    limits = Limits(slots_max=1, queued_max=1)
    async with running(FakeDevice(gated=True), limits) as run:
        calls = [run.generation.Generate(prompt_of(5 + n, max_tokens=3)) for n in range(8)]
        results = asyncio.gather(*(collect(call) for call in calls), return_exceptions=True)
        # Some may be refused before the gated step starts, so those that ended count as come.
        await until(lambda: open_rpcs(run) + sum(call.done() for call in calls) == 8)
        run.device.ungate()
        errors = [r for r in await results if isinstance(r, grpc.aio.AioRpcError)]
    assert 1 <= len(errors) < 8
    for error in errors:
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        assert details_of(error, error_details_pb2.RetryInfo).retry_delay.seconds >= 1


async def test_what_memory_can_never_hold_is_out_of_memory() -> None:
    async with running(budget=15_000) as run:
        error = await error_of(run.generation.Generate(prompt_of(*[5] * 4000, max_tokens=90)))
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
        ids, _, _ = await collect(run.generation.Generate(prompt_of(5, max_tokens=5)))
        assert len(ids) == 5


async def test_r4_malformed_bytes_on_every_method_are_bad_request(run: Running) -> None:
    methods = [
        method for service in (GENERATION, CACHE, SESSION, HEALTH) for method in service.methods
    ]
    served = {method.full_name for method in methods}
    assert {"sapwood.v1.GenerationService.Generate", "grpc.health.v1.Health.Watch"} <= served
    channel: Any = run.channel  # whose kind of call depends on the method
    for method in methods:
        path = f"/{method.containing_service.full_name}/{method.name}"
        for junk in (b"\xff\xff\xff", b"\x0a\x05ab"):
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(path)(junk)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (collect(call) if method.server_streaming else call)
            assert reason_of(caught.value) == ("INVALID_ARGUMENT", "BAD_REQUEST"), path


async def test_r4_text_that_is_not_utf8_is_bad_request(run: Running) -> None:
    generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    generate = run.channel.unary_stream(f"/{GENERATION.full_name}/Generate")
    call = generate(b"\x0a\x02\xff\xfe")
    assert reason_of(await error_of(call)) == ("INVALID_ARGUMENT", "BAD_REQUEST")


async def test_what_is_in_no_contract_is_unimplemented(run: Running) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    call = run.channel.unary_unary(f"/{SESSION.full_name}/MergeSessions")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_oversized_message_is_grpcs_own_resource_exhausted(run: Running) -> None:
    request = pb.GenerateRequest(text="x" * LIMITS.request_bytes_max)
    error = await error_of(run.generation.Generate(request))
    assert reason_of(error) == ("RESOURCE_EXHAUSTED", "")


async def test_a_bug_of_ours_is_internal_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R5, R7: nothing of the exception reaches client or log, and the server goes on."""

    async def broken(request: Any, _context: Any) -> None:
        raise RuntimeError(request.token_ids)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (service_handler(GENERATION, {"Detokenize": broken}, Entrance(LIMITS, 9)),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = channel.unary_unary(f"/{GENERATION.full_name}/Detokenize")
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(pb.DetokenizeRequest(token_ids=[31337]).SerializeToString())
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "31337" not in str(caught.value)
    await server.stop(None)
    assert "RuntimeError" in caplog.text
    assert "31337" not in caplog.text
