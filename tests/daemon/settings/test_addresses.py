"""Socket files: whose they are, and what happens to stale ones."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from sapwood.daemon.errors import StartError
from sapwood.daemon.own_files import identity_of
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.settings.addresses import (
    UnixAddress,
    aside_of,
    prepare_socket,
    take_place,
)
from sapwood.scheduler.limits import Limits
from sapwood.v1 import generation_pb2_grpc
from tests.daemon.conftest import collect, config_for, prompt_of, running
from tests.daemon.fakes import FakeDevice, make_loader


def test_a_stale_socket_file_is_removed(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert path.exists()
    prepare_socket(UnixAddress(path))
    assert not path.exists()


def test_a_socket_that_answers_is_never_stolen(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(StartError, match="another daemon answers"):
            prepare_socket(UnixAddress(path))
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    path.write_text("precious")
    with pytest.raises(StartError, match="not a socket"):
        prepare_socket(UnixAddress(path))
    assert path.read_text() == "precious"


def test_the_folder_is_made_for_its_owner_only(folder: Path) -> None:
    prepare_socket(UnixAddress(folder / "new" / "s"))
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o700


@pytest.mark.anyio
async def test_listeners_in_flag_order_with_real_ports_and_owner_only_sockets(
    folder: Path,
) -> None:
    path = folder / "s"
    listen = ["127.0.0.1:0", f"unix:{path}", "localhost:0"]
    umask = os.umask(0o22)
    async with running(settings={"listen": listen}) as run:
        assert os.umask(umask) == 0o22
        first, second, third = map(str, run.daemon.grpc_addresses)
        assert second == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for address, host in ((first, "127.0.0.1:"), (third, "localhost:")):
            assert address.startswith(host)
            assert not address.endswith(":0")
        for address in (first, second, third):
            async with grpc.aio.insecure_channel(address) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                ids, _, _ = await collect(stub.Generate(prompt_of(5, max_tokens=3)))
                assert len(ids) == 3
    assert not path.exists()


@pytest.mark.anyio
async def test_a_daemon_that_lost_its_place_leaves_the_next_ones_socket(folder: Path) -> None:
    """gRPC alone removes what stands at its path when it closes, whoever bound it."""
    path = folder / "s"
    settings: dict[str, Any] = {"listen": [f"unix:{path}"]}
    async with running(settings=settings):
        path.unlink()
        second = Daemon(config_for(**settings), make_loader(FakeDevice(), Limits()))
        await second.start()
        assert os.listdir(folder) == ["s"]
    assert path.exists()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        assert await second.wait_loaded()
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        ids, _, _ = await collect(stub.Generate(prompt_of(5, max_tokens=3)))
        assert len(ids) == 3
    await second.stop()
    assert os.listdir(folder) == []


def test_of_two_that_start_at_once_the_later_one_takes_nothing(folder: Path) -> None:
    address = UnixAddress(folder / "s")
    bound = [aside_of(address), aside_of(address)]
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for one, aside in zip((first, second), bound, strict=True):
            one.bind(str(aside.path))
            one.listen()
        ours = take_place(bound[0], address)
        with pytest.raises(StartError, match="another daemon came first"):
            take_place(bound[1], address)
        assert identity_of(address.path) == ours
    assert [file.name for file in folder.iterdir()] == ["s"]


@pytest.mark.anyio
async def test_an_address_in_use_is_a_start_error() -> None:
    async with running() as run:
        for settings in ({"listen": [run.address]}, {"metrics": str(run.metrics)}):
            config = config_for(**settings)
            second = Daemon(config, make_loader(FakeDevice(), Limits()))
            with pytest.raises(StartError, match="cannot listen"):
                await second.start()
            await second.stop()
