"""What a conversation on the wire becomes, and what of it is refused, by field (R4)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sapwood.daemon.rpc.conversation import conversation_of
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.v1 import prompt_pb2 as pb

LIMITS = Limits()
ALL = frozenset({"tools", "tool_calls", "enable_thinking", "reasoning", "name of user"})

USER: dict[str, Any] = {"role": "user", "content": "hi"}
CALLS: list[dict[str, Any]] = [
    {"name": "f", "arguments": '{"b": [1, {"c": null}], "a": "x"}'},
    {"name": "g"},
    {"name": "f", "arguments": "{}"},
]
CALLING: dict[str, Any] = {"role": "assistant", "thinking": "hm", "tool_calls": CALLS}


def result(name: str, content: str = "1") -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_name": name}


def messages_of(*messages: dict[str, Any], **fields: Any) -> pb.Messages:
    return pb.Messages(messages=[pb.Message(**message) for message in messages], **fields)


def test_a_conversation_has_the_form_that_templates_take() -> None:
    tools = [{"name": "f", "description": "d", "parameters": '{"type": "object"}'}, {"name": "g"}]
    given = messages_of(USER, CALLING, result("g"), result("f"), result("f", "2"), tools=tools)
    said = conversation_of(given, ALL, LIMITS)
    functions = [
        {"name": "f", "arguments": {"b": [1, {"c": None}], "a": "x"}},
        {"name": "g", "arguments": {}},
        {"name": "f", "arguments": {}},
    ]
    calls = [
        {"id": f"call_{i}", "type": "function", "function": function}
        for i, function in enumerate(functions)
    ]
    reasoning = {"reasoning": "hm", "reasoning_content": "hm"}
    assert said.messages == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": calls} | reasoning,
        {"role": "tool", "content": "1", "name": "g", "tool_call_id": "call_1"},
        {"role": "tool", "content": "1", "name": "f", "tool_call_id": "call_0"},
        {"role": "tool", "content": "2", "name": "f", "tool_call_id": "call_2"},
    ]
    assert said.tools == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
        },
        {"type": "function", "function": {"name": "g", "description": "", "parameters": {}}},
    ]
    assert said.thinking is None


def answer(id: str, name: str = "") -> dict[str, Any]:
    return {"role": "tool", "content": "1", "tool_call_id": id, "tool_name": name}


def calling(*ids: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"name": "f", "id": id} for id in ids]}


def test_a_result_answers_the_call_of_its_id() -> None:
    given = messages_of(USER, calling("a", "b"), answer("b"), answer("a", "f"))
    said = conversation_of(given, ALL, LIMITS)
    assert [call["id"] for call in said.messages[1]["tool_calls"]] == ["a", "b"]
    assert [(m["name"], m["tool_call_id"]) for m in said.messages[2:]] == [("f", "b"), ("f", "a")]


def test_calls_without_ids_have_stand_ins_that_results_may_name() -> None:
    given = messages_of(USER, calling("", "x" * 128), answer("x" * 128), answer("call_0"))
    said = conversation_of(given, ALL, LIMITS)
    assert [m["tool_call_id"] for m in said.messages[2:]] == ["x" * 128, "call_0"]


def test_a_name_is_the_templates_where_it_has_a_place() -> None:
    named = USER | {"name": "Ada"}
    assert conversation_of(messages_of(named), ALL, LIMITS).messages == [named]
    with pytest.raises(Refused) as caught:
        conversation_of(messages_of(named), ALL - {"name of user"}, LIMITS)
    assert caught.value.reason is Reason.UNSUPPORTED
    assert caught.value.field == "messages.messages[0].name"


def test_thinking_is_asked_for_only_where_the_client_said_so() -> None:
    for thinking in (True, False):
        given = messages_of(USER, thinking=thinking)
        assert conversation_of(given, ALL, LIMITS).thinking is thinking


BAD: dict[str, tuple[pb.Messages, str]] = {
    "role": (messages_of(USER, {"role": "function"}), "messages[1].role"),
    "a user who thinks": (messages_of(USER | {"thinking": "x"}), "messages[0].thinking"),
    "a user who calls": (messages_of(USER | {"tool_calls": CALLS}), "messages[0].tool_calls"),
    "a user with a tool's name": (messages_of(USER | {"tool_name": "f"}), "messages[0].tool_name"),
    "a result of nothing": (messages_of(USER, result("f")), "messages[1].tool_name"),
    "a result without a name": (messages_of(CALLING, result("")), "messages[1].tool_name"),
    "a result of another tool": (messages_of(CALLING, result("h")), "messages[1].tool_name"),
    "a second result": (
        messages_of(CALLING, result("g"), result("g")),
        "messages[2].tool_name",
    ),
    "a late result": (messages_of(CALLING, USER, result("f")), "messages[2].tool_name"),
    "a user with a result's id": (
        messages_of(USER | {"tool_call_id": "a"}),
        "messages[0].tool_call_id",
    ),
    "a result of an unknown id": (
        messages_of(calling("a"), answer("b")),
        "messages[1].tool_call_id",
    ),
    "a second result of an id": (
        messages_of(calling("a", "b"), answer("a"), answer("a")),
        "messages[2].tool_call_id",
    ),
    "an id of another tool's call": (
        messages_of(calling("a"), answer("a", "g")),
        "messages[1].tool_call_id",
    ),
    "two calls of one id": (
        messages_of(USER, calling("a", "a")),
        "messages[1].tool_calls[1].id",
    ),
    "a long id": (messages_of(USER, calling("x" * 129)), "messages[1].tool_calls[0].id"),
    "a tool's other name": (messages_of(USER, answer("") | {"name": "f"}), "messages[1].name"),
    "a call of nothing": (
        messages_of({"role": "assistant", "tool_calls": [{}]}),
        "messages[0].tool_calls[0].name",
    ),
    "a tool without a name": (messages_of(USER, tools=[{}]), "tools[0].name"),
    "129 tools": (messages_of(USER, tools=[{"name": "f"}] * 129), "tools"),
    "129 calls": (
        messages_of({"role": "assistant", "tool_calls": [{"name": "f"}] * 129}),
        "messages[0].tool_calls",
    ),
    "4097 messages": (messages_of(*[USER] * 4097), "messages"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_make_sense_is_a_bad_request(case: str) -> None:
    given, field = BAD[case]
    with pytest.raises(Refused) as caught:
        conversation_of(given, ALL, LIMITS)
    assert (caught.value.reason, caught.value.field) == (Reason.BAD_REQUEST, f"messages.{field}")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "1", "null", '"x"', '{"a": NaN}', '{"a": Infinity}', "{" + '"a":[' * 100_000, "\0"],
)
def test_what_is_no_json_object_is_a_bad_request(text: str) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": text}]}
    for given, field in (
        (messages_of(USER, tools=[{"name": "f", "parameters": text}]), "tools[0].parameters"),
        (messages_of(call), "messages[0].tool_calls[0].arguments"),
    ):
        with pytest.raises(Refused) as caught:
            conversation_of(given, ALL, LIMITS)
        assert (caught.value.reason, caught.value.field) == (
            Reason.BAD_REQUEST,
            f"messages.{field}",
        )
        assert len(caught.value.message) < 100


@pytest.mark.parametrize(
    ("feature", "given", "field"),
    [
        ("tools", messages_of(USER, tools=[{"name": "f"}]), "tools"),
        ("enable_thinking", messages_of(USER, thinking=True), "thinking"),
        ("tool_calls", messages_of(CALLING), "messages[0].tool_calls"),
        ("reasoning", messages_of({"role": "assistant", "thinking": "x"}), "messages[0].thinking"),
    ],
)
def test_what_the_template_has_no_place_for_is_unsupported(
    feature: str, given: pb.Messages, field: str
) -> None:
    """It would be dropped without a word."""
    conversation_of(given, ALL, LIMITS)
    with pytest.raises(Refused) as caught:
        conversation_of(given, ALL - {feature}, LIMITS)
    assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, f"messages.{field}")


def test_no_thinking_needs_no_place_in_the_template() -> None:
    assert conversation_of(messages_of(USER, thinking=False), frozenset(), LIMITS).messages


def test_json_is_kept_to_the_letter() -> None:
    value = {"é": "\u2028<turn|>", "n": [1, 1.5, True, None]}
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": json.dumps(value)}]}
    said = conversation_of(messages_of(call), ALL, LIMITS)
    assert said.messages[0]["tool_calls"][0]["function"]["arguments"] == value


def test_a_model_without_a_template_supports_no_messages() -> None:
    """It is no fault of what they say."""
    for given, said in (
        (messages_of(USER), "without tools"),
        (messages_of(USER, tools=[{"name": "f"}]), "with tools"),
    ):
        with pytest.raises(Refused, match=f"has no chat template for messages {said}") as caught:
            conversation_of(given, None, LIMITS)
        assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, "messages")


def test_a_developer_may_speak() -> None:
    """What the template makes of the role is its affair."""
    said = conversation_of(messages_of({"role": "developer", "content": "x"}, USER), ALL, LIMITS)
    assert said.messages[0] == {"role": "developer", "content": "x"}
    with pytest.raises(Refused, match="only role assistant has thinking"):
        conversation_of(messages_of({"role": "developer", "thinking": "x"}), ALL, LIMITS)


def test_json_has_a_bounded_number_of_values_in_all_of_a_conversation() -> None:
    """4 MiB of empty lists take half a second in one call that holds the GIL, and 100 MB."""
    limits = Limits(json_items_max=8)
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a": [1, 2]}'}]}
    conversation_of(messages_of(call, call), ALL, limits)
    tools = [{"name": "f", "parameters": '{"a": [[], []]}'}]
    for given, field in (
        (messages_of(call, call, call), "messages.messages[2].tool_calls[0].arguments"),
        (messages_of(call, call, tools=tools), "messages.tools[0].parameters"),
    ):
        with pytest.raises(Refused, match="at most 8") as caught:
            conversation_of(given, ALL, limits)
        assert (caught.value.reason, caught.value.field) == (Reason.BAD_REQUEST, field)
