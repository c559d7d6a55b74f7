"""`generate --session` and `sessions`, against a daemon on the fake device."""

from __future__ import annotations

import json

import pytest

from sapwood.daemon.cli.main import main
from tests.daemon.cli.test_operators import out


def test_turns_of_a_session_are_made_listed_forked_cut_and_deleted(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--connect", address)
    for word in ("one", "two"):
        out(capsys, "generate", word, "--raw", "--session", "talk", "--max-tokens", "4", *at)
    listed = json.loads(out(capsys, "sessions", "--json", *at))
    (talk,) = [each for each in listed if each["name"] == "talk"]
    assert talk["tokens"] == len("one") + 1 + 4 + len("two") + 4 and not talk["busy"]
    assert out(capsys, "sessions", "talk", "--fork", "other", *at).startswith("other, 15 tokens")
    assert out(capsys, "sessions", "other", "--rollback", "8", *at).startswith("other, 8 tokens")
    assert out(capsys, "sessions", "talk", *at).startswith("talk, 15 tokens, until 2")
    for name in ("talk", "other"):
        assert out(capsys, "sessions", name, "--delete", *at) == ""
    assert main(["sessions", "talk", *at]) == 1
    assert "there is no such session" in capsys.readouterr().err
    assert main(["sessions", "--delete", *at]) == 2
    assert "need the name" in capsys.readouterr().err
