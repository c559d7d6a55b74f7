"""`sapwood generate`: where its prompt comes from, and what it prints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sapwood import Delta, ToolCall
from sapwood.daemon.cli.client_commands import event_json
from sapwood.daemon.cli.main import main
from tests.chat import turns
from tests.daemon.cli.test_cli import reply_text
from tests.daemon.fakes import ByteTokenizer, reply_to

OPENAI = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


def prompt(text: str, **options: Any) -> list[int]:
    return ByteTokenizer().encode_messages(turns(("user", text)), **options)


def printed(address: str, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["generate", *argv, "--connect", address, "--max-tokens", "9"]) == 0
    return capsys.readouterr().out


def test_words_are_joined_also_around_flags(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = reply_text(prompt("what is  this"), 9) + "\n"
    assert printed(address, capsys, "what", "is ", "this") == expected
    assert printed(address, capsys, "what", "--seed", "1", "is ", "this") == expected


def test_files_come_before_words(
    address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "text"
    file.write_text("a river")
    monkeypatch.setattr("sys.stdin", io.StringIO("a lake"))
    flags = ["--file", str(file), "--file", "-"]
    expected = reply_text(prompt("a river\n\na lake\n\nsum it up"), 9) + "\n"
    assert printed(address, capsys, *flags, "sum", "it", "up") == expected
    assert printed(address, capsys, "--file", str(file)) == reply_text(prompt("a river"), 9) + "\n"


def test_a_reply_that_is_cut_says_so_beside_it(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["generate", "hi", "--connect", address, "--max-tokens", "5"]
    assert main(said) == 0
    text, told = capsys.readouterr()
    assert len(text) == 6 and told.startswith("sapwood: cut after 5 tokens: ")
    assert main([*said, "--stop", text[2]]) == 0
    assert capsys.readouterr() == (text[:2] + "\n", "")


def test_json_is_a_line_for_each_event(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(address, capsys, "hello", "--json", "--draft-tokens", "0").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events[:2]] == ["prefill", "delta"]
    deltas = [event for event in events if event["event"] == "delta"]
    assert [i for delta in deltas for i in delta["token_ids"]] == reply_to(prompt("hello"), 9)
    assert "".join(delta.get("text", "") for delta in deltas) == reply_text(prompt("hello"), 9)
    assert events[-1]["event"] == "finish" and events[-1]["reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 9
    assert events[-1]["usage"]["draft_tokens"] == 0
    assert not any("logprobs" in delta for delta in deltas)
    lines = printed(address, capsys, "hello", "--json", "--top-logprobs", "2").splitlines()
    tokens = [t for line in lines for t in json.loads(line).get("logprobs", ())]
    assert [len(token["alternatives"]) for token in tokens] == [2] * 9
    call = event_json(Delta("", (), tool_calls=(ToolCall("now", {"x": None}, "c"),)))
    calls = [{"name": "now", "arguments": {"x": None}, "id": "c"}]
    assert json.loads(json.dumps(call)) == {"event": "delta", "tool_calls": calls}


def test_tools_go_along(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([OPENAI, {"name": "later", "description": "then"}]))
    with_tools = printed(address, capsys, "hello", "--tools", str(file))
    assert with_tools != printed(address, capsys, "hello")


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": 1}]', '[{"name": "a", "parameters": 1}]'])
def test_files_that_are_no_tools_are_2(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tools.json"
    file.write_text(text)
    assert main(["generate", "hello", "--tools", str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"sapwood: {file}: ")


def test_files_that_cannot_be_read_are_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")
    for flag, name in (("--file", "none"), ("--file", "bytes"), ("--schema", "none")):
        assert main(["generate", "x", flag, str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith(f"sapwood: {tmp_path / name}: ")
