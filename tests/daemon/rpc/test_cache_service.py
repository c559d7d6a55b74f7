"""Operators over a real socket: pins are made, listed and let go; what is cleared is gone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from sapwood.scheduler.limits import Limits
from sapwood.v1 import cache_pb2 as pb
from sapwood.v1 import generation_pb2, prompt_pb2
from tests.daemon.conftest import (
    Running,
    collect,
    details_of,
    error_of,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    stats,
    until,
)
from tests.daemon.fakes import BOS, CONTEXT, FIRST_BYTE, VOCABULARY, FakeDevice

pytestmark = pytest.mark.anyio

SYSTEM = tuple(range(5, 125))


def pb_text(text: str, **fields: Any) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(text=text, **fields)


def pin_of(*ids: int, **fields: Any) -> pb.PinPrefixRequest:
    return pb.PinPrefixRequest(token_ids=prompt_pb2.TokenIds(ids=ids), **fields)


async def pinned(run: Running, *ids: int, **fields: Any) -> pb.Pin:
    response: pb.PinPrefixResponse = await run.cache.PinPrefix(pin_of(*ids, **fields))
    return response.pin


async def listed(run: Running, **fields: Any) -> pb.ListPinsResponse:
    response: pb.ListPinsResponse = await run.cache.ListPins(pb.ListPinsRequest(**fields))
    return response


async def cached(run: Running, *ids: int) -> int:
    _, _, events = await collect(run.generation.Generate(prompt_of(*ids, max_tokens=2)))
    return int(events[-1].finish.usage.cached_tokens)


async def test_a_pin_is_made_listed_served_and_let_go(run: Running) -> None:
    pin = await pinned(run, *SYSTEM)
    assert pin.id and pin.tokens == len(SYSTEM) and not pin.HasField("expire_time")
    found = await listed(run)
    assert list(found.pins) == [pin] and not found.next_page_token
    assert await cached(run, *SYSTEM, 200, 201) == len(SYSTEM)
    nodes = [r.node async for r in run.cache.DescribeTree(pb.DescribeTreeRequest())]
    kept = [node for node in nodes if node.pinned]
    assert max(node.end for node in kept) == len(SYSTEM)
    assert not any(node.leases for node in nodes)
    counts = await run.cache.GetCacheStats(pb.GetCacheStatsRequest())
    assert counts.pinned_bytes == pin.bytes > 0
    await run.cache.UnpinPrefix(pb.UnpinPrefixRequest(pin_id=pin.id))
    assert not (await listed(run)).pins
    assert stats(run).tree_pinned_bytes == 0


async def test_a_pin_of_text_and_of_messages_serves_what_begins_so(run: Running) -> None:
    text = pb.PinPrefixRequest(text="You are a helpful assistant")
    made = (await run.cache.PinPrefix(text)).pin
    assert await cached(run, 2, *(FIRST_BYTE + b for b in b"You are a helpful assistant.")) == 28
    assert made.tokens == 28
    said = prompt_pb2.Messages(messages=[prompt_pb2.Message(role="system", content="Be brief.")])
    assert (await run.cache.PinPrefix(pb.PinPrefixRequest(messages=said))).pin.tokens > 9


async def test_a_pin_ends_with_its_time(run: Running) -> None:
    before = time.time()
    pin = await pinned(run, *SYSTEM, ttl=duration_pb2.Duration(nanos=300_000_000))
    ends = pin.expire_time.ToNanoseconds() / 1e9
    assert before + 0.29 < ends < time.time() + 0.31
    with anyio.fail_after(10):
        while (await listed(run)).pins:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await until(lambda: stats(run).tree_pinned_bytes == 0)
    error = await error_of(run.cache.UnpinPrefix(pb.UnpinPrefixRequest(pin_id=pin.id)))
    assert reason_of(error) == ("NOT_FOUND", "PIN_NOT_FOUND")


async def test_pages_of_pins_are_in_order_and_whole(run: Running) -> None:
    made = [await pinned(run, *SYSTEM[:n]) for n in (10, 20, 30)]
    first = await listed(run, page_size=2)
    assert list(first.pins) == made[:2]
    rest = await listed(run, page_size=2, page_token=first.next_page_token)
    assert list(rest.pins) == made[2:] and not rest.next_page_token
    assert len((await listed(run, page_size=2**32 - 1)).pins) == 3


ENDLESS = duration_pb2.Duration(seconds=315_576_000_000)
BAD: dict[str, tuple[str, Any, tuple[str, str], str]] = {
    "no prefix": (
        "PinPrefix", pb.PinPrefixRequest(), ("INVALID_ARGUMENT", "EMPTY_PROMPT"), "prompt",
    ),
    "an id at the vocabulary": (
        "PinPrefix", pin_of(VOCABULARY), ("INVALID_ARGUMENT", "BAD_TOKEN_ID"), "token_ids.ids",
    ),
    "more than the context": (
        "PinPrefix", pin_of(*[5] * CONTEXT), ("INVALID_ARGUMENT", "CONTEXT_TOO_LONG"), "prompt",
    ),
    "no time": (
        "PinPrefix", pin_of(5, ttl=duration_pb2.Duration()), ("INVALID_ARGUMENT", "BAD_REQUEST"),
        "ttl",
    ),
    "time that is past": (
        "PinPrefix", pin_of(5, ttl=duration_pb2.Duration(seconds=-1)),
        ("INVALID_ARGUMENT", "BAD_REQUEST"), "ttl",
    ),
    "a duration that is none": (
        "PinPrefix", pin_of(5, ttl=duration_pb2.Duration(seconds=1, nanos=-1)),
        ("INVALID_ARGUMENT", "BAD_REQUEST"), "ttl",
    ),
    "time without end": (
        "PinPrefix", pin_of(5, ttl=ENDLESS), ("INVALID_ARGUMENT", "BAD_REQUEST"), "ttl",
    ),
    "a page of nothing": (
        "ListPins", pb.ListPinsRequest(page_token="٣"), ("INVALID_ARGUMENT", "BAD_REQUEST"),
        "page_token",
    ),
    "no such pin": (
        "UnpinPrefix", pb.UnpinPrefixRequest(pin_id="x" * 10_000), ("NOT_FOUND", "PIN_NOT_FOUND"),
        "pin_id",
    ),
    "nothing to evict": (
        "EvictPrefix", pb.EvictPrefixRequest(text=""), ("INVALID_ARGUMENT", "EMPTY_PROMPT"), "text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_refused_by_name(run: Running, name: str) -> None:
    method, request, reason, field = BAD[name]
    error = await error_of(getattr(run.cache, method)(request))
    assert reason_of(error) == reason
    (violation,) = details_of(error, error_details_pb2.BadRequest).field_violations
    assert violation.field == field
    assert open_rpcs(run) == 0


async def test_too_many_pins_and_too_large_ones_are_refused_with_their_reasons() -> None:
    async with running(limits=Limits(pins_max=1), budget=6000) as run:
        error = await error_of(run.cache.PinPrefix(pin_of(*[5] * 1000)))
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
        assert details_of(error, error_details_pb2.RetryInfo) is None
        await pinned(run, *range(5, 25))
        error = await error_of(run.cache.PinPrefix(pin_of(*range(6, 26))))
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "CLIENT_QUOTA")
        assert stats(run).rejected == dict.fromkeys(stats(run).rejected, 0), "no request was"


async def test_a_caller_who_leaves_gets_no_pin() -> None:
    async with running(FakeDevice(gated=True)) as run:
        call = run.cache.PinPrefix(pin_of(*SYSTEM))
        await until(lambda: run.device.begun > 0)
        call.cancel()
        await until(lambda: open_rpcs(run) == 0)
        run.device.ungate()
        assert await cached(run, *SYSTEM, 7) > 0, "what was read is kept as any other"
        assert not (await listed(run)).pins


async def test_a_drain_ends_a_pin_under_way() -> None:
    async with running(FakeDevice(gated=True), Limits(drain_s_max=0.1)) as run:
        call = run.cache.PinPrefix(pin_of(*SYSTEM))
        await until(lambda: run.device.begun > 0)
        run.daemon.drain()
        stopping = asyncio.ensure_future(run.daemon.stop())
        assert reason_of(await error_of(call)) == ("UNAVAILABLE", "DRAINING")
        run.device.ungate()
        assert await stopping == 0


async def test_a_clearing_says_what_went_and_leaves_pins(run: Running) -> None:
    pin = await pinned(run, *SYSTEM)
    await cached(run, *SYSTEM, 200)
    await cached(run, *range(150, 190))
    before = (await run.cache.GetCacheStats(pb.GetCacheStatsRequest())).nodes
    evicted = await run.cache.EvictPrefix(
        pb.EvictPrefixRequest(token_ids=prompt_pb2.TokenIds(ids=range(150, 190)))
    )
    assert evicted.nodes == 1 or evicted.nodes == 2
    assert evicted.freed_bytes > 0 == evicted.held_bytes
    assert await cached(run, *range(150, 190), 7) == 0
    cleared = await run.cache.ClearCache(pb.ClearCacheRequest())
    counts = await run.cache.GetCacheStats(pb.GetCacheStatsRequest())
    assert cleared.nodes > 0 and counts.nodes < before
    assert sum(stored.bytes for stored in counts.stored) >= counts.pinned_bytes == pin.bytes
    nodes = [r.node async for r in run.cache.DescribeTree(pb.DescribeTreeRequest())]
    assert nodes and all(node.pinned for node in nodes)
    assert await cached(run, *SYSTEM, 201) == len(SYSTEM)


async def test_what_a_running_request_holds_goes_when_it_ends() -> None:
    async with running(FakeDevice(gated=True)) as run:
        call = run.generation.Generate(prompt_of(*range(5, 60), max_tokens=300))
        clearing = None
        while clearing is None or not clearing.done():
            run.device.step()
            if clearing is None and run.device.steps > 3:
                clearing = asyncio.ensure_future(run.cache.ClearCache(pb.ClearCacheRequest()))
            await asyncio.sleep(0.002)
        told = clearing.result()
        assert (told.nodes, told.freed_bytes) == (0, 0) < (1, told.held_bytes)
        run.device.ungate()
        ids, _, _ = await collect(call)
        assert len(ids) == 300, "and lacks nothing until then"
        await until(lambda: stats(run).tree_nodes == 0)


async def test_what_is_stored_is_told_where_an_operator_asks_for_it(run: Running) -> None:
    """Who comes by loopback without tokens is one; users may not ask for the tree at all."""
    await collect(run.generation.Generate(pb_text("hello", max_tokens=1)))
    asked = pb.DescribeTreeRequest(include_tokens=True)
    nodes = [response.node async for response in run.cache.DescribeTree(asked)]
    assert all(len(node.token_ids) == node.end - node.start for node in nodes)
    assert [id for node in nodes for id in node.token_ids] == [
        BOS,
        *(FIRST_BYTE + b for b in b"hello"),
    ]
    assert "".join(node.text for node in nodes) == "hello"
    silent = [response.node async for response in run.cache.DescribeTree(pb.DescribeTreeRequest())]
    assert len(silent) == len(nodes)
    assert not any(node.token_ids or node.HasField("text") for node in silent)


async def test_every_prompts_end_is_kept_marked_or_not(run: Running) -> None:
    """Exactly: what goes on from there computes none of it."""
    for mark, first in ((True, 5), (False, 70)):
        ids = range(first, first + 41)
        marked = prompt_of(*ids, max_tokens=9, cache={"mark": mark})
        await collect(run.generation.Generate(marked))
        assert await cached(run, *ids, 200) == 41
