"""TLS from outside: who gets in by which certificate, and certificates that change meanwhile."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from cryptography import x509

from sapwood import AsyncClient, Client, PermissionDenied, Unauthenticated, Unavailable
from sapwood.daemon.errors import StartError
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.settings.principals import Role
from sapwood.scheduler.limits import Limits
from tests.daemon.certificates import Authority, Issued
from tests.daemon.conftest import Running, config_for, open_rpcs, running, until
from tests.daemon.fakes import FakeDevice, make_loader
from tests.daemon.process.test_lifecycle import slowed
from tests.daemon.tenants import Tokens

pytestmark = pytest.mark.anyio

SOON = Limits(reload_s=0.02)


@dataclass
class House:
    """A folder with an authority, a server's certificate and a file of tokens."""

    folder: Path
    ca: Authority
    server: Issued
    tokens: Tokens

    def settings(self, **more: Any) -> dict[str, Any]:
        return {"tls_cert": str(self.server.cert), "tls_key": str(self.server.key), **more}

    def mutual(self, **more: Any) -> dict[str, Any]:
        return self.settings(tls_client_ca=str(self.ca.path), **more)


@pytest.fixture
def house(folder: Path) -> House:
    ca = Authority(folder)
    return House(folder, ca, ca.issue("server"), Tokens(folder))


def mine(issued: Issued) -> dict[str, Path]:
    return {"tls_client_cert": issued.cert, "tls_client_key": issued.key}


async def reply(client: AsyncClient) -> int:
    return len((await client.generate([5, 6, 7], max_tokens=3).collect()).token_ids)


async def test_tls_with_a_token_serves_both_clients(house: House) -> None:
    token = house.tokens.new("alice")
    settings = house.settings(tokens=str(house.tokens.path))
    options: Any = {"token": token, "tls_ca": house.ca.path}

    def ask() -> int:
        with Client(run.address, **options) as client:
            assert client.is_serving()
            return len(client.generate([5, 6], max_tokens=3).collect().token_ids)

    async with running(settings=settings) as run:
        async with AsyncClient(run.address, **options) as client:
            assert await reply(client) == 3
            assert (await client.get_model()).name == "fake"
            with pytest.raises(PermissionDenied):
                await client.cache_stats()
            with pytest.raises(PermissionDenied):
                async for _ in client.describe_tree():
                    pass
        assert await anyio.to_thread.run_sync(ask) == 3
        async with AsyncClient(run.address, tls_ca=house.ca.path) as client:
            assert await client.is_serving()
            with pytest.raises(Unauthenticated, match="a token is needed"):
                await client.get_model()


async def test_a_stranger_is_not_believed_and_nothing_goes_in_the_clear(house: House) -> None:
    other = Authority(house.folder, "other")
    async with running(settings=house.settings()) as run:
        for options in ({}, {"tls_ca": other.path}):
            async with AsyncClient(run.address, **options) as client:  # type: ignore[arg-type]
                with pytest.raises(Unavailable):
                    await client.get_model(timeout=5)
        # Loopback without tokens and client certificates is local's, with TLS too.
        async with AsyncClient(run.address, tls_ca=house.ca.path) as client:
            assert (await client.cache_stats()).nodes == 0


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"uris": ["spiffe://mesh/alice", "spiffe://b"], "dns": ["alice.example"]}, "uri"),
        ({"dns": ["alice.example", "b.example"]}, "dns"),
        ({"dns": [], "ips": ["10.0.0.1"]}, "nobody"),
        ({"dns": ["local"]}, "nobody"),
        ({"uris": ["https://x/" + "y" * 300]}, "nobody"),
    ],
)
async def test_a_certificate_is_who_its_first_uri_or_dns_name_says(
    names: dict[str, Any], told: str, house: House, tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[principals."spiffe://mesh/alice"]\nrole = "operator"\n')
    issued = house.ca.issue("client", **names)
    async with (
        running(settings=house.mutual(config=str(file))) as run,
        AsyncClient(run.address, tls_ca=house.ca.path, **mine(issued)) as client,  # type: ignore[arg-type]
    ):
        assert await client.is_serving()
        if told == "nobody":
            with pytest.raises(Unauthenticated, match="certificate"):
                await client.get_model()
            return
        assert await reply(client) == 3
        if told == "uri":
            await client.cache_stats()
        else:
            with pytest.raises(PermissionDenied):
                await client.cache_stats()


async def test_without_a_certificate_of_the_right_authority_there_is_no_connection(
    house: House,
) -> None:
    other = Authority(house.folder, "other")
    late = house.ca.issue("late", expired=True)
    async with running(settings=house.mutual()) as run:
        for options in ({}, mine(other.issue("stranger")), mine(late)):
            async with AsyncClient(
                run.address,
                tls_ca=house.ca.path,
                **options,  # type: ignore[arg-type]
            ) as client:
                with pytest.raises(Unavailable):
                    await client.is_serving(timeout=5)


async def test_a_token_beside_a_certificate_says_who_calls(house: House) -> None:
    """A gateway has the certificate, who comes through it a token."""
    gateway = house.ca.issue("gateway")
    root = house.tokens.new("root", Role.OPERATOR)
    options: Any = {"tls_ca": house.ca.path, **mine(gateway)}
    async with running(settings=house.mutual(tokens=str(house.tokens.path))) as run:
        async with AsyncClient(run.address, **options) as client:
            assert await reply(client) == 3
            with pytest.raises(PermissionDenied):
                await client.cache_stats()
        async with AsyncClient(run.address, token=root, **options) as client:
            await client.cache_stats()
        async with AsyncClient(run.address, token="sapwood_nobody", **options) as client:
            with pytest.raises(Unauthenticated):
                await client.get_model()


def served(run: Running) -> int:
    """The serial number of the certificate that the next connection gets."""
    _, _, port = run.address.rpartition(":")
    pem = ssl.get_server_certificate(("127.0.0.1", int(port)))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def until_served(run: Running, serial: int) -> None:
    with anyio.fail_after(20):
        while await anyio.to_thread.run_sync(served, run) != serial:  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def test_certificates_are_renewed_under_open_connections(house: House) -> None:
    async with (
        running(settings=house.settings(), limits=SOON) as run,
        AsyncClient(run.address, tls_ca=house.ca.path) as before,
    ):
        stream = before.generate([5, 6, 7], max_tokens=50)
        await anext(stream)
        assert await anyio.to_thread.run_sync(served, run) == house.server.serial
        for _ in range(2):
            renewed = house.ca.issue("server")
            await until_served(run, renewed.serial)
        assert len((await stream.collect()).token_ids) == 50
        assert await reply(before) == 3


async def test_what_does_not_fit_together_changes_nothing(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(settings=house.settings(), limits=SOON) as run:
        house.server.key.write_bytes(house.ca.issue("other").key.read_bytes())
        await until(lambda: "what was read before stays" in caplog.text)
        assert "PRIVATE" not in caplog.text
        assert await anyio.to_thread.run_sync(served, run) == house.server.serial
        await until_served(run, house.ca.issue("server").serial)


async def test_another_client_authority_holds_from_the_next_connection_on(house: House) -> None:
    authorities = house.folder / "clients.pem"
    authorities.write_bytes(house.ca.path.read_bytes())
    other = Authority(house.folder, "other")
    settings = house.settings(tls_client_ca=str(authorities))
    alice, bob = house.ca.issue("alice"), other.issue("bob")
    async with running(settings=settings, limits=SOON) as run:

        async def gets_in(issued: Issued) -> bool:
            options: Any = {"tls_ca": house.ca.path, **mine(issued)}
            async with AsyncClient(run.address, **options) as client:
                try:
                    return await client.is_serving(timeout=5)
                except Unavailable:
                    return False

        assert [await gets_in(alice), await gets_in(bob)] == [True, False]
        authorities.write_bytes(other.path.read_bytes())
        with anyio.fail_after(20):
            while not await gets_in(bob):  # noqa: ASYNC110
                await anyio.sleep(0.02)
        assert not await gets_in(alice)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda house: house.server.cert.unlink(), "server.pem: No such file"),
        (lambda house: house.server.key.unlink(), "server.key: No such file"),
        (lambda house: house.server.cert.write_text("x"), "is not the key of the certificate"),
        (lambda house: house.server.key.write_text(""), "is not the key of the certificate"),
        (lambda house: house.ca.path.write_text("x"), "has no certificate in PEM"),
        (lambda house: house.ca.path.write_text(""), "has no certificate in PEM"),
        (lambda house: house.ca.path.write_bytes(b"\n" * ((1 << 20) + 1)), "longer than"),
    ],
)
async def test_files_that_cannot_be_used_are_one_line_at_the_start(
    spoil: Any, says: str, house: House
) -> None:
    spoil(house)
    daemon = Daemon(config_for(**house.mutual()), make_loader(FakeDevice(), Limits()))
    with pytest.raises(StartError, match=says) as caught:
        await daemon.start()
    assert "\n" not in str(caught.value)
    await daemon.stop()


# Tokens that are taken back.


async def test_a_token_that_is_taken_back_ends_its_streams_and_no_others(house: House) -> None:
    alice, bob = house.tokens.new("alice"), house.tokens.new("bob")
    device = FakeDevice()
    device.wait = slowed(device.wait)  # type: ignore[method-assign]
    settings = {"tokens": str(house.tokens.path)}
    async with (
        running(device, settings=settings, limits=SOON) as run,
        AsyncClient(run.address, token=alice) as hers,
        AsyncClient(run.address, token=bob) as his,
    ):
        streams = [client.generate([5, 6, 7], max_tokens=4000) for client in (hers, his)]
        for stream in streams:
            await anext(stream)
        house.tokens.take_back("alice")
        with pytest.raises(Unauthenticated, match="the token was taken back") as caught:
            await streams[0].collect()
        assert alice[25:] not in repr(caught.value)
        with pytest.raises(Unauthenticated, match="not known"):
            await hers.get_model()
        assert await hers.is_serving()
        await until(lambda: open_rpcs(run) <= 1)  # his may be at its end by then
        for _ in range(3):
            await anext(streams[1])
        streams[1].cancel()
        again = house.tokens.new("alice")
        with anyio.fail_after(20):
            while True:
                async with AsyncClient(run.address, token=again) as client:
                    try:
                        assert await reply(client) == 3
                        break
                    except Unauthenticated:
                        await anyio.sleep(0.02)


async def test_a_file_of_tokens_that_is_gone_takes_none_back(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    alice = house.tokens.new("alice")
    settings = {"tokens": str(house.tokens.path)}
    async with (
        running(settings=settings, limits=SOON) as run,
        AsyncClient(run.address, token=alice) as client,
    ):
        house.tokens.path.unlink()
        await until(lambda: "what was read before stays" in caplog.text)
        assert await reply(client) == 3
        assert alice[25:] not in caplog.text


async def test_without_a_file_of_tokens_nothing_starts(house: House) -> None:
    house.tokens.path.unlink()
    config = config_for(tokens=str(house.tokens.path))
    daemon = Daemon(config, make_loader(FakeDevice(), Limits()))
    with pytest.raises(StartError, match=r"tokens: .*No such file"):
        await daemon.start()
    await daemon.stop()
