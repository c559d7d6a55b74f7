"""What operators ask through the client: pins and what is taken out of the tree."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import sapwood
from sapwood.client import wire
from sapwood.v1 import cache_pb2
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import FakeDaemon, done

pytestmark = pytest.mark.anyio

ENDS = datetime(2031, 5, 6, 7, 8, 9, 250_000, tzinfo=UTC)


def told(id: str, **fields: Any) -> cache_pb2.Pin:
    return cache_pb2.Pin(id=id, tokens=12, bytes=3456, **fields)


async def test_a_pin_has_its_time_in_utc(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    ends = Timestamp()
    ends.FromDatetime(ENDS)
    daemon.pins = [told("a", expire_time=ends)]
    async with connect(address) as client:
        made = await done(client.pin_prefix([sapwood.Message("system", "Be brief.")], ttl=1.5))
    assert made == sapwood.Pin("a", 12, 3456, ENDS)
    (request,) = daemon.requests
    assert request.messages.messages[0].content == "Be brief."
    assert (request.ttl.seconds, request.ttl.nanos) == (1, 500_000_000)


@pytest.mark.parametrize("ttl", [None, math.inf, 1e300])
async def test_without_a_time_it_stays(
    connect: Connect, daemon: FakeDaemon, address: str, ttl: float | None
) -> None:
    daemon.pins = [told("a")]
    async with connect(address) as client:
        made = await done(client.pin_prefix("text", ttl=ttl))
    assert made.expire_time is None
    assert not daemon.requests[0].HasField("ttl")


async def test_all_pages_are_one_list(connect: Connect, daemon: FakeDaemon, address: str) -> None:
    daemon.pins = [told("a"), told("b"), told("c")]
    async with connect(address) as client:
        found = await done(client.list_pins())
        daemon.pins = []
        assert await done(client.list_pins()) == []
    assert [pin.id for pin in found] == ["a", "b", "c"]
    assert [request.page_token for request in daemon.requests] == ["", "1", "2", ""]


async def test_what_is_let_go_and_what_is_taken_out(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    async with connect(address) as client:
        await done(client.unpin_prefix("a"))
        assert await done(client.evict_prefix([5, 6])) == sapwood.Freed(1, 2, 3)
        assert await done(client.clear_cache()) == sapwood.Freed(4, 5, 0)
    unpin, evict = daemon.requests
    assert unpin.pin_id == "a"
    assert list(evict.token_ids.ids) == [5, 6]


@pytest.mark.parametrize("ttl", [-1, -1e300, 0])
def test_a_time_that_is_past_is_the_daemons_to_refuse(ttl: float) -> None:
    lasts = wire.pin_prefix_request("text", ttl).ttl
    assert lasts.seconds == max(-1, ttl) and not lasts.nanos


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [("1", TypeError, " must be a number, not str"), (math.nan, ValueError, " must not be NaN")],
)
def test_what_is_no_time(value: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^ttl{words}"):
        wire.pin_prefix_request("text", value)


def test_what_is_no_pin_and_no_prefix() -> None:
    with pytest.raises(TypeError, match=r"^pin_id must be a string, not int"):
        wire.unpin_prefix_request(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^prompt must be text, token ids, messages"):
        wire.evict_prefix_request(None)  # type: ignore[arg-type]
