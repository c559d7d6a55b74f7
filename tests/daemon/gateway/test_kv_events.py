"""What a router is told of the tree, against what requests find there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from sapwood.daemon.gateway.blocks import BLOCK
from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import Running, open_rpcs, prompt_of, until
from tests.daemon.fakes import FakeDevice, reply_to
from tests.daemon.gateway.conftest import Worker, chunked_ids, needs_protocol, working

pytestmark = [pytest.mark.anyio, needs_protocol]

LONG = tuple(range(3, 3 + 4 * BLOCK))


class Router:
    """Reads a subscription: blocks by hash, each with the whole path to its end."""

    def __init__(self, worker: Worker, start: int = 0) -> None:
        from smg_grpc_proto.generated import common_pb2

        request = common_pb2.SubscribeKvEventsRequest(start_sequence_number=start)
        self.call = worker.stub.SubscribeKvEvents(request)
        self.paths: dict[int, tuple[int, ...]] = {}
        self.batches: list[Any] = []

    async def read(self) -> Any:
        batch = await asyncio.wait_for(self.call.read(), 20)
        self.batches.append(batch)
        for event in batch.events:
            match event.WhichOneof("data"):
                case "cleared":
                    self.paths.clear()
                case "removed":
                    for hash in event.removed.block_hashes:
                        del self.paths[hash]
                case "stored":
                    self._store(event.stored)
        return batch

    def _store(self, stored: Any) -> None:
        path = self.paths[stored.parent_block_hash] if stored.HasField("parent_block_hash") else ()
        for block in stored.blocks:
            assert block.block_size == len(block.token_ids) == BLOCK
            path += tuple(block.token_ids)
            self.paths[block.block_hash] = path

    async def until_it_knows(self, tokens: tuple[int, ...]) -> None:
        while tokens[: len(tokens) // BLOCK * BLOCK] not in self.paths.values():
            await self.read()


async def test_a_snapshot_then_changes_each_with_the_next_number() -> None:
    async with working() as worker:
        router = Router(worker)
        first = await router.read()
        assert (first.sequence_number, first.snapshot.index, first.snapshot.count) == (1, 0, 1)
        assert [event.WhichOneof("data") for event in first.events] == ["cleared"]
        said = chunked_ids(await worker.ask(*LONG, max_tokens=40))
        await router.until_it_knows((*LONG, *said))
        again = await worker.ask(*LONG, *said, 7, max_tokens=1)
    told = [batch for batch in router.batches if not batch.load.load_only]
    assert [batch.sequence_number for batch in told] == list(range(1, len(told) + 1))
    assert not any(batch.HasField("snapshot") for batch in told[1:])
    known = max(map(len, router.paths.values()))
    assert again[-1].complete.cached_tokens >= known, "all that was told is there"


async def test_whoever_comes_later_or_again_gets_all_there_is() -> None:
    async with working() as worker:
        await worker.ask(*LONG, max_tokens=2)
        for start in (0, 17):
            router = Router(worker, start)
            first = await router.read()
            assert first.sequence_number == 1
            assert first.snapshot.blocks == len(router.paths) > 0
            assert LONG in router.paths.values()
            router.call.cancel()


async def test_what_is_evicted_is_taken_back() -> None:
    """A tree with room for a prompt or two: what comes later takes the place of the first."""
    async with working(budget=8000) as worker:
        router = Router(worker)
        await worker.ask(*LONG, max_tokens=2)
        await router.until_it_knows(LONG)
        for n in range(6):
            await worker.ask(n + 3, *LONG[::-1], max_tokens=2)
        while LONG in router.paths.values():
            await router.read()
        again = await worker.ask(*LONG, max_tokens=1)
    assert again[-1].complete.cached_tokens < len(LONG) - 1


async def test_a_branch_shares_the_blocks_before_it() -> None:
    async with working() as worker:
        router = Router(worker)
        left, right = (*LONG, *[9] * BLOCK), (*LONG, *[8] * BLOCK)
        for prompt in (left, right):
            await worker.ask(*prompt, max_tokens=1)
            await router.until_it_knows(prompt)
    ends = {path for path in router.paths.values() if len(path) >= len(left)}
    assert {left, right} <= ends
    assert sum(path == LONG for path in router.paths.values()) == 1


async def test_the_load_comes_each_second_and_when_it_moves() -> None:
    async with working(FakeDevice(gated=True), Limits(slots_max=1)) as worker:
        router = Router(worker)
        await router.read()
        began = time.monotonic()
        idle = await router.read()
        assert 0.5 < time.monotonic() - began < 30
        assert (idle.load.load_only, idle.sequence_number, len(idle.events)) == (True, 1, 0)
        assert (idle.load.running_requests, idle.load.max_running_requests) == (0, 1)
        calls = [worker.stub.Generate(worker.request(5, 6, max_tokens=9)) for _ in range(2)]
        await until(lambda: open_rpcs(worker.run) == 2)
        worker.run.device.step(2)
        while (batch := await router.read()).load.waiting_requests != 1:
            pass
        assert batch.load.running_requests == 1
        worker.run.device.ungate()
        for call in calls:
            assert [one async for one in call]
    samples = [batch.load.sample for batch in router.batches]
    assert samples == sorted(set(samples))


async def test_what_others_of_its_pool_asked_is_told_of_as_well() -> None:
    together = {"pool": "everybody"}
    async with working(principals={"gateway": together, "local": together}) as worker:
        router = Router(worker)
        await _ask(worker.run)
        await router.until_it_knows(LONG)


async def test_r9_nothing_is_told_of_what_another_principal_asked() -> None:
    ours = tuple(reversed(LONG))
    async with working() as worker:
        router = Router(worker)
        await _ask(worker.run)
        await worker.ask(*ours, max_tokens=2)
        await router.until_it_knows(ours)
        theirs = [path for path in router.paths.values() if path == LONG[: len(path)]]
        assert not theirs


async def _ask(run: Running) -> None:
    async for _ in run.generation.Generate(prompt_of(*LONG, max_tokens=2)):
        pass


async def test_nothing_is_looked_at_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    async with working() as worker:
        gate = worker.run.daemon._gate
        ask = gate.ask

        async def counted(work: Any) -> Any:
            looks.append(work)
            return await ask(work)

        monkeypatch.setattr(gate, "ask", counted)
        router = Router(worker)
        await worker.ask(*LONG, max_tokens=2)
        await router.until_it_knows((*LONG, *reply_to(LONG, 1)))
        before = len(looks)
        for _ in range(3):
            assert (await router.read()).load.load_only
    assert len(looks) <= before + 1
