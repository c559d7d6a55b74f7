"""The file of tokens: what it holds, what is refused, and that a token is nowhere in it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.rpc.principals import Directory
from sapwood.daemon.settings.principals import Role
from sapwood.daemon.settings.tokens import TOKENS_BYTES_MAX, TokenTable, new_token, read_tokens
from sapwood.scheduler.reasons import Reason, Refused


def made(path: Path, name: str = "alice", role: Role = Role.USER) -> str:
    return new_token(path, name, role, None)


def written(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def test_a_token_is_found_by_its_secret_and_by_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    alice, bob = made(path), made(path, "bob", Role.OPERATOR)
    table = read_tokens(path)
    found = [table.find(token) for token in (alice, bob)]
    assert [(f.name, f.role) for f in found if f] == [("alice", Role.USER), ("bob", Role.OPERATOR)]
    id, secret = alice[:25], alice[25:]
    other = "A" if secret[0] != "A" else "B"
    for wrong in ("", id, secret, id + other + secret[1:], bob[:25] + secret, alice + " "):
        assert table.find(wrong) is None, wrong


def test_a_token_has_256_bits_and_a_file_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    tokens = {made(path) for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token[25:]) == 43 for token in tokens)  # of 64 characters
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert not any(token[25:] in text for token in tokens)
    hashes = [line.split()[-1] for line in text.splitlines() if not line.startswith("#")]
    assert len(set(hashes)) == 5


def test_a_line_that_is_gone_or_another_takes_the_token_back(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = made(path)
    grant = read_tokens(path).find(token)
    assert grant is not None
    assert read_tokens(path).stands(grant)
    text = path.read_text()
    written(path, text.replace(" user ", " operator "))
    assert not read_tokens(path).stands(grant)
    written(path, "# nobody\n\n")
    assert not read_tokens(path).stands(grant)
    assert read_tokens(path).find(token) is None


def test_a_line_without_an_end_is_not_run_into(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first = made(path)
    written(path, path.read_text().rstrip("\n"))
    second = made(path, "bob")
    table = read_tokens(path)
    assert all(table.find(token) for token in (first, second))


@pytest.mark.parametrize("name", ["", "a b", "x" * 256, "local", "default", "#a", "é", "a\n"])
def test_nobody_has_such_a_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot have a token"):
        made(tmp_path / "tokens", name)
    assert not (tmp_path / "tokens").exists()


def test_the_longest_name_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = made(path, "x" * 255)
    grant = read_tokens(path).find(token)
    assert grant is not None and grant.name == "x" * 255


LINE = f"alice user - {'a' * 16} {'b' * 16} {'c' * 64}"


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        LINE + " more",
        LINE.replace("user", "admin"),
        LINE.replace(" - ", " 0 "),
        LINE.replace(" - ", " 1001 "),
        LINE.replace(" - ", " x "),
        LINE[:-1],
        LINE[:-2],
        LINE.replace("b" * 16, "b" * 14),
        LINE.replace("b" * 16, "zz" * 8),
        LINE.replace("alice", "local"),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(line: str, tmp_path: Path) -> None:
    path = written(tmp_path / "tokens", f"# head\n{line}\n")
    with pytest.raises(StartError, match=r"line 2 is not NAME ROLE WEIGHT ID SALT HASH") as caught:
        read_tokens(path)
    assert "c" * 20 not in str(caught.value)


def test_good_lines_of_all_weights(tmp_path: Path) -> None:
    lines = [LINE, LINE.replace(" - ", " 1 "), LINE.replace(" - ", " 1000 ")]
    lines = [line.replace("a" * 16, f"{n:016x}") for n, line in enumerate(lines)]
    read_tokens(written(tmp_path / "tokens", "\n".join(lines)))


def test_two_lines_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="line 2 has the id of another line"):
        read_tokens(written(tmp_path / "tokens", f"{LINE}\n{LINE}\n"))


def test_files_that_are_missing_too_long_or_others_to_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    with pytest.raises(StartError, match="No such file"):
        read_tokens(path)
    written(path, "#" * TOKENS_BYTES_MAX)
    read_tokens(path)
    written(path, "#" * (TOKENS_BYTES_MAX + 1))
    with pytest.raises(StartError, match="longer than"):
        read_tokens(path)
    for mode in (0o620, 0o602):
        written(path, "").chmod(mode)
        with pytest.raises(StartError, match="written by others"):
            read_tokens(path)


def test_no_line_is_added_to_a_file_of_something_else(tmp_path: Path) -> None:
    path = written(tmp_path / "model", "precious\n")
    with pytest.raises(StartError, match="line 1"):
        made(path)
    assert path.read_text() == "precious\n"


@given(st.text() | st.from_regex(r"sapwood_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_whatever_is_shown_is_a_token_or_none(shown: str) -> None:
    """R4, and nobody gets in by chance."""
    table = TokenTable({})
    assert table.find(shown) is None
    with pytest.raises(Refused) as caught:
        Directory({}, _Read(table)).by_token([f"Bearer {shown}"])  # type: ignore[arg-type]
    assert caught.value.reason is Reason.UNAUTHENTICATED


class _Read:
    """As files that were followed."""

    def __init__(self, value: TokenTable) -> None:
        self.value = value
