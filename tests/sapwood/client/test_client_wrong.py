"""What a caller gets wrong is told by the name of the field, before anything is sent.

- Every option and every field of a message is tried; one that is new is missed here by name.
- Both clients build the same requests, and `test_both_clients_refuse_before_anything_is_sent` shows
  that either raises what the builders of requests raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import sapwood
from sapwood.client import wire
from sapwood.client.values import Prompt
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import FakeDaemon, done, each

# What each kind of field refuses: a value, what is raised, and how the words go on after its name.
Wrong = list[tuple[Any, type[Exception], str]]
OTHER_FLAGS: list[Any] = [1, "yes", []]
FLAG: Wrong = [(it, TypeError, " must be True or False") for it in OTHER_FLAGS]
NUMBER: Wrong = [
    *((it, TypeError, " must be a number") for it in ("x", True, 1j, [1.0], np.zeros(2))),
    (10**400, ValueError, " is too large"),
]
INTEGER: Wrong = [
    *((it, TypeError, " must be an integer") for it in ("1", 1.0, True, [1], Fraction(1))),
    (-1, ValueError, r" must be in \[0, 2\*\*32\)"),
    (1 << 32, ValueError, r" must be in \[0, 2\*\*32\)"),
]
TEXT: Wrong = [
    *((it, TypeError, " must be a string") for it in (b"x", 7, [{"type": "text", "text": "hi"}])),
    ("x\ud800", ValueError, " has half a surrogate pair at 1"),
]
IDS: Wrong = [
    *((it, TypeError, " must be a list") for it in (7, "7", b"7", {7: 7}, np.array(7))),
    ([3, "7"], TypeError, r"\[1\] must be an integer, not str"),
    ([3, True], TypeError, r"\[1\] must be an integer, not bool"),
    (np.array([0.5]), TypeError, r"\[0\] must be an integer"),
    (np.array([[3]]), TypeError, r"\[0\] must be an integer"),
    ([3, 4, -1], ValueError, r"\[2\] must be in"),
    (np.array([3, 1 << 32]), ValueError, r"\[1\] must be in"),
]
OPTIONS: Mapping[str, Wrong] = {
    "max_tokens": INTEGER,
    "candidates": INTEGER,
    "temperature": NUMBER,
    "top_k": INTEGER,
    "top_p": NUMBER,
    "min_p": NUMBER,
    "seed": [
        ("x", TypeError, " must be an integer, not str"),
        (-1, ValueError, r" must be in \[0, 2\*\*64\)"),
        (1 << 64, ValueError, r" must be in \[0, 2\*\*64\)"),
    ],
    "repetition_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "logit_bias": [
        ([7], TypeError, " must be a mapping, not list"),
        ({7: "x"}, TypeError, r"\[7\] must be a number, not str"),
        ({7: None}, TypeError, r"\[7\] must be a number, not None"),
    ],
    "top_logprobs": INTEGER,
    "prompt_logprobs": INTEGER,
    "stop": [
        (7, TypeError, " must be a list, not int"),
        (b"x", TypeError, " must be a list, not bytes"),
        (["x", 7], TypeError, r"\[1\] must be a string, not int"),
        (["\udfff"], ValueError, r"\[0\] has half"),
    ],
    "stop_token_ids": IDS,
    "ignore_eos": FLAG,
    "draft_tokens": INTEGER,
    "cache": [(it, TypeError, " must be a CacheOptions") for it in (False, {}, {"bypass": True})],
    "json_schema": [*TEXT, ({"type": object}, TypeError, " holds what JSON cannot say")],
    "regex": TEXT,
    "grammar": TEXT,
    "tool_choice": [
        (7, TypeError, " must be a string or a Tool"),
        ("any", ValueError, " must be 'auto', 'none', 'required' or a Tool"),
    ],
    "min_tokens": INTEGER,
    "thinking_tokens_max": INTEGER,
    "priority": [
        (2, TypeError, " must be a string, not int"),
        ("urgent", ValueError, " must be one of interactive, normal, batch"),
    ],
    "session": TEXT,
    "resumable": [(1, TypeError, " must be True or False, not int")],
    "deadline_policy": [
        (True, TypeError, " must be a string, not bool"),
        ("late", ValueError, " must be one of try, early"),
    ],
}
MESSAGE: Mapping[str, Wrong] = {
    "role": [*TEXT, (None, TypeError, " must be a string, not None")],
    "content": [*TEXT, (None, TypeError, " must be a string, not None")],
    "thinking": TEXT,
    "tool_calls": [
        (7, TypeError, " must be a list"),
        ([{"name": "f", "arguments": {}}], TypeError, r"\[0\] must be a ToolCall, not dict"),
        ([sapwood.ToolCall(7, {})], TypeError, r"\[0\].name must be a string"),  # type: ignore[arg-type]
        ([sapwood.ToolCall("f", {}, 7)], TypeError, r"\[0\].id must be a string"),  # type: ignore[arg-type]
        ([sapwood.ToolCall("f", "{}")], TypeError, r"\[0\].arguments must be a mapping"),  # type: ignore[arg-type]
        ([sapwood.ToolCall("f", {"x": {1}})], TypeError, r"\[0\].arguments holds what JSON"),
        ([sapwood.ToolCall("f", {"x": np.nan})], ValueError, r"\[0\].arguments holds what JSON"),
    ],
    "tool_name": TEXT,
    "tool_call_id": TEXT,
    "name": TEXT,
}
TOOL: Mapping[str, Wrong] = {
    "name": TEXT,
    "description": TEXT,
    "parameters": [
        ("{}", TypeError, " must be a mapping, not str"),
        ({"type": object}, TypeError, " holds what JSON cannot say"),
    ],
}


def flat(table: Mapping[str, Wrong]) -> list[Any]:
    return [
        pytest.param(name, value, kind, words, id=f"{name}={type(value).__name__}-{i}")
        for name, wrong in table.items()
        for i, (value, kind, words) in enumerate(wrong)
    ]


def test_every_field_is_tried() -> None:
    assert OPTIONS.keys() == sapwood.GenerateOptions.__annotations__.keys()
    assert MESSAGE.keys() == {field.name for field in fields(sapwood.Message)}
    assert TOOL.keys() == {field.name for field in fields(sapwood.Tool)}


def ask(prompt: Any, **options: Any) -> Any:
    return wire.generate_request(prompt, options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "value", "kind", "words"), flat(OPTIONS))
def test_an_option(option: str, value: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{option}{words}"):
        ask("hello", **{option: value})


def test_two_constraints() -> None:
    with pytest.raises(TypeError, match=r"^generate\(\) takes one of json_schema, regex"):
        ask("hello", json_schema={}, regex="a")


def test_constraints_and_choices_as_they_are_sent() -> None:
    assert ask("hello", json_schema={"type": "null"}).json_schema == '{"type": "null"}'
    assert ask("hello", json_schema="true").json_schema == "true"
    assert ask("hello", regex="a+").WhichOneof("constraint") == "regex"
    for choice in (None, "auto", "none", "required", sapwood.Tool("f")):
        sent = ask("hello", tool_choice=choice)
        assert sent.HasField("tool_choice") == (choice is not None)
    assert sent.tool_choice.name == "f"
    assert ask("hello", tool_choice="required").tool_choice.mode == 3


def test_a_key_of_logit_bias() -> None:
    for key, kind in (("7", TypeError), (True, TypeError), (-1, ValueError), (1 << 32, ValueError)):
        with pytest.raises(kind, match=r"^a key of logit_bias must be"):
            ask("hello", logit_bias={key: 1.0})


@pytest.mark.parametrize("field", [field.name for field in fields(sapwood.CacheOptions)])
def test_a_field_of_the_cache_options(field: str) -> None:
    with pytest.raises(TypeError, match=f"^cache.{field} must be True or False, not str"):
        ask("hello", cache=sapwood.CacheOptions(**{field: "no"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value", "kind", "words"), flat(MESSAGE))
def test_a_field_of_a_message(field: str, value: Any, kind: type[Exception], words: str) -> None:
    given = {"role": "user", "content": "hi", field: value}
    for message in (given, sapwood.Message(**given)):
        for build in (ask, wire.tokenize_request):
            with pytest.raises(kind, match=rf"^messages\[1\].{field}{words}"):
                build([{"role": "user", "content": "hi"}, message])


@pytest.mark.parametrize(("field", "value", "kind", "words"), flat(TOOL))
def test_a_field_of_a_tool(field: str, value: Any, kind: type[Exception], words: str) -> None:
    tools = [sapwood.Tool("f"), sapwood.Tool(**{"name": "g", field: value})]
    with pytest.raises(kind, match=rf"^tools\[1\].{field}{words}"):
        ask(sapwood.Conversation([sapwood.Message("user", "hi")], tools))


NO_PROMPTS: list[Any] = [None, 7, 1.5, b"x", {}]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        *((it, "prompt must be text, token ids, messages") for it in NO_PROMPTS),
        (sapwood.Message("user", "hi"), "prompt must be text, token ids, messages"),
        (["x"], r"prompt\[0\] must be an integer, not str"),
        ([7, sapwood.Message("user", "hi")], r"prompt\[1\] must be an integer, not Message"),
        ([sapwood.Message("user", "hi"), 7], r"messages\[1\] must be a Message or a mapping"),
        (sapwood.Conversation("hi"), "messages must be a list, not str"),  # type: ignore[arg-type]
        (sapwood.Conversation([], "f"), "tools must be a list, not str"),  # type: ignore[arg-type]
        (sapwood.Conversation([], [{}]), r"tools\[0\] must be a Tool"),  # type: ignore[list-item]
        (sapwood.Conversation([], (), 1), "thinking must be True or False"),  # type: ignore[arg-type]
        ([{"role": "user"}], r"messages\[0\] lacks 'content'"),
        ([{"content": "hi"}], r"messages\[0\] lacks 'role'"),
        ([{"role": "user", "content": "hi", "who": "x"}], r"messages\[0\] has no field 'who'"),
    ],
)
def test_a_prompt(prompt: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"^{words}"):
        ask(prompt)


def test_ids_are_no_prompt_to_tokenize() -> None:
    with pytest.raises(TypeError, match=r"^prompt must be text or messages, not list"):
        wire.tokenize_request([7])  # type: ignore[list-item]


def test_half_a_surrogate_pair_in_text() -> None:
    for build in (ask, wire.tokenize_request):
        with pytest.raises(
            ValueError, match=r"^prompt has half a surrogate pair at 2, which UTF-8"
        ):
            build("hi\udc80")


@pytest.mark.parametrize(("value", "kind", "words"), [*IDS, (None, TypeError, " must be a list")])
def test_ids_to_detokenize(value: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^token_ids{words}"):
        wire.detokenize_request(value)


@pytest.mark.parametrize(("value", "kind", "words"), FLAG)
def test_a_flag_of_a_tree(value: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^include_tokens{words}"):
        wire.describe_tree_request(value)


@pytest.mark.parametrize(
    ("value", "kind", "words"), [*NUMBER, (np.nan, ValueError, " must not be NaN")]
)
def test_a_timeout(value: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^timeout{words}"):
        wire.deadline_s(value)


def test_numbers_of_other_kinds_are_taken() -> None:
    kinds: dict[str, Any] = {
        "max_tokens": np.uint16(7),
        "temperature": np.float32(0.5),
        "top_p": Fraction(1, 2),
        "top_k": np.int64(3),
        "presence_penalty": 1,
        "logit_bias": {np.int32(7): np.float64(2)},
        "stop": ("a",),
        "stop_token_ids": np.array([8, 9], np.uint32),
    }
    plain: dict[str, Any] = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "presence_penalty": 1.0,
        "logit_bias": {7: 2.0},
        "stop": ["a"],
        "stop_token_ids": [8, 9],
    }
    assert ask("hello", **kinds) == ask("hello", **plain)
    nothing: dict[str, Any] = dict.fromkeys(OPTIONS)
    assert ask("hello", **nothing) == ask("hello")


def test_ids_come_from_whatever_gives_integers() -> None:
    """To type checkers too: this list is one of `Prompt`, without a cast."""
    prompts: list[Prompt] = [[2, 7], (2, 7), range(2, 12, 5), iter([2, 7]), np.array([2, 7])]
    assert [list(ask(prompt).token_ids.ids) for prompt in prompts] == [[2, 7]] * 5
    empty: Prompt = np.array([])
    assert ask(empty).WhichOneof("prompt") == "token_ids"


@pytest.mark.anyio
async def test_both_clients_refuse_before_anything_is_sent(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    async with connect(address) as opened:
        client: Any = opened
        with pytest.raises(ValueError, match=r"^seed must be in"):
            client.generate("hello", seed=-1)
        with pytest.raises(TypeError, match=r"^prompt must be text"):
            client.generate(None)
        with pytest.raises(TypeError, match=r"^timeout must be a number"):
            client.generate("hello", timeout="x")
        with pytest.raises(TypeError, match=r"^prompt must be text or messages"):
            await done(client.tokenize([7]))
        with pytest.raises(ValueError, match=r"^token_ids\[0\] must be in"):
            await done(client.detokenize([-1]))
        with pytest.raises(TypeError, match=r"^include_tokens must be"):
            [node async for node in each(client.describe_tree(include_tokens="no"))]
        for call in (client.get_model, client.cache_stats, client.is_serving):
            with pytest.raises(ValueError, match=r"^timeout must not be NaN"):
                await done(call(timeout=float("nan")))
        assert daemon.requests == []
        for endless in (float("inf"), 1e30, None):
            assert await done(client.tokenize("hello", timeout=endless)) == [2, 7, 9]
