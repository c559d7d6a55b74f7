"""One text, evaluated by a pair's target in several ways: what company does to its logits.

- Whole and in slices, a token at a time and in rounds, alone and between others, in another row of
  the pools, behind a prefix that is copied and one that is held by reference.
- Runs over live caches of its own with a small window, as warm_up does: the weights are the
  model's, and the text is longer than a tile and the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.speculation import begin_speculation
from sapwood.cache.geometry import TILE_TOKENS
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.pair import Pair

PROMPT_TOKENS = 2 * TILE_TOKENS + 5
TEXT_TOKENS = 9
_WINDOW_TOKENS = 64
_ROUND_MAX = 9
# Slots: the text's, which alone lies in the first row of the pools, and where it is stored from.
_OWN, _OTHER = 1, 3
_BEFORE, _BEHIND = 0, 2  # its company's


@dataclass(frozen=True, slots=True)
class Way:
    """slices: of the prompt. rounds: of the reply. stored: restored to there; base: of it held by
    reference.
    """

    told: str
    slices: tuple[int, ...]
    rounds: tuple[int, ...]
    company: bool = False
    stored: int = 0
    base: int = 0


ALL_ALONE = Way("alone", (PROMPT_TOKENS,), (1,) * TEXT_TOKENS)
WAYS = (
    Way("in other slices", (1, 5, PROMPT_TOKENS - 13, 7), ALL_ALONE.rounds),
    Way("in rounds with drafts", ALL_ALONE.slices, (4, 5)),
    Way("in company", ALL_ALONE.slices, (1, 3, 5), company=True),
    Way("behind a copied prefix", (3,), ALL_ALONE.rounds, stored=PROMPT_TOKENS - 3),
    Way(
        "behind a prefix by reference", (2, 1), (9,), company=True, stored=PROMPT_TOKENS - 3,
        base=TILE_TOKENS,
    ),
)  # fmt: skip


class OneText:
    """The pair's target over live caches of their own, anew for each way."""

    def __init__(self, pair: Pair) -> None:
        config = pair.target_config
        self._target = PackedGemma4(pair.target, config.placeholders, pair.kernels)
        self._window = min(config.text.window_tokens, _WINDOW_TOKENS)
        self._vocabulary, self._kernels = config.text.vocabulary, pair.kernels
        self._dtype = pair.dtype

    def logits(self, way: Way) -> np.ndarray:
        """float32 [TEXT_TOKENS, vocabulary], of the text's last tokens."""
        caches = LiveCaches(
            self._target.shapes, self._window, _ROUND_MAX, self._dtype, kernels=self._kernels
        )
        if way.company:
            self._step(caches, [], [(_BEFORE, 3), (_BEHIND, 90)])
        if way.stored:
            self._restore(caches, way)
        for count in way.slices:
            self._step(caches, [(_BEHIND, 1)] * way.company, [(_OWN, count)])
        before, behind = [(_BEFORE, 2)] * way.company, [(_BEHIND, 1)] * way.company
        rows = [
            self._step(caches, [*before, (_OWN, count), *behind], [])[_OWN] for count in way.rounds
        ]
        caches.release_all()
        return np.concatenate(rows)

    def _restore(self, caches: LiveCaches, way: Way) -> None:
        """What another slot evaluated and stored."""
        self._step(caches, [], [(_OTHER, way.stored)])
        payload = caches.capture(_OTHER, 0, way.stored)
        assert payload is not None
        caches.release(_OTHER)
        caches.restore(_OWN, (payload,), way.stored, way.base)

    def _step(
        self,
        caches: LiveCaches,
        decodes: Sequence[tuple[int, int]],
        prefills: Sequence[tuple[int, int]],
    ) -> dict[int, np.ndarray]:
        """One forward of (slot, tokens) spans; by slot the bits of decode rows' logits."""
        for slot, _ in prefills:
            if not caches.holds(slot):
                caches.restore(slot, (), 0)
        spans = [
            [Span(slot, caches.offset(slot), count) for slot, count in some]
            for some in (decodes, prefills)
        ]
        batch = Batch(*spans)
        caches.prepare(batch)
        fed = mx.array(np.concatenate([list(self._tokens(span)) for span in batch.spans]))
        layers, transaction = begin_speculation(caches, batch)
        hidden = self._target.forward(fed.astype(mx.int32), batch, layers).hidden
        logits = self._target.logits(hidden).astype(mx.float32)
        mx.eval(logits, *caches.arrays)
        for span in batch.spans:
            transaction.commit(span.slot, span.length)
        ends = np.cumsum([span.length for span in batch.decodes])
        parts = np.split(np.array(logits), ends)
        return {span.slot: part for span, part in zip(batch.decodes, parts, strict=False)}

    def _tokens(self, span: Span) -> Iterable[int]:
        """Of the text, or of what a companion says."""
        told = 0 if span.slot in (_OWN, _OTHER) else 1 + span.slot
        for position in range(span.start, span.end):
            yield (7919 * position + 31 * told + 2) % self._vocabulary
