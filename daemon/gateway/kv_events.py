"""One router's stream of what the prefix tree holds, and of the daemon's load.

- Each stream counts by itself: a snapshot of all there is comes first, numbered from 1, then
  changes, +1 each. A router that comes back begins anew, whatever number it asks for: nothing of
  the past is kept for it.
- The load comes with every batch; by itself once a second, and sooner where the number of requests
  changed, under the number that was sent last.
- The tree is looked at only after the counts moved, and so seldom that it takes a twentieth of the
  engine's time at most, however large the tree is. Hashing is done in a worker thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import anyio
from anyio import to_thread
from smg_grpc_proto.generated import common_pb2 as common

from sapwood.cache.prefix.describe import EdgeView
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.gateway.blocks import BLOCK, BlockChange, BlockIndex, TokenBlock, runs
from sapwood.daemon.gateway.loads import LoadMeter
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.gate import Gate
from sapwood.scheduler.stats import Stats

LOOK_S = 0.1  # how soon a change is told
LOAD_S = 1.0
LOOK_SHARE = 20  # looks take one such part of the time at most
BATCH_BLOCKS = 1024  # some 100 KiB


class KvEvents:
    """One subscription."""

    def __init__(self, gate: Gate, call: Call) -> None:
        self._gate, self._call = gate, call
        self._index = BlockIndex(gate.card.facts.window_tokens)
        self._meter = LoadMeter(gate.limits.slots_max)
        self._sequence = 0
        self._samples = 0
        self._seen: tuple[int, ...] | None = None
        self._told: tuple[int, int] | None = None
        self._look_at = self._load_at = 0.0

    async def run(self) -> None:
        """Until the router goes, or a drain begins. Raises Refused."""
        await self._snapshot()
        # A task of its own: a step may keep it waiting, and the load may not wait.
        look: asyncio.Task[BlockChange] | None = None
        try:
            while True:
                self._gate.enter()
                stats, now = self._stats(), time.monotonic()
                if look is None and _version(stats) != self._seen and now >= self._look_at:
                    look = asyncio.ensure_future(self._change(stats))
                if look is not None and look.done():
                    change, look = look.result(), None
                    await self._tell(change)
                elif now >= self._load_at or _counts(stats) != self._told:
                    await self._write(common.KvEventBatch(), load_only=True)
                await anyio.sleep(LOOK_S)
        finally:
            if look is not None:
                look.cancel()

    async def _snapshot(self) -> None:
        """All that is there, in as many pieces as it takes; at least one, which clears."""
        change = await self._change(self._stats())
        pieces = list(_pieces(change.stored)) or [[]]
        for number, piece in enumerate(pieces):
            cleared = [common.KvCacheEvent(cleared=common.KvCacheCleared())] if not number else []
            chunk = common.KvSnapshotChunk(
                index=number, count=len(pieces), blocks=len(change.stored)
            )
            events = [*cleared, *map(_stored, runs(piece, BATCH_BLOCKS))]
            await self._write_next(common.KvEventBatch(events=events, snapshot=chunk))

    async def _tell(self, change: BlockChange) -> None:
        removed = iter(change.removed)
        while some := list(islice(removed, BATCH_BLOCKS)):
            gone = common.KvCacheEvent(removed=common.KvBlocksRemoved(block_hashes=some))
            await self._write_next(common.KvEventBatch(events=[gone]))
        for piece in _pieces(change.stored):
            events = map(_stored, runs(piece, BATCH_BLOCKS))
            await self._write_next(common.KvEventBatch(events=events))

    async def _change(self, stats: Stats) -> BlockChange:
        """What the tree is now against what was told of it."""
        version, began = _version(stats), time.monotonic()
        root = self._gate.admission.root_of(self._call.principal)

        def look(loaded: Loaded) -> tuple[Sequence[EdgeView], float]:
            at = time.monotonic()
            return loaded.outline_tree(root), time.monotonic() - at

        edges, took_s = await self._gate.ask(look)
        change = await to_thread.run_sync(self._index.update, edges)
        self._seen, self._look_at = version, began + LOOK_SHARE * took_s
        return change

    async def _write_next(self, batch: Any) -> None:
        self._sequence += 1
        await self._write(batch, load_only=False)

    async def _write(self, batch: Any, *, load_only: bool) -> None:
        stats, now = self._stats(), time.monotonic()
        self._samples += 1
        load = self._meter.read(stats, now)
        batch.sequence_number, batch.timestamp = self._sequence, time.time()
        batch.load.CopyFrom(self._meter.record(load, self._samples, load_only))
        self._told, self._load_at = _counts(stats), now + LOAD_S
        await self._call.write_in_time(batch, self._gate.limits.write_s_max)

    def _stats(self) -> Stats:
        published = self._gate.engine.published
        assert published is not None, "the model is loaded"
        return published.stats


def _version(stats: Stats) -> tuple[int, ...]:
    """Moves whenever the tree does."""
    held = stats.tree_nodes, stats.tree_full_bytes, stats.tree_sliding_bytes
    return *held, stats.tree_splits, stats.tree_merges, sum(stats.tree_evictions.values())


def _counts(stats: Stats) -> tuple[int, int]:
    return stats.requests_running, stats.requests_waiting


def _pieces(blocks: Sequence[TokenBlock]) -> Iterator[Sequence[TokenBlock]]:
    """What goes into one message each."""
    for start in range(0, len(blocks), BATCH_BLOCKS):
        yield blocks[start : start + BATCH_BLOCKS]


def _stored(run: Sequence[TokenBlock]) -> Any:
    blocks = [
        common.KvBlock(block_hash=block.hash, token_ids=block.tokens, block_size=BLOCK)
        for block in run
    ]
    return common.KvCacheEvent(
        stored=common.KvBlocksStored(blocks=blocks, parent_block_hash=run[0].parent)
    )
