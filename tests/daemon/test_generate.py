"""Generate over real sockets: order, usage, cancel and deadline at each phase."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import generation_pb2_grpc
from scheduler.limits import Limits
from scheduler.plan import Marks
from tests.chat import turns
from tests.daemon.conftest import (
    Running,
    collect,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    stats,
    until,
)
from tests.daemon.fakes import (
    EOS,
    FACTS,
    FIRST_BYTE,
    LONG_TEXT,
    LONG_TEXT_BYTES,
    ByteTokenizer,
    FakeDevice,
    next_token,
    reply_to,
)
from tests.fakes import toy_logprobs

pytestmark = pytest.mark.anyio

PROMPT = tuple(range(5, 60))
ONE_SLOT = Limits(slots_max=1)


@pytest.fixture
async def gated() -> AsyncIterator[Running]:
    async with running(FakeDevice(gated=True), ONE_SLOT) as run:
        yield run


async def test_a_reply_is_prefill_then_deltas_then_one_finish() -> None:
    async with running() as run:
        ids, text, events = await collect(run.generation.Generate(prompt_of(5, 6, max_tokens=20)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "prefill"
    assert kinds.count("finish") == 1
    assert kinds[-1] == "finish"
    assert set(kinds[1:-1]) == {"delta"}
    assert ids == reply_to((5, 6), 20)
    assert text == bytes(i - 3 for i in ids).decode()
    assert events[0].prefill.prompt_tokens == events[0].prefill.processed_tokens == 2
    assert events[-1].finish.reason == pb.FINISH_REASON_LENGTH
    usage = events[-1].finish.usage
    assert usage.completion_tokens == 20 == 1 + usage.decode_steps + usage.accepted_tokens


async def test_r1_32_clients_at_once_are_complete_and_in_order() -> None:
    async with running() as run:
        prompts = [(10 + n, 20, 30 + n) for n in range(32)]
        calls = [
            run.generation.Generate(prompt_of(*prompt, max_tokens=60 + n))
            for n, prompt in enumerate(prompts)
        ]
        replies = await asyncio.gather(*(collect(call) for call in calls))
    for n, (prompt, (ids, _, events)) in enumerate(zip(prompts, replies, strict=True)):
        assert ids == reply_to(prompt, 60 + n)
        assert [event.WhichOneof("event") for event in events].count("finish") == 1


async def test_logprobs_come_one_for_each_id_and_only_to_who_asks() -> None:
    """Wherever the text is cut: the stop string ends in the middle of a round."""
    async with running() as run:
        letters = bytes(i - 3 for i in reply_to((5, 6), 30)).decode()
        request = prompt_of(5, 6, top_logprobs=3, draft_tokens=4, stop=[letters[7:9]])
        ids, text, events = await collect(run.generation.Generate(request))
        _, _, silent = await collect(run.generation.Generate(prompt_of(5, 6, max_tokens=9)))
    assert (len(ids), text) == (9, letters[:7])
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    for delta in deltas:
        told = toy_logprobs(delta.token_ids, 3)
        assert [token.logprob for token in delta.logprobs] == [token.logprob for token in told]
        alternatives = [[(a.token_id, a.logprob) for a in t.alternatives] for t in delta.logprobs]
        assert alternatives == [list(token.alternatives) for token in told]
    assert events[-1].finish.usage.accepted_tokens > 0, "rounds of several tokens"
    assert not any(event.delta.logprobs for event in silent)


async def test_a_stop_string_a_stop_id_and_eos_end_a_reply_with_their_reasons() -> None:
    async with running() as run:
        reply = reply_to((5, 6), 30)
        letters = bytes(i - 3 for i in reply).decode()
        cases = (
            ({"stop": [letters[4:6]]}, pb.FINISH_REASON_STOP_SEQUENCE, letters[:4]),
            ({"stop_token_ids": [reply[3]]}, pb.FINISH_REASON_STOP, letters[:3]),
        )
        for fields, reason, expected in cases:
            _, text, events = await collect(run.generation.Generate(prompt_of(5, 6, **fields)))
            assert (events[-1].finish.reason, text) == (reason, expected)
        run.device.next_token = lambda tokens: EOS
        ids, text, events = await collect(run.generation.Generate(prompt_of(5, 6)))
        assert (ids, text) == ([EOS], "")
        assert events[-1].finish.reason == pb.FINISH_REASON_STOP


async def test_a_second_turn_finds_the_first_in_the_tree() -> None:
    async with running() as run:
        ids, _, _ = await collect(run.generation.Generate(prompt_of(*PROMPT, max_tokens=40)))
        turn = (*PROMPT, *ids, 77)
        _, _, events = await collect(run.generation.Generate(prompt_of(*turn, max_tokens=4)))
    assert events[-1].finish.usage.cached_tokens >= len(PROMPT) + 40 - 2


EOS_IDS = (EOS, 290, 291)
MARKS = Marks(
    turn_start=280, channel_start=281, channel_end=282, call_start=283, call_end=284, quote=285
)


def scripted(prompt_tokens: int, script: Sequence[int | str]) -> Callable[[Sequence[int]], int]:
    """A model that says this, whatever the prompt: ids, and texts byte by byte."""
    ids = [i for part in script for i in ([part] if isinstance(part, int) else spelled(part))]
    return lambda tokens: ids[len(tokens) - prompt_tokens]


def spelled(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


@pytest.mark.parametrize("draft_tokens", [0, 8])
async def test_thinking_and_calls_come_apart_from_the_text(draft_tokens: int) -> None:
    thinks = [281, "thought\nhüm\n", 282]
    calls = [283, "call:f{a:", 285, "x,y}", 285, ",n:1}", 284, 283, "call:g{}", 284]
    script = [*thinks, "So: ", *calls, 291, "never"]
    facts = replace(FACTS, eos_token_ids=frozenset(EOS_IDS), marks=MARKS)
    async with running(facts=facts) as run:
        run.device.next_token = scripted(2, script)
        request = prompt_of(5, 6, draft_tokens=draft_tokens)
        ids, text, events = await collect(run.generation.Generate(request))
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    assert text == "So: "
    assert "".join(delta.thinking for delta in deltas) == "hüm\n"
    called = [(call.name, call.arguments) for delta in deltas for call in delta.tool_calls]
    assert called == [("f", '{"a": "x,y}", "n": 1}'), ("g", "{}")]
    assert ids[-1] == 291
    assert {281, 282, 283, 284, 285} <= set(ids), "the ids are all there"
    assert events[-1].finish.reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize("eos", EOS_IDS)
async def test_every_end_of_turn_id_ends_a_reply_unless_they_are_ignored(eos: int) -> None:
    facts = replace(FACTS, eos_token_ids=frozenset(EOS_IDS))
    async with running(facts=facts) as run:
        run.device.next_token = scripted(2, ["ab", eos, "cdefgh"])
        for draft_tokens in (0, 1, 8):
            request = prompt_of(5, 6, max_tokens=6, draft_tokens=draft_tokens)
            ids, text, events = await collect(run.generation.Generate(request))
            assert (ids[2:], text) == ([eos], "ab")
            assert events[-1].finish.reason == pb.FINISH_REASON_STOP
            request.ignore_eos = True
            ids, _, events = await collect(run.generation.Generate(request))
            assert (len(ids), ids[2]) == (6, eos)
            assert events[-1].finish.reason == pb.FINISH_REASON_LENGTH


async def test_a_whole_conversation_reaches_the_models_tokenizer() -> None:
    """Tools, calls, results and thinking in the form of transformers' templates."""
    call = {"name": "f", "arguments": '{"a": 1}'}
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "thinking": "hm\n", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_name": "f"},
    ]
    messages = {"messages": said, "tools": [{"name": "f"}], "thinking": True}
    async with running() as run:
        request = pb.TokenizeRequest(messages=messages)
        ids = (await run.generation.Tokenize(request)).token_ids
    function = {"name": "f", "arguments": {"a": 1}}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    expected = ByteTokenizer().encode_messages(
        [
            said[0],
            {
                "role": "assistant",
                "content": "",
                "reasoning": "hm",
                "reasoning_content": "hm",
                "tool_calls": calls,
            },
            {"role": "tool", "content": "42", "name": "f", "tool_call_id": "call_0"},
        ],
        [tool],
        True,
    )
    assert ids == expected


async def test_text_and_messages_reach_the_model_through_its_tokenizer() -> None:
    async with running(tokenizer=(tokenizer := ByteTokenizer())) as run:
        request = pb.GenerateRequest(text="hello", max_tokens=5)
        ids, _, _ = await collect(run.generation.Generate(request))
        assert ids == reply_to(tokenizer.encode_text("hello"), 5)
        messages = {"messages": [{"role": "user", "content": "hi"}]}
        request = pb.GenerateRequest(messages=messages, max_tokens=5)
        ids, _, _ = await collect(run.generation.Generate(request))
        assert ids == reply_to(tokenizer.encode_messages(turns(("user", "hi"))), 5)
    assert all(name.startswith(("tokenise", "MainThread")) for name in tokenizer.threads)
    assert any(name.startswith("tokenise") for name in tokenizer.threads)


async def test_r2_cancel_in_the_queue(gated: Running) -> None:
    first = gated.generation.Generate(prompt_of(*PROMPT))
    await until(lambda: stats(gated).requests_running == 1)
    second = gated.generation.Generate(prompt_of(8, 9))
    await until(lambda: open_rpcs(gated) == 2)
    gated.device.step()
    await until(lambda: stats(gated).requests_waiting == 1)
    second.cancel()
    await until(lambda: open_rpcs(gated) == 1)
    gated.device.step()
    await until(lambda: stats(gated).requests["cancelled"] == 1)
    assert stats(gated).requests_waiting == 0
    assert stats(gated).requests_running == 1
    first.cancel()


async def test_r2_cancel_in_prefill_keeps_what_was_computed() -> None:
    limits = Limits(prefill_tokens_max=64)
    prompt = tuple(5 + n % 200 for n in range(400))
    async with running(FakeDevice(gated=True), limits) as run:
        call = run.generation.Generate(prompt_of(*prompt, max_tokens=4))
        run.device.step(2)
        event = await call.read()
        assert 0 < event.prefill.processed_tokens < 400
        call.cancel()
        await until(lambda: open_rpcs(run) == 0)
        run.device.ungate()
        await until(lambda: stats(run).requests["cancelled"] == 1 and not run.device.slots)
        ids, _, events = await collect(run.generation.Generate(prompt_of(*prompt, max_tokens=4)))
        assert events[-1].finish.usage.cached_tokens >= event.prefill.processed_tokens
        assert ids == reply_to(prompt, 4)


async def test_r2_cancel_in_decode_frees_the_slot_and_disturbs_nobody() -> None:
    async with running(FakeDevice(gated=True)) as run:
        other = run.generation.Generate(prompt_of(8, 9, max_tokens=50))
        call = run.generation.Generate(prompt_of(*PROMPT, max_tokens=50))
        await until(lambda: open_rpcs(run) == 2)
        run.device.step(4)
        async for event in call:
            if event.WhichOneof("event") == "delta":
                break
        call.cancel()
        await until(lambda: open_rpcs(run) == 1)
        run.device.ungate()
        ids, _, _ = await collect(other)
        assert ids == reply_to((8, 9), 50)
        await until(lambda: not run.device.slots)
        assert stats(run).requests["cancelled"] == 1


async def test_r2_a_channel_that_closes_cancels_its_requests(gated: Running) -> None:
    channel = grpc.aio.insecure_channel(gated.address)
    method = "/sapwood.v1.GenerationService/Generate"
    call = channel.unary_stream(
        method, pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString
    )(prompt_of(*PROMPT))
    gated.device.step()
    await call.read()
    await channel.close()
    await until(lambda: open_rpcs(gated) == 0)
    gated.device.ungate()
    await until(lambda: stats(gated).requests["cancelled"] == 1 and not gated.device.slots)


async def test_r2_cancel_while_the_prompt_is_tokenised_is_counted() -> None:
    tokenizer = ByteTokenizer()
    async with running(tokenizer=tokenizer) as run:
        tokenizer.gate.clear()
        call = run.generation.Generate(pb.GenerateRequest(text="hello"))
        await until(lambda: bool(tokenizer.threads))
        call.cancel()
        await until(lambda: run.daemon._front.turned_away["cancelled"] == 1)
        tokenizer.gate.set()
        assert stats(run).requests_running == 0


@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
async def test_r2_the_deadline_is_honoured_in_every_phase(phase: str, gated: Running) -> None:
    before = [gated.generation.Generate(prompt_of(8, 9))] if phase == "queue" else []
    await until(lambda: stats(gated).requests_running == len(before))
    call = gated.generation.Generate(prompt_of(*PROMPT, max_tokens=100), timeout=0.6)
    await until(lambda: open_rpcs(gated) == len(before) + 1)
    gated.device.step(3 if phase == "decode" else 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: open_rpcs(gated) == len(before))
    assert stats(gated).requests_waiting == len(before)
    gated.device.step(3)
    await until(lambda: stats(gated).requests["deadline"] == 1)
    for blocker in before:
        blocker.cancel()


async def test_request_s_max_is_the_deadline_of_those_who_have_none() -> None:
    limits = Limits(request_s_max=0.2)
    async with running(FakeDevice(gated=True), limits) as run:
        events = aiter(run.generation.Generate(prompt_of(*PROMPT)))
        run.device.step()
        assert (await anext(events)).WhichOneof("event") == "prefill"
        await asyncio.sleep(0.25)
        run.device.step(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(events)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert stats(run).requests["deadline"] == 1


@asynccontextmanager
async def slow_stub(run: Running) -> AsyncIterator[Any]:
    """A client whose receive window never grows, however slow the machine makes it look."""
    # What waits for it comes as one message, of whatever size these tests' limits allow.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(run.address, options) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


async def test_r6_a_slow_reader_ends_alone() -> None:
    """It reads nothing until a write of its handler is blocked and its mailbox overflows."""
    limits = Limits(mailbox_bytes_max=4 * LONG_TEXT_BYTES, write_s_max=60.0)
    async with running(FakeDevice(gated=True), limits) as run, slow_stub(run) as stub:
        other = run.generation.Generate(prompt_of(8, 9, max_tokens=3000, draft_tokens=0))
        run.device.next_token = lambda tokens: LONG_TEXT if tokens[0] == 7 else next_token(tokens)
        events = aiter(stub.Generate(prompt_of(7, max_tokens=3000, draft_tokens=0)))
        await until(lambda: open_rpcs(run) == 2)
        while stats(run).requests["failed"] == 0:
            run.device.step()
            await asyncio.sleep(0.001)
        assert open_rpcs(run) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(events)
        assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "SLOW_READER")
        run.device.ungate()
        ids, _, _ = await collect(other)
        assert ids == reply_to((8, 9), 3000)


async def test_r6_one_write_lasts_at_most_write_s_max() -> None:
    limits = Limits(mailbox_bytes_max=1 << 30, write_s_max=0.3)
    async with running(FakeDevice(), limits) as run, slow_stub(run) as stub:
        run.device.next_token = lambda tokens: LONG_TEXT
        events = aiter(stub.Generate(prompt_of(7, max_tokens=1000)))
        await until(lambda: sum(stats(run).requests.values()) == 1)
        await until(lambda: open_rpcs(run) == 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(events)
        assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "SLOW_READER")
