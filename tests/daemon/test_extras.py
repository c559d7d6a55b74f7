"""What a command says that wants more than is installed."""

from __future__ import annotations

import pytest

from sapwood.daemon import extras
from sapwood.daemon.errors import StartError


def say(monkeypatch: pytest.MonkeyPatch, installed: set[str], machine: tuple[str, str]) -> str:
    """The one line for --http, "" where nothing is missing."""
    monkeypatch.setattr(extras, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr("sys.platform", machine[0])
    monkeypatch.setattr("platform.machine", lambda: machine[1])
    try:
        extras.require_gateway(http=True)
    except StartError as error:
        return str(error)
    return ""


def test_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    linux, arm = ("linux", "x86_64"), ("linux", "aarch64")
    install = 'pip install "sapwood[serve,gateway]"'
    assert say(monkeypatch, {"smg", "smg_grpc_proto"}, linux) == ""
    assert say(monkeypatch, set(), linux).endswith(install)
    assert say(monkeypatch, {"smg_grpc_proto"}, linux) == f"--http needs SMG: {install}"
    said = say(monkeypatch, {"smg_grpc_proto"}, arm)
    assert "this is linux, aarch64" in said
    assert "\n" not in said


def test_only_http_needs_smg_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: name == "smg_grpc_proto" or None)
    extras.require_gateway(http=False)
