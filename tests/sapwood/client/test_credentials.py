"""What a client shows of itself, and what it refuses to show. TLS itself: tests/daemon/process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sapwood
from sapwood.client.credentials import read_token
from tests.sapwood.client.conftest import Either
from tests.sapwood.client.fake import FakeDaemon

pytestmark = pytest.mark.anyio

CLIENTS: list[Any] = [sapwood.Client, sapwood.AsyncClient]
SECRET = "sapwood_0123456789abcdef_secret"


async def call_all(client: Either) -> None:
    """Each kind of call once."""
    if isinstance(client, sapwood.Client):
        client.generate("hello").collect()
        client.tokenize("hello")
        client.get_model()
        client.cache_stats()
        list(client.describe_tree())
        client.close()
    else:
        await client.generate("hello").collect()
        await client.tokenize("hello")
        await client.get_model()
        await client.cache_stats()
        assert [node async for node in client.describe_tree()] == []
        await client.close()


@pytest.mark.parametrize("kind", CLIENTS)
async def test_token_and_metadata_go_along_with_every_call(
    kind: Any, daemon: FakeDaemon, address: str
) -> None:
    await call_all(kind(address, token=SECRET, metadata={"x-team": "blue green"}))
    assert len(daemon.shown) == 5
    for metadata in daemon.shown:
        assert metadata["authorization"] == f"Bearer {SECRET}"
        assert metadata["x-team"] == "blue green"


@pytest.mark.parametrize("kind", CLIENTS)
async def test_the_environments_token_is_the_default(
    kind: Any, daemon: FakeDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await call_all(kind(address))
    assert not any("authorization" in metadata for metadata in daemon.shown)
    monkeypatch.setenv("SAPWOOD_TOKEN", SECRET)
    daemon.shown.clear()
    await call_all(kind(address))
    assert {metadata["authorization"] for metadata in daemon.shown} == {f"Bearer {SECRET}"}
    daemon.shown.clear()
    await call_all(kind(address, token="another"))
    assert {metadata["authorization"] for metadata in daemon.shown} == {"Bearer another"}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"token": f"{SECRET} "}, ValueError, "what is given as a token is none"),
        ({"token": f"{SECRET}\nx: y"}, ValueError, "what is given as a token is none"),
        ({"token": f"{SECRET}é"}, ValueError, "what is given as a token is none"),
        ({"token": ""}, ValueError, "what is given as a token is none"),
        ({"token": SECRET.encode()}, TypeError, "token must be a string, not bytes"),
        ({"metadata": {"X": "y"}}, ValueError, "metadata cannot have the key 'X'"),
        ({"metadata": {"authorization": SECRET}}, ValueError, "the key 'authorization'"),
        ({"metadata": {"grpc-timeout": "1"}}, ValueError, "the key 'grpc-timeout'"),
        ({"metadata": {"x-bin": "1"}}, ValueError, "the key 'x-bin'"),
        ({"metadata": {"x": "\n"}}, ValueError, "the metadata of 'x' is not printable"),
        ({"metadata": {"x": 1}}, TypeError, "strings by strings"),
        ({"tls_client_cert": "/c"}, ValueError, "tls_ca is missing"),
        ({"tls_client_key": "/c"}, ValueError, "tls_ca is missing"),
        ({"tls_ca": "/does/not/exist"}, FileNotFoundError, "/does/not/exist"),
        ({"password": "x"}, TypeError, "password"),
    ],
)
def test_what_cannot_be_shown_is_refused_without_being_quoted(
    kind: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        kind("127.0.0.1:1", **options)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_token_does_not_leave_the_machine_in_the_clear(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("10.1.2.3:1", "example.org:1", "[fe80::1]:1"):
        with pytest.raises(ValueError, match="would travel in the clear") as caught:
            kind(target, token=SECRET)
        assert SECRET not in str(caught.value)
    monkeypatch.setenv("SAPWOOD_TOKEN", SECRET)
    with pytest.raises(ValueError, match="would travel in the clear"):
        kind("10.1.2.3:1")


@pytest.mark.parametrize("kind", CLIENTS)
def test_tls_is_for_tcp_and_a_certificate_needs_its_key(kind: Any, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("x")
    with pytest.raises(ValueError, match="TLS is for HOST:PORT, not for unix:/x"):
        kind("unix:/x", tls_ca=ca)
    with pytest.raises(ValueError, match="go together"):
        kind("127.0.0.1:1", tls_ca=ca, tls_client_cert=ca)


def test_a_token_is_read_from_a_file_that_holds_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    assert read_token(path) == SECRET
    for text in ("", "\n", f"{SECRET} {SECRET}", f"# mine\n{SECRET}\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="is none") as caught:
            read_token(path)
        assert SECRET not in str(caught.value)
    path.write_text("x" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="longer than"):
        read_token(path)
