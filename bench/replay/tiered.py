"""The production tree with a disk of 20 GiB under it.

- What goes to disk, which block and kind of layer, and when, is the production's (PageOuts); so is
  what of it can be gone on from (Catalogue.reach). Only the copying is left out: a block is written
  as soon as it is due, and read in no time.
- What was read is stored as the core stores it, within the tree's budget: where that is short, less
  is found.
- A prompt's tokens that come from disk are found, and not computed.
"""

from __future__ import annotations

from array import array

from bench.replay.ours import ProductionTree
from bench.replay.payload import WeightlessPayload
from bench.replay.trace import KVShape, TraceRequest
from sapwood.cache.prefix.blocks import Names, block_tokens
from sapwood.cache.prefix.catalogue import Catalogue, DiskReach
from sapwood.cache.prefix.node import Lease
from sapwood.scheduler.core.page_outs import PageOuts
from sapwood.scheduler.disk import DiskFolder, Written

_ROOT = b"trace"
_UNBOUNDED = 1 << 60
_DISK_BYTES = 20 << 30  # as `serve` has it where nothing else is said


class TieredTree(ProductionTree):
    """held_bytes: of memory alone."""

    def __init__(self, shape: KVShape, budget_bytes: int) -> None:
        super().__init__(shape, budget_bytes)
        self._names = Names(b"trace", block_tokens(max(shape.full_bytes, shape.sliding_bytes)))
        self._catalogue = Catalogue(_DISK_BYTES, self._names.top)
        folder = DiskFolder(self._names, self._catalogue, _UNBOUNDED, _UNBOUNDED)
        sizes = {"full": shape.full_bytes, "sliding": shape.sliding_bytes}
        self._outs = PageOuts(self._tree, folder, sizes, lambda order: None)  # type: ignore[arg-type]
        self.read_tokens = 0

    @property
    def disk_bytes(self) -> int:
        """What lies there."""
        return sum(self._catalogue.bytes.values())

    @property
    def written_bytes(self) -> int:
        """What was ever written."""
        return self._outs.written_bytes

    def serve(self, request: TraceRequest) -> int:
        self._page_in(request)
        return super().serve(request)

    def _extend(
        self, lease: Lease, tokens: array[int], end: int, sliding_start: int, turn_end: bool
    ) -> bool:
        stored = super()._extend(lease, tokens, end, sliding_start, turn_end)
        if stored and turn_end:
            self._outs.stored(_ROOT, tokens, end)
            while (order := self._outs.next(0.0, _UNBOUNDED)) is not None:
                self._outs.take(Written(order.file.key, whole=True))
        return stored

    def _page_in(self, request: TraceRequest) -> None:
        prompt = request.prompt
        match = self._tree.match(_ROOT, prompt)
        blocks = self._names.blocks(_ROOT, prompt, len(prompt) - 1)
        reach = self._catalogue.reach(blocks, match.tokens, match.matched, self._shape.window)
        if reach is None:
            return
        lease = self._tree.lease(_ROOT, prompt, match.matched, self._tick())
        self._read(lease, request, reach)
        self._tree.release(lease, self._tick())

    def _read(self, lease: Lease, request: TraceRequest, reach: DiskReach) -> None:
        """All of it, where there is room for all of it, as PageIns asks for it."""
        size = self._names.block_tokens
        payloads = []
        for index in range(reach.first, reach.last):
            start, end = index * size, (index + 1) * size
            sliding_start = start if index >= reach.sliding else end
            payloads.append(WeightlessPayload(self._shape, start, end, sliding_start))
        wanted = sum(each.full_bytes + each.sliding_bytes for each in payloads)
        short = self._tree.bytes + wanted - self._budget_bytes
        if short > 0 and self._tree.evict(short, self._tick()) < short:
            return
        for payload in payloads:
            self._tree.extend(lease, request.prompt, payload, self._tick())
        self.read_tokens += size * len(payloads)
