"""`token new` and the commands that show a token, against a daemon that wants one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sapwood.daemon.cli.main import main
from sapwood.daemon.settings.principals import Role
from sapwood.daemon.settings.tokens import read_tokens
from tests.daemon.certificates import Authority, Issued
from tests.daemon.cli.conftest import serving
from tests.daemon.conftest import config_for
from tests.daemon.tenants import Tokens


class Kept(NamedTuple):
    address: str
    ca: Authority
    client: Issued
    user: str
    operator: str


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    """A daemon with TLS, tokens and client certificates."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        ca, tokens = Authority(folder), Tokens(folder)
        server = ca.issue("server")
        user, operator = tokens.new("alice"), tokens.new("root", Role.OPERATOR)
        config = config_for(
            tls_cert=str(server.cert),
            tls_key=str(server.key),
            tls_client_ca=str(ca.path),
            tokens=str(tokens.path),
        )
        with serving(config) as address:
            yield Kept(address, ca, ca.issue("client"), user, operator)


def flags(kept: Kept, *more: str) -> list[str]:
    return [
        *("--connect", kept.address, "--tls-ca", str(kept.ca.path)),
        *("--tls-client-cert", str(kept.client.cert), "--tls-client-key", str(kept.client.key)),
        *more,
    ]


def test_a_token_is_printed_once_and_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens"
    assert main(["token", "new", "alice", "--tokens", str(path)]) == 0
    flags = ["--tokens", str(path), "--role", "operator", "--weight", "3"]
    assert main(["token", "new", "root", *flags]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    table, tokens = read_tokens(path), out.split()
    grants = [table.find(token) for token in tokens]
    assert [(g.name, g.role, g.weight) for g in grants if g] == [
        ("alice", Role.USER, None),
        ("root", Role.OPERATOR, 3),
    ]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["alice", "--role", "admin"], "'admin' is not a role: user or operator"),
        (["local"], "'local' cannot have a token"),
        (["a b"], "'a b' cannot have a token"),
        (["alice", "--weight", "0"], "1 to 1000"),
        (["alice", "--weight", "1001"], "1 to 1000"),
    ],
)
def test_bad_usage_is_2_with_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens"
    assert main(["token", "new", *argv, "--tokens", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert not path.exists()


def test_a_folder_that_is_missing_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "new", "alice", "--tokens", str(tmp_path / "no" / "tokens")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_commands_show_the_token_of_a_file_or_the_environment(
    kept: Kept,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{kept.user}\n")
    ask = ["generate", "hello", "--max-tokens", "9"]
    assert main([*ask, *flags(kept, "--token-file", str(file))]) == 0
    assert len(capsys.readouterr().out) == 10
    assert main(["status", *flags(kept, "--token-file", str(file))]) == 0
    assert "memory     is for operators to see" in capsys.readouterr().out
    assert main(["tree", *flags(kept, "--token-file", str(file))]) == 1
    assert "PERMISSION_DENIED: this is for operators" in capsys.readouterr().err
    monkeypatch.setenv("SAPWOOD_TOKEN", kept.operator)
    assert main(["status", *flags(kept)]) == 0
    assert "prefixes   " in capsys.readouterr().out
    assert main(["tree", *flags(kept)]) == 0


def test_a_wrong_token_is_1_and_not_shown(
    kept: Kept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAPWOOD_TOKEN", kept.user[:-1])
    assert main(["tree", *flags(kept)]) == 1
    err = capsys.readouterr().err
    assert err == "sapwood: UNAUTHENTICATED: the token is not known here\n"


def test_files_of_a_command_that_are_missing_are_2(
    kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--token-file", "--tls-ca"):
        assert main(["status", "--connect", kept.address, flag, "/does/not/exist"]) == 2
        assert capsys.readouterr().err == ("sapwood: /does/not/exist: No such file or directory\n")


def test_a_network_is_served_neither_in_the_clear_nor_to_everybody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = "--tls-cert and --tls-key, and --tokens or --tls-client-ca"
    for flag, name in (("--listen", "listen"), ("--metrics", "metrics")):
        assert main(["serve", flag, "0.0.0.0:0"]) == 2
        assert capsys.readouterr().err == (
            f"sapwood: {name}: '0.0.0.0:0' is not a loopback address: serving it needs {needed}\n"
        )
