"""Many clients of one process that all begin at once: nobody is lost."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from sapwood import AsyncClient, Client, SapwoodError
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from tests.daemon.conftest import Running, running, stats, until
from tests.daemon.fakes import FakeDevice, reply_to

pytestmark = pytest.mark.anyio

CLIENTS = 250


def _rejected(run: Running) -> int:
    return run.daemon._gate.turned_away[Outcome.REJECTED] + stats(run).requests[Outcome.REJECTED]


@pytest.mark.long
async def test_250_clients_on_fresh_connections_are_all_served() -> None:
    """The daemon's queue has room for all of them; gRPC's limits had not."""
    async with running() as run:
        begin = Barrier(CLIENTS)

        def ask(number: int) -> tuple[int, ...] | SapwoodError:
            with Client(run.address) as client:
                begin.wait()
                try:
                    return client.generate([5, 9 + number], max_tokens=4).collect().token_ids
                except SapwoodError as error:
                    return error

        with ThreadPoolExecutor(CLIENTS) as threads:
            loop = asyncio.get_running_loop()
            asked = [loop.run_in_executor(threads, ask, number) for number in range(CLIENTS)]
            replies = await asyncio.gather(*asked)
        assert _rejected(run) == 0
    expected = [tuple(reply_to([5, 9 + number], 4)) for number in range(CLIENTS)]
    assert [r for r in replies if isinstance(r, SapwoodError)] == []
    assert replies == expected


async def test_one_client_with_more_calls_than_the_queue_has_room_for() -> None:
    """What is refused is refused by us, counted, and asked for again until it is served."""
    limits = Limits(slots_max=4, queued_max=8, rpcs_max=40)
    device = FakeDevice(gated=True)
    async with running(device, limits) as run, AsyncClient(run.address) as client:
        streams = [client.generate([5, 9 + n], max_tokens=4) for n in range(120)]
        replying = asyncio.gather(*(stream.collect() for stream in streams))
        await until(lambda: _rejected(run) >= 80)
        device.ungate()
        replies = await replying
    assert [reply.token_ids for reply in replies] == [
        tuple(reply_to([5, 9 + n], 4)) for n in range(120)
    ]
