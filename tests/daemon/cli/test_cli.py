"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest

from sapwood.daemon.chat.plain_reply import PlainReply
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


def test_chat_keeps_the_conversation(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nmore\n/quit\nnever\n"))
    assert main(["chat", "--connect", address, "--max-tokens", "9", "--system", "be brief"]) == 0
    said = [("system", "be brief"), ("user", "hello")]
    first = reply_text(ByteTokenizer().encode_messages(turns(*said)), 9)
    said += [("assistant", first), ("user", "more")]
    second = reply_text(ByteTokenizer().encode_messages(turns(*said)), 9)
    assert capsys.readouterr().out == f"{first}\n{second}\n"


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


def test_chat_between_pipes_goes_on_behind_an_error_and_says_so_at_the_end(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = '/set temperature -1\na\n/set temperature 0\n"""b\nc\n"""\n'
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", "--connect", address, "--max-tokens", "9"]) == 1
    captured = capsys.readouterr()
    prompt = ByteTokenizer().encode_messages(turns(("user", "b\nc")))
    assert captured.out == reply_text(prompt, 9) + "\n"
    assert "sapwood: BAD_SAMPLING: temperature must be finite" in captured.err
    assert "cut after 9 tokens" in captured.err


def test_status_and_tree(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "hello", "--connect", address, "--max-tokens", "3"]) == 0
    assert main(["status", "--connect", address]) == 0
    out = capsys.readouterr().out
    for expected in (address, "serving", "fake-drafter", "4096 tokens", "1.0 GiB", "nodes"):
        assert expected in out
    assert main(["status", "--json", "--connect", address]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["address"], told["serving"]) == (address, True)
    assert told["model"]["context_tokens_max"] == 4096
    assert told["cache"]["stored"]["device"]["full"] > 0
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
    said = "no daemon answers at 127.0.0.1:1; `sapwood serve` starts one, --connect names another"
    assert capsys.readouterr().err == f"sapwood: UNAVAILABLE: {said}\n"


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
def test_bad_usage_is_2_with_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert re.fullmatch("sapwood: [^\n]+ --help`[^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["generat", "x"], "there is no command 'generat' (did you mean generate?); `sapwood --"),
        (["generate", "x", "--max-tokns", "3"], "generate: there is no flag --max-tokns (did you"),
        (["generate", "x", "--temprature=3"], "(did you mean --temperature?)"),
        (["pins", "all"], "pins: there is no place for 'all'"),
        (["generate", "x", "--seed", "y"], "generate: argument --seed: invalid 64-bit number"),
        (["token", "nw"], "token: argument COMMAND: invalid choice: 'nw'"),
    ],
)
def test_what_was_meant_is_said(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def test_help_leaves_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["serve", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 0
    assert "--draft-depth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["serve", "--numerics", "exact"], "numerics: 'exact' is not one of fast, strict"),
        (["serve", "--listen", "0.0.0.0:1"], "needs --tls-cert and --tls-key, and --tokens or"),
        (["serve", "--memory", "lots"], "not a size"),
        (["serve", "--draft-depth", "12"], "neither auto nor 0 to 8"),
        (
            ["generate", "x", "--top-logprobs", "2"],
            "--top-logprobs and --prompt-logprobs need --json",
        ),
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


def test_ctrl_c_ends_a_chat_between_pipes(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainReply, "show", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nmore\n"))
    assert main(["chat", "--connect", address, "--max-tokens", "9"]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "sapwood: interrupted\n")


def test_serve_shows_what_a_model_leaves_out_and_nobody_elses_chatter() -> None:
    ours = logging.getLogger("sapwood.model")
    try:
        log_to_stderr()
        assert logging.getLogger("sapwood.model.checkpoint.weights").isEnabledFor(logging.INFO)
        assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
    finally:
        ours.setLevel(logging.NOTSET)
