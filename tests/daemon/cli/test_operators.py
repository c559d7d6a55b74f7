"""The commands of operators, against a daemon on the fake device."""

from __future__ import annotations

import io
import json
import time
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from sapwood.daemon.cli import operator_commands
from sapwood.daemon.cli.main import main

LONG = "why is the sky blue " * 8


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_pins_are_made_listed_and_let_go(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ("--connect", address)
    assert out(capsys, "pins", *at) == "nothing is pinned\n"
    assert json.loads(out(capsys, "pins", "--json", *at)) == []
    first = out(capsys, "pin", "--system", "Be brief.", *at)
    monkeypatch.setattr("sys.stdin", io.StringIO(LONG))
    second = json.loads(out(capsys, "pin", "--raw", "--ttl", "1.5h", "--json", *at))
    id, tokens, _ = first.split(maxsplit=2)
    assert int(tokens) > 9 and "until" not in first
    assert second["tokens"] == 1 + len(LONG)
    ends = datetime.fromisoformat(second["expire_time"]).timestamp()
    assert time.time() + 5300 < ends < time.time() + 5500
    listed = out(capsys, "pins", *at).splitlines()
    assert listed[0] == first.strip() and "  until 2" in listed[1]
    again = json.loads(out(capsys, "pins", "--json", *at))[1]
    assert again | {"expire_time": second["expire_time"]} == second
    assert f"{second['bytes']} B" in listed[1]
    gone = out(capsys, "unpin", id, second["id"], *at).splitlines()
    assert gone == [f"{id}  unpinned", f"{second['id']}  unpinned"]
    assert main(["unpin", id, *at]) == 1
    assert "there is no such pin" in capsys.readouterr().err


def test_what_is_cleared_is_told(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--connect", address)
    out(capsys, "clear", *at)
    for last in "ab":
        out(capsys, "generate", "--raw", LONG + last, "--max-tokens", "2", *at)
    told = out(capsys, "evict", "--raw", LONG + "a", *at)
    assert told.endswith("freed\n") and not told.startswith("0 nodes")
    assert out(capsys, "evict", "--raw", LONG + "a", *at).startswith("0 nodes, 0 B freed")
    assert not out(capsys, "clear", *at).startswith("0 nodes")
    assert "0 nodes" in out(capsys, "tree", *at)


def test_a_tree_in_a_pipe_has_a_line_a_node_and_all_of_it(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    at = ("--connect", address)
    for last in "abcdefg":
        out(capsys, "generate", "--raw", LONG + last, "--max-tokens", "2", *at)
    pin = json.loads(out(capsys, "pin", "--raw", LONG, "--json", *at))
    nodes = json.loads(out(capsys, "tree", "--json", *at))["nodes"]
    lines = out(capsys, "tree", *at).splitlines()
    assert len(lines) == 1 + len(nodes) > 8
    assert all("steps old" in line and line == line.rstrip() for line in lines[1:])
    assert [line.endswith("pinned") for line in lines[1:]].count(True) == sum(
        node["pinned"] for node in nodes
    )
    (kept,) = [node for node in nodes if node["pinned"] and node["end"] == pin["tokens"]]
    assert set(kept["stored"]) == {"device"}
    assert set(kept["stored"]["device"]) == {"full", "sliding"}
    assert "token_ids" not in kept and kept["readers"] == kept["leases"] == 0
    out(capsys, "unpin", pin["id"], *at)


def test_a_tree_is_watched_until_somebody_has_seen_enough(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(operator_commands, "time", SimpleNamespace(sleep=sleep))
    assert main(["tree", "--watch", "0.5", "--json", "--connect", address]) == 130
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert slept == [0.5] * 3 and len(told) == 3
    slept.clear()
    assert main(["tree", "--watch", "--connect", address]) == 130
    assert slept == [2.0] * 3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["pin", "x", "--ttl", "soon"], "time like 90, 30m, 12h or 7d"),
        (["tree", "--watch", "0"], "number from 0.1 to 86400"),
        (["pin", "x", "--raw", "--system", "y"], "--raw is none"),
        (["evict", "x", "--raw", "--thinking"], "--raw is none"),
        (["unpin"], "PIN"),
    ],
)
def test_what_is_wrong_is_2(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert problem in capsys.readouterr().err
