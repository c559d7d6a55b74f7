"""C5: make everything that nobody may see as harmful as it can be.

- Rows of a pool that no slot owns are NaN, keys and values.
- Inside an owner's row, entries outside of its newest `keep` positions have K = NaN and V = 1e30:
  a NaN in a masked V would be 0 x NaN, and rows are cleared of those when they change hands.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.full import FullStore
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.window import WindowStore


def poison(caches: LiveCaches, keep: int | None = None) -> int:
    """Poison what is invisible to the next step; returns how many entries were.

    keep: newest positions of a ring to leave alone; None: all that it holds. A draft sees no more
    than window + 1 of them, but a capture takes all, and the tree may restore what it took.
    """
    return sum(_poison_store(store, keep) for store in caches.stores)


def _poison_store(store: FullStore | WindowStore, keep: int | None) -> int:
    count = 0
    for capacity, pool in store.pools.by_capacity.items():
        keys, values = (np.array(a.astype(mx.float32)) for a in pool)
        nobodys = np.ones(keys.shape[0], bool)
        for slot, place in store.pools.placement.places.items():
            if place.capacity != capacity:
                continue
            nobodys[place.row] = False
            offset = store.offsets.get(slot, 0)
            low = _lowest(store, slot, offset, keep) if isinstance(store, WindowStore) else 0
            dead = np.ones(capacity, bool)
            dead[np.arange(max(0, low - place.base), offset - place.base) % capacity] = False
            keys[place.row][:, dead], values[place.row][:, dead] = np.nan, 1e30
            count += int(dead.sum())
        keys[nobodys], values[nobodys] = np.nan, np.nan
        count += int(nobodys.sum()) * capacity
        for array, filled in zip(pool, (keys, values), strict=True):
            array[:] = mx.array(filled).astype(array.dtype)
    mx.eval(store.arrays)
    return count


def _lowest(ring: WindowStore, slot: int, offset: int, keep: int | None) -> int:
    """The lowest position to leave alone."""
    if keep is not None:
        return max(0, offset - keep)
    held = ring.snapshot(slot, 0)
    return offset if held is None else held.start
