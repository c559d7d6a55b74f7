"""Sequences over one packed forward: what the runner does, without a drafter or a sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.attention import Layers
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import EdgePayload
from sapwood.model.gemma4 import PackedGemma4
from tests.model.reference import NAMES, Array, assistant, golden, target, target_config

ROUND_MAX = 9
LENGTH_MAX = 1 << 20
TOLERANCE = 1e-4

BOTH = pytest.mark.parametrize("name", NAMES)


@cache
def packed(name: str) -> PackedGemma4:
    return PackedGemma4(target(name), target_config(name).placeholders)


@cache
def story(name: str, prompt: int) -> Array:
    """The reference's prompt and its greedy continuation."""
    arrays = golden(name)
    return np.concatenate([arrays[f"p{prompt}_ids"], arrays[f"p{prompt}_greedy"]])


@cache
def plain(name: str, prompt: int) -> Array:
    """mlx-lm's own logits [L + 64, V] of that, in one forward."""
    return np.array(target(name)(mx.array(story(name, prompt))[None])[0])


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens for one slot. kept: how many of a decode round stay; None: a prefill slice."""

    tokens: Sequence[int]
    kept: int | None = None
    draws: bool = True


class Sequences:
    """Live caches of a model, of a reference pair's by its name, and the packed forward over them.

    window: as TextConfig.window_tokens has it, where that is not the model's own.
    """

    def __init__(self, model: str | PackedGemma4, window: int | None = None) -> None:
        self.model = packed(model) if isinstance(model, str) else model
        window = self.model.text.window_size if window is None else window
        self.caches = LiveCaches(self.model.shapes, window, ROUND_MAX, mx.float32)
        self.frontier: dict[int, mx.array] = {}
        self.hidden: dict[int, mx.array] = {}  # of the last step, after the final norm

    def admit(self, slot: int, path: Sequence[EdgePayload] = (), target: int = 0) -> None:
        self.caches.restore(slot, path, target)

    def release(self, slot: int) -> None:
        self.caches.release(slot)

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, Array]:
        """One packed forward; slot -> logits [kept rows, V] of its span."""
        batch = self.batch(feeds)
        self.caches.prepare(batch)
        rows = self.logits(batch, feeds, self.caches)
        mx.eval(self.caches.arrays)
        for slot, feed in feeds.items():
            count = len(feed.tokens) if feed.kept is None else feed.kept
            self.caches.commit(slot, self.caches.offset(slot) + count)
        return rows

    def batch(self, feeds: Mapping[int, Feed]) -> Batch:
        spans = {
            slot: Span(slot, self.caches.offset(slot), len(feed.tokens), feed.draws)
            for slot, feed in feeds.items()
        }
        prefills = [span for slot, span in spans.items() if feeds[slot].kept is None]
        return Batch([s for s in spans.values() if s not in prefills], prefills)

    def logits(self, batch: Batch, feeds: Mapping[int, Feed], layers: Layers) -> dict[int, Array]:
        tokens = np.concatenate([np.array(feeds[s.slot].tokens, np.int32) for s in batch.spans])
        hidden = self.model.forward(mx.array(tokens), batch, layers).hidden
        counts = [s.length for s in batch.decodes] + [int(s.draws) for s in batch.prefills]
        assert hidden.shape[0] == sum(counts)
        if not hidden.size:
            return {}
        logits = np.array(self.model.logits(hidden))
        firsts = np.cumsum([0, *counts])
        for span, first, count in zip(batch.spans, firsts, counts, strict=False):
            if count:
                # the row that a drafter starts from: the last one that stays
                kept = feeds[span.slot].kept
                row = int(first) + (count if kept is None else kept) - 1
                self.frontier[span.slot] = hidden[row]
                self.hidden[span.slot] = hidden[first : first + count]
        return {
            span.slot: logits[first : first + count]
            for span, first, count in zip(batch.spans, firsts, counts, strict=False)
            if count
        }

    def drafts(self, name: str, done: Mapping[int, int], depth: int, back: int) -> mx.array:
        """Greedy drafts [slots, depth] for slots that emitted done[slot] tokens and a bonus."""
        drafter, arrays, stores = assistant(name)[0], golden(name), self.caches.stores
        batch = Batch([Span(slot, self.caches.offset(slot) - 1, 1) for slot in done])
        sliding, full = stores[self.model.donors["sliding"]], stores[self.model.donors["full"]]
        views = {
            "sliding": sliding.view(batch, self.caches.window + 1 - back),
            "full": full.view(batch, LENGTH_MAX),
        }
        tokens = mx.array([int(arrays[f"p{slot}_greedy"][t]) for slot, t in done.items()])
        hidden = mx.stack([self.frontier[slot] for slot in done])
        turns = drafter.turns(mx.array([self.caches.offset(slot) - back for slot in done]))
        columns = []
        for _ in range(depth):
            drafted, hidden = drafter.step(
                self.model.embed(tokens), hidden, turns, lambda kind, q: views[kind].attend(q)
            )
            best = drafted.logits.argmax(-1)[:, None]
            if drafted.ids is not None:
                best = mx.take_along_axis(drafted.ids, best, 1)
            tokens = best[:, 0]
            columns.append(tokens)
        return mx.stack(columns, axis=1)

    def content(self, slot: int) -> list[Array]:
        """K and V of all layers of either kind that the slot holds of its newest window."""
        offset = self.caches.offset(slot)
        held = self.caches.capture(slot, max(0, offset - self.caches.window), offset)
        assert held is not None
        ranges = [r for r in (held.full, held.sliding) if r is not None]
        assert sum(len(r.kv_heads) for r in ranges) == len(self.caches.stores)
        return [np.array(r.stack) for r in ranges]


def largest(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0.0))
