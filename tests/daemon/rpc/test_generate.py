"""Generate over real sockets: order, usage, and what a reply is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from tests.chat import turns
from tests.daemon.conftest import collect, prompt_of, running
from tests.daemon.fakes import EOS, FACTS, FIRST_BYTE, ByteTokenizer, reply_to
from tests.daemon.rpc.conftest import PROMPT
from tests.fakes import toy_logprobs

pytestmark = pytest.mark.anyio


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


async def test_scores_of_the_prompt_come_with_its_prefill() -> None:
    prompt = tuple(range(5, 200))
    async with running() as run:
        await collect(run.generation.Generate(prompt_of(*prompt, max_tokens=2)))
        request = prompt_of(*prompt, max_tokens=2, prompt_logprobs=3)
        _, _, events = await collect(run.generation.Generate(request))
    prefills = [event.prefill for event in events if event.WhichOneof("event") == "prefill"]
    told = toy_logprobs(prompt[1:], 3)
    scores = [token for prefill in prefills for token in prefill.logprobs]
    assert [token.logprob for token in scores] == [token.logprob for token in told]
    alternatives = [[(a.token_id, a.logprob) for a in token.alternatives] for token in scores]
    assert alternatives == [list(token.alternatives) for token in told]
    assert prefills[-1].processed_tokens == len(prompt)
    assert events[-1].finish.usage.cached_tokens == prefills[-1].cached_tokens == 0


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


Script = Sequence[int | str]
EOS_IDS = (EOS, 290, 291)
CONTROL_TOKENS = ControlTokens(
    turn_start=280, channel_start=281, channel_end=282, call_start=283, call_end=284, quote=285
)


def scripted(prompt_tokens: int, script: Script) -> Callable[[Sequence[int]], int]:
    """A model that says this, whatever the prompt: ids, and texts byte by byte."""
    ids = [i for part in script for i in ([part] if isinstance(part, int) else spelled(part))]
    return lambda tokens: ids[len(tokens) - prompt_tokens]


def spelled(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


@pytest.mark.parametrize("draft_tokens", [0, 8])
async def test_thinking_and_calls_come_apart_from_the_text(draft_tokens: int) -> None:
    thinks: Script = [281, "thought\nhüm\n", 282]
    calls: Script = [283, "call:f{a:", 285, "x,y}", 285, ",n:1}", 284, 283, "call:g{}", 284]
    script = [*thinks, "So: ", *calls, 291, "never"]
    facts = replace(FACTS, eos_token_ids=frozenset(EOS_IDS), control_tokens=CONTROL_TOKENS)
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


@pytest.mark.parametrize("draft_tokens", [0, 8])
async def test_ordinary_quotes_and_a_thought_on_one_line_come_whole(draft_tokens: int) -> None:
    thinks: Script = [281, "thought I think ", 283, 'call:f{"a": "x, y}"}call:g{}', 284, "so", 282]
    cut: Script = ["Yes", 283, "call:h{a:", 285, "b END", 285, ",c:"]
    facts = replace(FACTS, eos_token_ids=frozenset(EOS_IDS), control_tokens=CONTROL_TOKENS)
    for stop, reason in (("END", "STOP_SEQUENCE"), ("never", "STOP")):
        async with running(facts=facts) as run:
            run.device.next_token = scripted(2, [*thinks, *cut, 291])
            request = prompt_of(5, 6, draft_tokens=draft_tokens, stop=[stop])
            _, text, events = await collect(run.generation.Generate(request))
        deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
        assert "".join(delta.thinking for delta in deltas) == "I think so"
        called = [(call.name, call.arguments) for delta in deltas for call in delta.tool_calls]
        assert called == [("f", '{"a": "x, y}"}'), ("g", "{}")]
        whole = 'Yescall:h{a:<|"|>b END<|"|>,c:'
        assert text == (whole[: whole.index("END")] if stop == "END" else whole)
        finish = events[-1].finish
        assert finish.reason == pb.FinishReason.Value(f"FINISH_REASON_{reason}")
        assert finish.stop_sequence == (stop if stop == "END" else "")


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
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "thinking": "hm\n", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_name": "f"},
    ]
    messages = prompt_pb2.Messages(
        messages=[prompt_pb2.Message(**turn) for turn in said],
        tools=[prompt_pb2.Tool(name="f")],
        thinking=True,
    )
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
        messages = prompt_pb2.Messages(messages=[prompt_pb2.Message(role="user", content="hi")])
        request = pb.GenerateRequest(messages=messages, max_tokens=5)
        ids, _, _ = await collect(run.generation.Generate(request))
        assert ids == reply_to(tokenizer.encode_messages(turns(("user", "hi"))), 5)
    assert all(name.startswith(("tokenise", "MainThread")) for name in tokenizer.threads)
    assert any(name.startswith("tokenise") for name in tokenizer.threads)
