"""What the disk tier asks of the device: K/V of a block as bytes, and bytes as K/V of the tree.

- On the engine's thread, between two steps, one block or one group of blocks at a time.
- Shapes are those of the loaded model's layers; what else may be in a folder has other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import mlx.core as mx

from sapwood.cache.arrays.live_caches import LayerShape, LiveCaches
from sapwood.cache.arrays.paging import copy_out, paged_in, stored_shape
from sapwood.cache.arrays.ranges import EdgePayload
from sapwood.cache.prefix.blocks import Storage
from sapwood.cache.prefix.catalogue import Kind
from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.disk import PageOut

_DTYPE_NAMES = {mx.float32: "F32", mx.bfloat16: "BF16", mx.float16: "F16"}


class Pager:
    """Copies K/V between the tree's payloads and the host, for one model's live caches."""

    def __init__(self, caches: LiveCaches, storage: Storage = "exact") -> None:
        """storage: how the folder has it."""
        self._caches, self._storage = caches, storage

    @property
    def dtype_name(self) -> str:
        """As safetensors calls it."""
        return _DTYPE_NAMES[self._caches.dtype]

    def shape(self, kind: Kind, tokens: int) -> tuple[int, int, int] | None:
        """Of K/V of so many tokens as it is stored; None: there are no layers of that kind."""
        layers = self._layers_of(kind)
        return stored_shape(layers, tokens) if layers else None

    def copy_out(self, order: PageOut) -> bytes:
        """A block's K/V of one kind; as much of the device's memory has to be free."""
        path = cast("tuple[EdgePayload, ...]", order.path)
        ranges = [each.full if order.file.kind == "full" else each.sliding for each in path]
        return copy_out(ranges, order.block.start, order.block.end, self._storage)

    def paged_in(self, start: int, end: int, kv: Mapping[Kind, Sequence[memoryview]]) -> Payload:
        """What was read of tokens [start, end), by kind and block: room is held for it."""
        layers = {kind: self._layers_of(kind) for kind in kv}
        caches = self._caches
        kept = caches.dtype, caches.page_bytes, caches.copies, self._storage
        return paged_in(start, end, kv, layers, *kept)

    def _layers_of(self, kind: Kind) -> list[LayerShape]:
        sliding = kind == "sliding"
        return [layer for layer in self._caches.shapes if layer.sliding == sliding]
