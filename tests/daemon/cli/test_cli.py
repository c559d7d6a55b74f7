"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sapwood import Conversation, Delta, Message
from sapwood.daemon.cli.main import main
from sapwood.daemon.log import log_to_stderr
from tests.chat import turns
from tests.daemon.fakes import ByteTokenizer, reply_to


def reply_text(prompt: list[int], count: int) -> str:
    return bytes(i - 3 for i in reply_to(prompt, count)).decode()


def test_generate_streams_text(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "hello", "--connect", address, "--max-tokens", "9"]) == 0
    expected = reply_text(ByteTokenizer().encode_messages(turns(("user", "hello"))), 9)
    assert capsys.readouterr().out == expected + "\n"


def test_generate_reads_standard_input(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags in ([], ["-"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
        assert main(["generate", *flags, "--raw", "--connect", address, "--max-tokens", "9"]) == 0
        expected = reply_text(ByteTokenizer().encode_text("hello"), 9)
        assert capsys.readouterr().out == expected + "\n"


def test_generate_json_holds_ids_and_usage(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--connect", address, "--max-tokens", "9", "--draft-tokens", "0", "--json"]
    assert main(["generate", "hello", *flags]) == 0
    reply = json.loads(capsys.readouterr().out)
    prompt = ByteTokenizer().encode_messages(turns(("user", "hello")))
    assert reply["token_ids"] == reply_to(prompt, 9)
    assert reply["finish"] == "length"
    assert reply["usage"]["completion_tokens"] == 9
    assert reply["usage"]["draft_tokens"] == 0
    assert "logprobs" not in reply
    flags += ["--top-logprobs", "2", "--presence-penalty", "0.5"]
    assert main(["generate", "hello", *flags]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert len(reply["logprobs"]) == len(reply["token_ids"])
    assert [len(token["alternatives"]) for token in reply["logprobs"]] == [2] * 9


def test_chat_keeps_the_conversation(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nmore\n/quit\nnever\n"))
    assert main(["chat", "--connect", address, "--max-tokens", "9", "--system", "be brief"]) == 0
    said = [("system", "be brief"), ("user", "hello")]
    first = reply_text(ByteTokenizer().encode_messages(turns(*said)), 9)
    said += [("assistant", first), ("user", "more")]
    second = reply_text(ByteTokenizer().encode_messages(turns(*said)), 9)
    out = capsys.readouterr().out
    assert first in out
    assert second in out
    assert out.count("9 tokens") == 2


@pytest.mark.parametrize(
    ("flags", "thinking"), [([], None), (["--thinking"], True), (["--no-thinking"], False)]
)
def test_a_system_message_and_thinking_go_along(
    flags: list[str],
    thinking: bool | None,
    address: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = ["--connect", address, "--max-tokens", "9", "--system", "be brief", *flags]
    said = turns(("system", "be brief"), ("user", "hello"))
    expected = reply_text(ByteTokenizer().encode_messages(said, thinking=thinking), 9)
    assert main(["generate", "hello", *common]) == 0
    assert capsys.readouterr().out == expected + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", *common]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--system", "x"], ["--thinking"], ["--no-thinking"]])
def test_raw_text_is_no_conversation(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "hello", "--raw", *flags]) == 2
    assert "--raw is none" in capsys.readouterr().err


def test_chat_shows_thinking_apart_and_does_not_send_it_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Conversation] = []

    class Talker:
        def __init__(self, *_args: Any, **_options: Any) -> None: ...
        def __enter__(self) -> Talker:
            return self

        def __exit__(self, *_args: Any) -> None: ...
        def get_model(self) -> Any:
            return SimpleNamespace(name="talker")

        @contextmanager
        def generate(self, prompt: Conversation, **_options: Any) -> Iterator[Iterator[Delta]]:
            sent.append(Conversation(list(prompt.messages)))
            yield iter([Delta("", (1,), "hm"), Delta("yes", (2,), " so"), Delta(" sir", (3,))])

    monkeypatch.setattr("sapwood.daemon.cli.client_commands.Client", Talker)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert main(["chat"]) == 0
    assert capsys.readouterr().out.count("hm so\nyes sir") == 2
    assert sent[1].messages == [
        Message("user", "a"),
        Message("assistant", "yes sir"),
        Message("user", "b"),
    ]


def test_status_and_tree(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "hello", "--connect", address, "--max-tokens", "3"]) == 0
    assert main(["status", "--connect", address]) == 0
    out = capsys.readouterr().out
    for expected in (address, "serving", "fake-drafter", "4096 tokens", "1.0 GiB", "nodes"):
        assert expected in out
    assert main(["tree", "--connect", address]) == 0
    assert "[0, " in capsys.readouterr().out


def test_the_environment_names_the_daemon(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAPWOOD_ADDRESS", address)
    assert main(["status"]) == 0
    assert address in capsys.readouterr().out


def test_a_refused_request_is_1_with_one_line(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", "--connect", address, "--temperature", "-1"]) == 1
    err = capsys.readouterr().err
    assert err == "sapwood: BAD_SAMPLING: temperature must be finite and at least 0\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_text_that_is_not_utf8_is_2_with_one_line(
    errors: str, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments always, standard input in some locales, bring such bytes in as surrogates."""
    for argv in (["generate", "a\udcff"], ["generate"], ["chat"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8", errors))
        assert main([*argv, "--connect", address]) == 2
        assert capsys.readouterr().err == "sapwood: the text is not UTF-8\n"


def test_nobody_there_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--connect", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("sapwood: UNAVAILABLE: ")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nope"],
        ["convert"],
        ["convert", "source"],
        ["check", "one", "two"],
        ["bench"],
        ["status", "--wrong"],
        ["generate", "x", "--max-tokens", "-1"],
        ["generate", "x", "--seed", str(1 << 64)],
        ["generate", "x", "--temperature", "warm"],
        ["generate", "x", "--timeout", "nan"],
    ],
)
def test_bad_usage_is_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["serve", "--numerics", "strict"], "numerics: strict is not built yet"),
        (["serve", "--listen", "0.0.0.0:1"], "needs --tls-cert and --tls-key, and --tokens or"),
        (["serve", "--memory", "lots"], "not a size"),
        (["serve", "--draft-depth", "12"], "neither auto nor 0 to 8"),
        (["generate", "x", "--top-logprobs", "2"], "--top-logprobs needs --json"),
        (["status", "--connect", "nowhere"], "neither unix:PATH nor HOST:PORT"),
    ],
)
def test_values_that_cannot_be_used_are_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("sapwood: ")
    assert says in err
    assert err.count("\n") == 1


def test_ctrl_c_cancels_the_reply_and_not_the_conversation(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def interrupted(console: Console, *texts: str, **_options: object) -> None:
        shown.extend(texts)
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "out", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nmore\n/quit\n"))
    assert main(["chat", "--connect", address, "--max-tokens", "9"]) == 0
    out = capsys.readouterr().out
    assert out.count("cancelled") == 1
    assert out.count("9 tokens") == 1


def test_serve_shows_what_a_model_leaves_out_and_nobody_elses_chatter() -> None:
    ours = logging.getLogger("sapwood.model")
    try:
        log_to_stderr()
        assert logging.getLogger("sapwood.model.checkpoint.weights").isEnabledFor(logging.INFO)
        assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
    finally:
        ours.setLevel(logging.NOTSET)
