"""Structured output over the wire: a real daemon with the bundled pair and Gemma's own template."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sapwood import (
    AsyncClient,
    Client,
    Conversation,
    FinishReason,
    InvalidArgument,
    Message,
    Reply,
    Tool,
)
from sapwood.daemon.demo.process import DaemonProcess, running, serve_command
from sapwood.model.checkpoint.locate import locate
from tests.model.reference import FIXTURES
from tests.system.schemas import schema_of

START_S_MAX = 90.0
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "timeout": 300}
PROMPT = [Message("user", "Tell me about a thing.")]
WEATHER = Tool(
    "weather",
    "What it is like",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city", "days"],
    },
)
CLOCK = Tool("clock", "The time", {"type": "object", "properties": {}})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    target, draft = locate(None, None)
    assert draft is not None
    folder = tmp_path_factory.mktemp("pair") / "target"
    shutil.copytree(target.path, folder)
    shutil.copy(FIXTURES / "chat" / "template.jinja", folder / "chat_template.jinja")
    flags = ("--model", str(folder), "--draft", str(draft.path), "--grammar", "lark")
    command = serve_command(*flags, "--dtype", "float32")
    with running(command, os.environ, time.monotonic() + START_S_MAX) as process:
        yield process


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(daemon.address) as client:
        yield client


async def _ask(
    client: AsyncClient, schema: dict[str, Any], max_tokens: int, options: dict[str, Any]
) -> Reply:
    stream = client.generate(PROMPT, json_schema=schema, max_tokens=max_tokens, **options)
    return await stream.collect()


async def _replies(address: str, asked: Sequence[tuple[dict[str, Any], int]]) -> list[Reply]:
    """Ten at a time, of all kinds of samplers and depths."""
    async with AsyncClient(address) as client:
        gate, random = asyncio.Semaphore(10), Random(7)

        async def one(schema: dict[str, Any], longest: int) -> Reply:
            options = SAMPLED | {
                "seed": random.choice((None, random.getrandbits(32))),
                "draft_tokens": random.choice((None, 0, 1, 4, 8)),
                "top_k": random.choice((0, 64)),
            }
            async with gate:
                return await _ask(client, schema, min(4 * longest, 6000), options)

        return await asyncio.gather(*(one(*each) for each in asked))


def judge(asked: Sequence[tuple[dict[str, Any], int]], replies: Sequence[Reply]) -> int:
    """Every STOP is a document of its schema; how many are not stopped."""
    for (schema, _), reply in zip(asked, replies, strict=True):
        if reply.finish.reason is FinishReason.STOP:
            Draft202012Validator(schema).validate(json.loads(reply.text))
    return sum(reply.finish.reason is not FinishReason.STOP for reply in replies)


@pytest.mark.parametrize(
    ("count", "seed"),
    [(8, 1), pytest.param(300, 2, marks=pytest.mark.long)],
    ids=["8", "300"],
)
def test_every_reply_that_stops_is_a_document_of_its_schema(
    daemon: DaemonProcess, count: int, seed: int
) -> None:
    random = Random(seed)
    asked = [schema_of(random) for _ in range(count)]
    replies = asyncio.run(_replies(daemon.address, asked))
    assert judge(asked, replies) <= count // 100
    if count > 100:  # of a few no draft may be asked for, or none accepted
        assert sum(reply.finish.usage.accepted_tokens for reply in replies) > 0
    assert len({reply.text for reply in replies}) > count // 2


def test_a_match_of_a_regular_expression_and_a_text_of_a_grammar(client: Client) -> None:
    for pattern in (r"^[0-9]{3}-(foo|bar)$", r"(ab|\d){1,12}\$"):
        reply = client.generate(PROMPT, regex=pattern, max_tokens=200, **SAMPLED).collect()
        assert reply.finish.reason is FinishReason.STOP
        assert re.fullmatch(pattern, reply.text)
    lark = 'start: "(" (start | NUMBER)* ")"\nNUMBER: /[0-9]{1,2}/'
    reply = client.generate(PROMPT, grammar=lark, max_tokens=300, seed=3, **SAMPLED).collect()
    assert re.fullmatch(r"[()0-9]+", reply.text)
    if reply.finish.reason is FinishReason.STOP:
        assert reply.text.count("(") == reply.text.count(")")


def asked(*tools: Tool) -> Conversation:
    return Conversation(PROMPT, tools)


@pytest.mark.parametrize("choice", ["required", WEATHER])
def test_calls_that_must_come_come_and_follow_their_schema(client: Client, choice: Any) -> None:
    for seed in range(4):
        reply = client.generate(
            asked(WEATHER, CLOCK), tool_choice=choice, max_tokens=400, seed=seed, **SAMPLED
        ).collect()
        assert reply.text == "" and reply.tool_calls
        assert reply.finish.reason is FinishReason.STOP or choice == "required"
        assert choice == "required" or [call.name for call in reply.tool_calls] == ["weather"]
        for call in reply.tool_calls:
            tool = WEATHER if call.name == "weather" else CLOCK
            assert tool.parameters is not None
            Draft202012Validator(tool.parameters).validate(call.arguments)


def test_with_no_call_none_comes_and_a_free_reply_is_free(client: Client) -> None:
    """The bundled model knows no calls: auto changes nothing of what it says."""
    texts = [
        client.generate(asked(WEATHER), tool_choice=choice, max_tokens=24, temperature=0).text()
        for choice in (None, "none", "auto")
    ]
    assert texts[0] == texts[1] == texts[2] != ""
    # Bias alone would have it call at once.
    call = client.tokenize("<|tool_call>")[-1]
    pushed: dict[str, Any] = {"logit_bias": {call: 100.0}, "max_tokens": 60, "temperature": 0}
    free = client.generate(asked(WEATHER), tool_choice="none", **pushed).collect()
    assert call not in free.token_ids
    held = client.generate(asked(WEATHER), tool_choice="auto", **pushed).collect()
    assert held.token_ids[0] == call
    for made in held.tool_calls:
        Draft202012Validator(WEATHER.parameters).validate(made.arguments)


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no json": ({"json_schema": "{"}, "json_schema", "JSON"),
    "a keyword": ({"json_schema": {"nullable": True}}, "json_schema", "'nullable'"),
    "nothing fits": ({"json_schema": {"enum": [1], "type": "string"}}, "json_schema", "built"),
    "oneOf": (
        {"json_schema": {"oneOf": [{"minLength": 1}, {"maxLength": 3}]}}, "json_schema", "built",
    ),
    "regex": ({"regex": "(a"}, "regex", "built"),
    "look-around": ({"regex": "(?=a)b"}, "regex", "built"),
    "empty": ({"regex": ""}, "regex", "empty"),
    "grammar": ({"grammar": "start: b"}, "grammar", "built"),
    "too large": ({"json_schema": '"' + "x" * 65_536 + '"'}, "json_schema", "65536"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_kept_is_bad_constraint(client: Client, name: str) -> None:
    options, field, words = BAD[name]
    with pytest.raises(InvalidArgument) as caught:
        client.generate(PROMPT, **options).collect()
    assert caught.value.reason == "BAD_CONSTRAINT"
    assert words in caught.value.fields[field]


def test_what_goes_beside_what(client: Client) -> None:
    for options, field in (
        ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"regex": "a", "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": Tool("other")}, "tool_choice.name"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            client.generate(asked(WEATHER), **options).collect()
        assert (caught.value.reason, set(caught.value.fields)) == ("BAD_REQUEST", {field})
    with pytest.raises(InvalidArgument, match="no tools"):
        client.generate(PROMPT, tool_choice="required").collect()
    kept = client.generate(asked(WEATHER), regex="[ab]{3}", tool_choice="none").text()
    assert re.fullmatch("[ab]{3}", kept)


def test_the_command_line(daemon: DaemonProcess, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps({"type": "object", "properties": {}, "additionalProperties": False})
    )

    def ran(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "sapwood", "generate", "hello", *arguments]
        connect = ("--connect", daemon.address)
        done = subprocess.run([*command, *connect], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    assert ran("--schema", str(schema)) == (0, "{}\n", "")
    code, _, told = ran("--schema", str(tmp_path / "none"))
    assert code == 2 and "No such file" in told


def test_a_thought_comes_before_what_is_held(client: Client) -> None:
    """The bundled model does not think by itself: bias has it open a channel, and close it."""
    start, end = (client.tokenize(token)[-1] for token in ("<|channel>", "<channel|>"))
    for depth in (0, 4):
        for thinking, beginning in ((True, (start, end)), (None, ())):
            reply = client.generate(
                Conversation(PROMPT, thinking=thinking),
                regex="[ab]{3}",
                temperature=0,
                draft_tokens=depth,
                logit_bias={start: 100.0, end: 100.0},
            ).collect()
            assert reply.token_ids[: len(beginning)] == beginning
            assert start not in reply.token_ids[len(beginning) :]
            assert re.fullmatch("[ab]{3}", reply.text) and reply.finish.reason is FinishReason.STOP


def test_what_cannot_be_built_or_followed_in_time_ends_alone(client: Client) -> None:
    """One that is built for minutes, one that leads nowhere, and a free stream beside them."""
    free: dict[str, Any] = {"max_tokens": 120, "temperature": 0, "ignore_eos": True}
    due = client.generate(PROMPT, **free).collect().token_ids
    beside = client.generate(PROMPT, **free)
    endless = {"type": "integer", "multipleOf": 9_999_991}
    with pytest.raises(InvalidArgument, match=r"too much memory|longer than 2 s") as caught:
        client.generate(PROMPT, json_schema=endless).collect()
    assert (caught.value.reason, set(caught.value.fields)) == ("BAD_CONSTRAINT", {"json_schema"})
    nowhere = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
    with pytest.raises(InvalidArgument, match="cannot be followed") as caught:
        client.generate(PROMPT, json_schema=nowhere, **SAMPLED).collect()
    assert caught.value.reason == "BAD_CONSTRAINT"
    assert beside.collect().token_ids == due
    assert client.generate(PROMPT, regex="[ab]{2}", temperature=0).text() in (
        "aa",
        "ab",
        "ba",
        "bb",
    )
