"""The sockets of a metrics address: one port for all protocols, and none that is not there."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from sapwood.daemon.http.listeners import listeners
from sapwood.daemon.settings.addresses import TcpAddress

pytestmark = pytest.mark.anyio

Place = tuple[socket.AddressFamily, str]
StandsFor = Callable[..., None]

FIRST: Place = (socket.AF_INET, "127.0.0.1")
ELSEWHERE: Place = (socket.AF_INET, "192.0.2.1")  # of documents: no machine's


@pytest.fixture
def stands_for(monkeypatch: pytest.MonkeyPatch) -> StandsFor:
    """Says what "localhost" stands for."""

    def set_to(*places: Place) -> None:
        def found(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            return [(family, socket.SOCK_STREAM, 6, "", (at, port)) for family, at in places]

        monkeypatch.setattr(socket, "getaddrinfo", found)

    return set_to


@pytest.fixture
def second() -> Place:
    """Another address of this machine, of the other protocol if it has that."""
    for family, host in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.2")):
        with socket.socket(family) as probe:
            try:
                probe.bind((host, 0))
            except OSError:
                continue
            return family, host
    pytest.skip("this machine has one loopback address")


@contextmanager
def taken(place: Place, port: int = 0) -> Iterator[int]:
    with socket.socket(place[0]) as holder:
        # Else a connection of somebody's that ended a minute ago holds the port as well.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((place[1], port))
        holder.listen()
        yield holder.getsockname()[1]


def port_of_no_connection(*places: Place) -> int:
    """Free at all places, and below the ports that systems give to those who connect."""
    for port in random.sample(range(20_000, 32_000), 100):
        try:
            with ExitStack() as held:
                for place in places:
                    held.enter_context(taken(place, port))
        except OSError:
            continue
        return port
    pytest.fail("of a hundred ports none was free")


async def places_of(port: int) -> list[tuple[str, int]]:
    """Where it listens, which ends here."""
    places = []
    for listener in await listeners(TcpAddress("localhost", port)):
        with listener:
            places.append(listener.getsockname()[:2])
    return places


async def test_any_free_port_is_the_same_for_both(stands_for: StandsFor, second: Place) -> None:
    stands_for(FIRST, second)
    for _ in range(10):
        places = await places_of(0)
        assert [host for host, _ in places] == [FIRST[1], second[1]]
        assert len({port for _, port in places}) == 1


async def test_a_free_port_that_the_other_has_not_is_left(
    stands_for: StandsFor, second: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tries find a port that is in use on the second address."""
    stands_for(FIRST, second)
    bind = socket.socket.bind
    tries: list[tuple[str, int]] = []

    with taken(second) as port:

        def bound(self: socket.socket, place: tuple[str, int]) -> None:
            if place == (FIRST[1], 0) and len(tries) < 3:
                tries.append(place)
                place = (FIRST[1], port)
            bind(self, place)

        monkeypatch.setattr(socket.socket, "bind", bound)
        places = await places_of(0)
    assert len(tries) == 3
    assert len({found for _, found in places}) == 1
    assert places[0][1] != port


async def test_a_protocol_that_is_not_there_is_left_out(stands_for: StandsFor) -> None:
    for places in ([ELSEWHERE, FIRST], [FIRST, ELSEWHERE]):
        stands_for(*places)
        assert [host for host, _ in await places_of(0)] == [FIRST[1]]
    stands_for(ELSEWHERE)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EADDRNOTAVAIL):
        await places_of(0)


async def test_a_port_in_use_is_an_error_and_leaves_nothing_open(
    stands_for: StandsFor, second: Place
) -> None:
    stands_for(FIRST, second)
    with taken(second, port_of_no_connection(FIRST, second)) as port:
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EADDRINUSE):
            await places_of(port)
        with taken(FIRST, port):
            pass  # what had been bound is free again
