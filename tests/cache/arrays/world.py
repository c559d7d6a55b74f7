"""Live caches beside a plain model of them: token lists, and numpy attention over them.

- The K/V of a token is a code of (layer, head, token, position): content is checked, not only
  offsets.
- `World.step` writes and attends a packed batch in every layer and compares each row with attention
  over its sequence's own logically ordered tokens.
- `floors` model what a ring may be asked for: a restore holds W tokens, a write of [.., end) drops
  all before end - R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.full import FullStore
from sapwood.cache.arrays.live_caches import LayerShape, LiveCaches
from sapwood.cache.arrays.ranges import EdgePayload, LayerRange, Range
from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from sapwood.cache.geometry import ring_tokens, whole_tiles

Floats = npt.NDArray[np.float32]

WINDOW, ROUND, STEP = 5, 3, 8
RING = WINDOW + ROUND + 1
HEADS = 4
SHAPES = (LayerShape(True, 2, 8), LayerShape(False, 1, 16), LayerShape(True, 1, 8))
TOLERANCE = 1e-5


def code(
    layer: int, shape: LayerShape, tokens: Sequence[int], start: int = 0
) -> tuple[Floats, Floats]:
    """K and V [kv_heads, n, D] of tokens at [start, start + n)."""
    position = np.arange(start, start + len(tokens))[None, :, None]
    head, dim = np.arange(shape.kv_heads)[:, None, None], np.arange(shape.head_dim)[None, None]
    mixed = np.array(tokens, np.int64).reshape(1, -1, 1) * 3.7 + position * 12.9 + layer * 78.2
    keys = np.sin(mixed + head * 5.1 + dim * (1.3 + head)) * 1.5
    values = np.cos(mixed * 1.1 + head * 2.3 + dim * 0.7)
    return keys.astype(np.float32), values.astype(np.float32)


def attention(query: Floats, keys: Floats, values: Floats) -> Floats:
    """One query [heads, D] over K/V [kv_heads, n, D] in logical order, scale 1."""
    each = query.shape[0] // keys.shape[0]
    keys, values = np.repeat(keys, each, axis=0), np.repeat(values, each, axis=0)
    scores = np.einsum("hd,hnd->hn", query, keys)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    out: Floats = np.einsum("hn,hnd->hd", weights, values).astype(np.float32)
    return out


def live_bytes(caches: LiveCaches) -> int:
    """Bytes of everything live, rows without an owner included."""
    return sum(a.nbytes for a in caches.arrays)


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens for one slot. kept: how many of a decode round are committed; None: a prefill."""

    tokens: tuple[int, ...]
    kept: int | None = None
    draws: bool = True


class World:
    """LiveCaches and what they should hold."""

    def __init__(
        self,
        shapes: Sequence[LayerShape] = SHAPES,
        window: int = WINDOW,
        seed: int = 0,
        kernels: Kernels = CPU_KERNELS,
        heads: int = HEADS,
    ) -> None:
        self.shapes, self.window = shapes, window
        self.ring = ring_tokens(window, ROUND, kernels.tile_tokens)
        row = whole_tiles(STEP, kernels.tile_tokens)
        self.caches = LiveCaches(shapes, window, ROUND, mx.float32, row, kernels)
        self.heads = heads
        self.tokens: dict[int, list[int]] = {}
        self.floors: dict[int, int] = {}
        self.rng = np.random.default_rng(seed)

    def admit(
        self,
        slot: int,
        tokens: Sequence[int] = (),
        path: Sequence[EdgePayload] = (),
        base: int = 0,
    ) -> None:
        self.caches.restore(slot, path, len(tokens), base)
        self.tokens[slot] = list(tokens)
        self.floors[slot] = max(0, len(tokens) - self.window)

    def release(self, slot: int) -> None:
        self.caches.release(slot)
        del self.tokens[slot], self.floors[slot]

    def rewind(self, slot: int, target: int) -> None:
        for store in self.caches.stores:
            assert store.restore(slot, None, target)
        del self.tokens[slot][target:]
        self.floors[slot] = min(self.floors[slot], target)

    def batch(self, feeds: Mapping[int, Feed]) -> Batch:
        spans = {s: Span(s, len(self.tokens[s]), len(f.tokens), f.draws) for s, f in feeds.items()}
        decodes = [spans[s] for s, f in feeds.items() if f.kept is not None]
        return Batch(decodes, [spans[s] for s, f in feeds.items() if f.kept is None])

    def packed(
        self, layer: int, batch: Batch, feeds: Mapping[int, Feed]
    ) -> tuple[mx.array, mx.array]:
        """K/V [T, kv_heads, D] of what a step feeds."""
        parts = [
            code(layer, self.shapes[layer], feeds[s.slot].tokens, s.start) for s in batch.spans
        ]
        keys, values = (
            np.concatenate(part, axis=1).transpose(1, 0, 2) for part in zip(*parts, strict=True)
        )
        return mx.array(keys), mx.array(values)

    def step(self, feeds: Mapping[int, Feed], trim_from: int | None = None) -> list[Floats]:
        """Write, attend, compare, commit. Layers from `trim_from` on see kept rows only."""
        batch = self.batch(feeds)
        self.caches.prepare(batch)
        outputs = []
        for layer, store in enumerate(self.caches.stores):
            history = store.update(batch, *self.packed(layer, batch, feeds))
            trimmed = trim_from is not None and layer >= trim_from and batch.kept is not None
            outputs.append(self.compare(layer, batch, feeds, history, trimmed))
        mx.eval(self.caches.arrays)
        for slot, feed in feeds.items():
            end = len(self.tokens[slot]) + len(feed.tokens)
            self.floors[slot] = max(self.floors[slot], end - self.ring)
            self.tokens[slot] += feed.tokens[: feed.kept]
            self.caches.commit(slot, len(self.tokens[slot]))
        return outputs

    def compare(
        self, layer: int, batch: Batch, feeds: Mapping[int, Feed], history: History, trimmed: bool
    ) -> Floats:
        """One layer's attention of random queries, checked row by row."""
        shape = self.shapes[layer]
        queries = self.rng.normal(size=(batch.tokens, self.heads, shape.head_dim)).astype(
            np.float32
        )
        rows = batch.kept_host if trimmed else np.arange(batch.tokens)
        if not rows.size:
            return queries[:0]
        out = np.array(history.attend(mx.array(queries[rows]), trimmed))
        expected = self.reference(layer, batch, feeds, queries)[rows]
        np.testing.assert_allclose(out, expected, atol=TOLERANCE)
        return out

    def reference(
        self, layer: int, batch: Batch, feeds: Mapping[int, Feed], queries: Floats
    ) -> Floats:
        shape, out = self.shapes[layer], np.empty_like(queries)
        for span, first in zip(batch.spans, batch.firsts, strict=True):
            tokens = [*self.tokens[span.slot], *feeds[span.slot].tokens]
            keys, values = code(layer, shape, tokens)
            for row, position in enumerate(range(span.start, span.end), first):
                low = max(0, position + 1 - self.window) if shape.sliding else 0
                seen = slice(low, position + 1)
                out[row] = attention(queries[row], keys[:, seen], values[:, seen])
        return out

    def check_view(self, slots: Sequence[int], keep: int) -> None:
        """Views of every layer: the newest `keep` committed keys, fewer where fewer are held.

        Of full layers all of them where anybody holds some by reference.
        """
        refers = any(self.caches.rows.base(slot) for slot in slots)
        batch = Batch([Span(s, len(self.tokens[s]) - 1, 1) for s in slots])
        for layer, (store, shape) in enumerate(zip(self.caches.stores, self.shapes, strict=True)):
            size = (len(slots), self.heads, shape.head_dim)
            queries = self.rng.normal(size=size).astype(np.float32)
            every = refers and not shape.sliding
            if isinstance(store, FullStore):
                history = store.view(batch, None if every else keep)
            else:
                history = store.view(batch, keep)
            out = np.array(history.attend(mx.array(queries)))
            for row, slot in enumerate(slots):
                low = 0 if every else max(0, len(self.tokens[slot]) - keep)
                seen = slice(max(low, self.floors[slot]) if shape.sliding else low, None)
                keys, values = code(layer, shape, self.tokens[slot])
                expected = attention(queries[row], keys[:, seen], values[:, seen])
                np.testing.assert_allclose(out[row], expected, atol=TOLERANCE)

    def check_range(self, layer: int, held: Range, tokens: Sequence[int], index: int = 0) -> None:
        """The range's K/V are, bit for bit, those of `tokens` at its positions.

        index: of `layer` among those that the range holds.
        """
        self.check_layer(layer, held.layer(index, held.start, held.end), tokens)

    def check_layer(self, layer: int, held: LayerRange, tokens: Sequence[int]) -> None:
        keys, values = code(layer, self.shapes[layer], tokens)
        np.testing.assert_array_equal(np.array(held.keys), keys[:, held.start : held.end])
        np.testing.assert_array_equal(np.array(held.values), values[:, held.start : held.end])

    def check_content(self, slot: int) -> None:
        """C1, and every layer holds exactly the committed tokens."""
        tokens = self.tokens[slot]
        for layer, (store, shape) in enumerate(zip(self.caches.stores, self.shapes, strict=True)):
            assert store.offsets[slot] == self.caches.offset(slot) == len(tokens)
            base = 0 if shape.sliding else self.caches.rows.base(slot)
            held = store.snapshot(slot, base)
            low = self.floors[slot] if shape.sliding else base
            if low == len(tokens):
                assert held is None
                continue
            assert held is not None
            assert (held.start, held.end) == (low, len(tokens))
            self.check_layer(layer, held, tokens)

    def check_prefix(self, slot: int) -> None:
        """What full layers hold by reference is [0, base), gapless."""
        at = 0
        full = [layer for layer, shape in enumerate(self.shapes) if not shape.sliding]
        for held, start, end in self.caches.prefixes.of(slot):
            assert start == at < end
            at = end
            for index, layer in enumerate(full):
                self.check_layer(layer, held.layer(index, start, end), self.tokens[slot])
        assert at == self.caches.rows.base(slot)

    def check_payload(self, payload: EdgePayload, tokens: Sequence[int]) -> None:
        for held, slides in ((payload.full, False), (payload.sliding, True)):
            layers = [i for i, shape in enumerate(self.shapes) if shape.sliding == slides]
            for index, layer in enumerate(layers):
                if held is not None:
                    self.check_range(layer, held, tokens, index)
