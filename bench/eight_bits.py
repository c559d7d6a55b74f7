"""What K/V that went to disk in 8 bits does to what the target says next.

- In this process: a prompt is read and its K/V captured. Two slots are restored from it, one from
  the bits themselves and one from what 8 bits leave of them, all layers over all that a restore
  needs. Both are then fed the same greedy reply, which the first one draws, a token at a time.
- Compared at each place: all logits, and whether the likeliest token is the same. What a reply
  computes itself is never packed, so a hit on disk of a whole prompt is the worst that can be.
- The first figure's other side is the spread of logits, max - mean at each place: a difference says
  little without it. bfloat16's own rounding of K/V, for comparison, is `bfloat16_mean`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from bench.measure import Figure, Side
from bench.peers.prompts import as_dicts, chats
from bench.setup import Setup
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.eight_bits import from_eight_bits, to_eight_bits
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import EdgePayload, Range
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.pair import Pair

_PROMPTS, _QUICK_PROMPTS, _PLACES = 8, 2, 48
_EXACT, _PACKED, _ROUNDED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class LogitShift:
    """Of all places of one reply: differences of logits, spread, and other tokens on top."""

    most: float
    mean: float
    spread: float
    changed: int
    bfloat16_mean: float


class Slots:
    """A target and live caches of its own."""

    def __init__(self, pair: Pair) -> None:
        config = pair.target_config
        self._target = PackedGemma4(pair.target, config.placeholders, pair.kernels)
        window = self._target.text.window_size
        self.caches = LiveCaches(self._target.shapes, window, 1, pair.dtype, kernels=pair.kernels)

    def read(self, prompt: Sequence[int]) -> EdgePayload:
        """Its K/V, but for the last token's."""
        self.caches.restore(_EXACT, (), 0)
        self._forward([_EXACT], prompt[:-1])
        payload = self.caches.capture(_EXACT, 0, len(prompt) - 1)
        assert payload is not None, "a prompt of one token"
        self.caches.release(_EXACT)
        return payload

    def next_logits(self, slot: int, token: int) -> Any:
        """[vocabulary], with the token behind what the slot holds."""
        return np.array(self._forward([slot], [token])[-1].astype(mx.float32))

    def _forward(self, slots: Sequence[int], tokens: Sequence[int]) -> mx.array:
        spans = [Span(slot, self.caches.offset(slot), len(tokens)) for slot in slots]
        batch = Batch(spans if len(tokens) == 1 else [], spans if len(tokens) > 1 else [])
        self.caches.prepare(batch)
        hidden = self._target.forward(mx.array(list(tokens)), batch, self.caches).hidden
        logits = self._target.logits(hidden)
        mx.eval(logits, self.caches.arrays)
        for span in spans:
            self.caches.commit(span.slot, span.end)
        return logits


def packed(held: Range | None) -> Range | None:
    """What 8 bits leave of it."""
    if held is None:
        return None
    kv = memoryview(to_eight_bits(held.stack))
    shape = held.stack.shape
    stack = from_eight_bits([kv], (shape[0], shape[1], shape[2]), held.stack.dtype)
    return Range(held.start, held.end, stack, held.kv_heads)


def rounded(held: Range | None) -> Range | None:
    """What bfloat16 leaves of it."""
    if held is None:
        return None
    stack = held.stack.astype(mx.bfloat16).astype(held.stack.dtype)
    return Range(held.start, held.end, stack, held.kv_heads)


def compared(pair: Pair, prompt: Sequence[int], reply_tokens: int = _PLACES) -> LogitShift:
    slots = Slots(pair)
    exact = slots.read(prompt)
    start, end = exact.start, exact.end
    near = EdgePayload(start, end, packed(exact.full), packed(exact.sliding))
    less = EdgePayload(start, end, rounded(exact.full), rounded(exact.sliding))
    for slot, payload in ((_EXACT, exact), (_PACKED, near), (_ROUNDED, less)):
        slots.caches.restore(slot, (payload,), end)
    token, found = prompt[-1], list[tuple[float, float, float, bool, float]]()
    for _ in range(reply_tokens):
        ours, theirs, third = (
            slots.next_logits(slot, token) for slot in (_EXACT, _PACKED, _ROUNDED)
        )
        off = np.abs(ours - theirs)
        spread = float(ours.max() - ours.mean())
        changed = bool(ours.argmax() != theirs.argmax())
        bfloat16 = float(np.abs(ours - third).mean())
        found.append((float(off.max()), float(off.mean()), spread, changed, bfloat16))
        token = int(ours.argmax())
    columns = np.array(found, dtype=float)
    return LogitShift(
        float(columns[:, 0].max()),
        float(columns[:, 1].mean()),
        float(columns[:, 2].mean()),
        int(columns[:, 3].sum()),
        float(columns[:, 4].mean()),
    )


def measure_eight_bits(setup: Setup, pair: Pair) -> Figure:
    count = _QUICK_PROMPTS if setup.quick else _PROMPTS
    prompts = [pair.tokenizer.encode_messages(as_dicts(chat)) for chat in chats(count)]
    told = [compared(pair, prompt) for prompt in prompts]
    places = len(told) * _PLACES
    changed = sum(each.changed for each in told)
    setup.say(f"8 bits: {changed} of {places} places have another token on top")
    return Figure(
        "on_disk/8bit",
        f"K/V from disk in 8 bits: mean difference of logits over {places} places ÷ their spread",
        Side("difference", "logits", tuple(each.mean for each in told)),
        Side("spread", "logits", tuple(each.spread for each in told)),
        details={
            "most": max(each.most for each in told),
            "top_1_changed": float(changed),
            "places": float(places),
            "bfloat16_mean": float(np.mean([each.bfloat16_mean for each in told])),
        },
    )
