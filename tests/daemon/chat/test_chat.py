"""One reply after another: what stays in the conversation, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from sapwood import (
    Delta,
    FinishReason,
    Message,
    ResourceExhausted,
    SapwoodError,
    Tool,
    ToolCall,
    Unavailable,
)
from sapwood.client.errors import Details
from sapwood.daemon.chat.chat import HeldChat
from sapwood.daemon.chat.commands import FAREWELLS, completed, read_command
from sapwood.daemon.chat.run import step
from sapwood.daemon.chat.settings import OPTIONS
from tests.daemon.chat.house import CONTEXT, Scripted, Silent, chat_with, finish, said

GONE = Unavailable(grpc.StatusCode.UNAVAILABLE, "last error: connect: Connection refused (111)")
BUSY = ResourceExhausted(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", Details("QUEUE_FULL")
)
CALL = ToolCall("weather", {"city": "Paris"}, "call_1")


def user(*texts: str) -> list[Message]:
    return [Message("user", text) for text in texts]


def lines(held: HeldChat, around: Silent, *texts: str) -> list[str]:
    """What is noted of these lines."""
    around.notes.clear()
    assert all(step(held, around, text) for text in texts)
    return around.notes


def test_a_conversation_goes_along() -> None:
    held, client, around = chat_with(said("b", thinking="hm"), said("d"))
    lines(held, around, "/system be brief", "a", "c")
    assert client.asked[1].messages == [
        Message("system", "be brief"), *user("a"), Message("assistant", "b"), *user("c")
    ]  # fmt: skip
    assert held.last_thought == "hm"
    assert around.notes[-1] == (
        "5 tokens, 2.0 tokens/s, 2 of 3 drafts accepted, 4 of 10 prompt tokens cached"
    )


@pytest.mark.parametrize("error", [GONE, BUSY])
def test_an_error_takes_the_question_back_and_loses_nothing(error: SapwoodError) -> None:
    held, client, around = chat_with(said("b"), [error], said("d"))
    lines(held, around, "a", "c")
    assert held.talk.messages == [*user("a"), Message("assistant", "b")]
    assert len(around.complaints) == 1
    assert around.notes[-1] == "/retry asks again"
    lines(held, around, "/retry")
    assert client.asked[2] == client.asked[1]
    assert [message.content for message in held.talk.messages] == ["a", "b", "c", "d"]


def test_who_finds_no_daemon_is_told_how_to_start_one() -> None:
    held, _, around = chat_with([GONE])
    lines(held, around, "a")
    assert around.complaints == [
        "UNAVAILABLE: no daemon answers at unix:/toy; `sapwood serve` starts one, "
        "--connect names another"
    ]


def test_what_came_before_an_error_or_ctrl_c_stays() -> None:
    for end, note in ((BUSY, "cut by the error"), (KeyboardInterrupt(), "stopped")):
        held, _, around = chat_with([Delta("half", (1,)), end], said("whole"))
        assert lines(held, around, "a") == [note]
        assert held.talk.messages == [*user("a"), Message("assistant", "half")]
        lines(held, around, "/retry")
        assert held.talk.messages == [*user("a"), Message("assistant", "whole")]


def test_ctrl_c_before_anything_came_takes_the_question_back() -> None:
    held, _, around = chat_with([KeyboardInterrupt()])
    assert lines(held, around, "a") == ["stopped; /retry asks again"]
    assert held.talk.messages == []


def test_an_empty_reply_takes_the_question_back_and_says_so() -> None:
    held, client, around = chat_with([finish()], said("b"))
    assert lines(held, around, "a")[1:] == ["the reply is empty; /retry asks again"]
    assert held.talk.messages == []
    lines(held, around, "/retry")
    assert client.asked[1] == client.asked[0]


def test_what_the_client_refuses_is_said() -> None:
    held, client, around = chat_with()

    def refuse(*_args: object, **_options: object) -> None:
        raise ValueError("prompt is not UTF-8")

    client.generate = refuse  # type: ignore[method-assign,assignment]
    lines(held, around, "a")
    assert around.complaints == ["prompt is not UTF-8"]
    assert held.talk.messages == [] and held.talk.unanswered == user("a")[0]


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (finish(FinishReason.LENGTH), "cut after 5 tokens (/set max_tokens N)"),
        (
            finish(FinishReason.LENGTH, prompt=CONTEXT - 5),
            "cut: the context of 100 tokens is full (/clear, /save)",
        ),
        (finish(FinishReason.STOP_SEQUENCE, "END"), "ended by the stop string 'END'"),
    ],
)
def test_a_reply_that_was_cut_says_why(end: object, note: str) -> None:
    held, _, around = chat_with([Delta("x", (1,)), end])  # type: ignore[list-item]
    assert lines(held, around, "a")[1:] == [note]


def test_settings_go_along_and_bad_ones_are_said() -> None:
    held, client, around = chat_with(said("b"), said("d"))
    lines(held, around, "/set temperature 0.5", "/set max-tokens 7", "/set stop END", "a")
    assert client.options[0] == {"temperature": 0.5, "max_tokens": 7, "stop": ["END"]}
    lines(held, around, "/set temperature", "/set temprature 1", "/set top_k -1", "/nope", "c")
    assert client.options[1] == {"max_tokens": 7, "stop": ["END"]}
    assert around.complaints == [
        "there is no setting 'temprature' (did you mean temperature?)",
        "top_k: '-1' is no 32-bit number",
        "there is no command /nope; /help lists them",
    ]


def test_a_path_is_a_message_and_a_near_miss_is_told() -> None:
    held, client, around = chat_with(said("b"))
    lines(held, around, "/etc/passwd is what?", "/hlp")
    assert client.asked[0].messages == user("/etc/passwd is what?")
    assert around.complaints == ["there is no command /hlp (did you mean /help?); /help lists them"]


def test_calls_are_answered_one_after_another() -> None:
    other = ToolCall("time", {})
    held, client, around = chat_with(said("", tool_calls=(CALL, other), thinking="hm"), said("b"))
    lines(held, around, "a")
    assert held.talk.open_call == CALL
    lines(held, around, "rain")
    assert held.talk.open_call == other and len(client.asked) == 1
    lines(held, around, "noon")
    assert held.talk.open_call is None
    assert client.asked[1].messages == [
        *user("a"),
        Message("assistant", "", "hm", (CALL, other)),
        Message("tool", "rain", tool_name="weather", tool_call_id="call_1"),
        Message("tool", "noon", tool_name="time"),
    ]


def test_forks_go_on_apart() -> None:
    held, _, around = chat_with(said("b"), said("d"), said("f"))
    lines(held, around, "a", "/fork other", "c", "/fork main", "e")
    assert [message.content for message in held.talk.messages] == ["a", "b", "e", "f"]
    assert lines(held, around, "/fork") == ["* main  4 messages", "  other  4 messages"]
    lines(held, around, "/fork other")
    assert [message.content for message in held.talk.messages] == ["a", "b", "c", "d"]


def test_a_conversation_is_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    held, _, around = chat_with(said("", tool_calls=(CALL,)), said("b"))
    held.talk.tools = (Tool("weather", "of a place", {"type": "object"}),)
    lines(held, around, "/set seed 7", "/think on", "/system s", "a", "rain", f"/save {path}")
    assert path.stat().st_mode & 0o777 == 0o600
    other, _, silent = chat_with()
    lines(other, silent, f"/load {path}")
    assert other.talk == held.talk
    assert [left.name for left in tmp_path.iterdir()] == ["chat.json"]


def test_what_is_no_saved_conversation_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    held, _, around = chat_with(said("b"))
    lines(held, around, "a", f"/save {path}")
    whole, before = json.loads(path.read_text()), held.talk.copy()
    changes: list[dict[str, object]] = [
        {"sapwood_chat": 2}, {"system": 1}, {"thinking": "on"}, {"tools": [1]}, {"options": []},
        {"options": {"seed": "x"}}, {"messages": [{}]}, {"messages": [{"role": "system"}]},
    ]  # fmt: skip
    texts = ["", "[]", "{", *(json.dumps(whole | change) for change in changes)]
    for text in texts:
        path.write_text(text)
        lines(held, around, f"/load {path}")
    lines(held, around, f"/load {tmp_path}", "/load", "/save", f"/save {tmp_path}/no/such")
    assert len(around.complaints) == len(texts) + 4
    assert held.talk == before


def test_clear_keeps_what_is_set() -> None:
    held, client, around = chat_with(said("b"), said("d"))
    lines(held, around, "/system s", "/set seed 1", "a", "/clear", "c")
    assert client.asked[1].messages == [Message("system", "s"), *user("c")]
    assert client.options[1] == {"seed": 1}
    lines(held, around, "/clear", "/retry")
    assert around.complaints == ["there is nothing to ask again"]


def test_what_is_set_can_be_seen(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps({"type": "function", "function": {"name": "now"}}))
    held, _, around = chat_with(said("b", thinking="hm so"))
    assert lines(held, around, f"/tools {tools}") == ["now  "]
    lines(held, around, "/think off", "a")
    assert lines(held, around, "/show thinking", "/show messages") == [
        "hm so", "user: a", "assistant: b"
    ]  # fmt: skip
    assert lines(held, around, "/show")[0] == "branch main, 2 messages, think off"
    assert lines(held, around, "/tools off") == ["there are no tools"]
    assert lines(held, around, "/show model")[0] == "toy, family, not quantised"
    assert len(lines(held, around, "/help")) > 11


def test_only_a_farewell_leaves() -> None:
    held, _, around = chat_with()
    assert not any(step(held, around, f"/{word}") for word in FAREWELLS)
    assert read_command("/bye now") == ("bye", "now")
    assert read_command("a /bye") is None


def test_commands_and_their_words_are_completed() -> None:
    held, client, _ = chat_with()
    assert isinstance(client, Scripted)
    assert completed("/se", held) == ("/se", ["/set"])
    assert completed("/b", held) == ("/b", ["/bye"])
    assert completed("/set ", held) == ("", list(OPTIONS))
    assert completed("/think o", held) == ("o", ["on", "off"])
    assert completed("/fork m", held) == ("m", ["main"])
    assert completed("say /se", held) == ("", [])
