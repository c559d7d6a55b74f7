"""The masks of one step: one call of the library for everybody, under a clock.

- Where the call takes too long everybody's matcher is made anew from what it was fed, and each is
  asked alone: who takes too long then is failed, and nobody else.
- One call for all rows, not one for each place: every call gives up the GIL and waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance.numpy import allocate_token_bitmask

from sapwood.model.constraints.guide import Guide, MaskRows, Walk
from sapwood.model.constraints.length_guide import LengthGuide
from sapwood.model.constraints.mask_worker import MaskWorker
from sapwood.model.constraints.vocabulary import ALL_ALLOWED, allow

_TOO_LONG = "the next token of the constraint takes too long to find"


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A row with masks: of its constraint, of its bounds, or of both. depth: of its round.

    drafts: of the round; none of them where neither asks for them.
    """

    guide: Guide | None
    length: LengthGuide | None
    depth: int
    drafts: Sequence[int] = ()


class StepMasks:
    """Computes masks. Of one thread, the engine's."""

    def __init__(self, vocabulary: int, mask_s_max: float) -> None:
        """vocabulary: tokens. mask_s_max: of a step's call; where it is over, of each reply's."""
        self.vocabulary = vocabulary
        self._mask_s_max = mask_s_max
        self._worker: MaskWorker | None = None

    def of_rows(self, rows: Sequence[HeldRow]) -> MaskRows:
        """int32 [places, words]: of each row depth + 1 places, one behind another."""
        masks = allocate_token_bitmask(sum(row.depth + 1 for row in rows), self.vocabulary)
        masks[:] = ALL_ALLOWED
        guided = [(row.guide, row.drafts) for row in rows if row.guide is not None]
        walked = self.of(*zip(*guided, strict=True)) if guided else masks[:0]
        at = taken = 0
        for row in rows:
            end = at + row.depth + 1
            if row.guide is not None:
                masks[at:end] = walked[taken : taken + row.depth + 1]
                taken += row.depth + 1
            if row.length is not None:
                row.length.apply(masks[at:end], row.drafts)
            at = end
        return masks

    def of(self, guides: Sequence[Guide], paths: Sequence[Sequence[int]]) -> MaskRows:
        """int32 [places, words]: of each guide len(path) + 1 places, one behind another.

        A guide that cannot be asked in time is failed; its places allow everything.
        """
        every = [(guide, path) for guide, path in zip(guides, paths, strict=True)]
        masks = self._computed(every)
        if masks is None:
            masks = self._one_by_one(every)
        for guide in guides:
            guide.check()
        return masks

    def _one_by_one(self, every: Sequence[tuple[Guide, Sequence[int]]]) -> MaskRows:
        masks = allocate_token_bitmask(sum(len(path) + 1 for _, path in every), self.vocabulary)
        at = 0
        for guide, path in every:
            guide.renew()
            end = at + len(path) + 1
            alone = self._computed([(guide, path)])
            if alone is None:
                guide.failure = _TOO_LONG
            else:
                masks[at:end] = alone
            at = end
        return masks

    def _computed(self, some: Sequence[tuple[Guide, Sequence[int]]]) -> MaskRows | None:
        """None where it takes too long, or the library breaks down over it."""
        masks = allocate_token_bitmask(sum(len(path) + 1 for _, path in some), self.vocabulary)
        walks: list[Walk] = []
        at = 0
        for guide, path in some:
            walks += guide.path(path, masks, at)
            at += len(path) + 1
        if not walks:
            return masks
        self._worker = self._worker or MaskWorker()
        if not self._worker.compute(masks, walks, self._mask_s_max):
            self._worker.leave()
            self._worker = None
            return None
        for walk in walks:
            if walk.opens is not None:
                allow(masks[walk.place], walk.opens)
        return masks

    def close(self) -> None:
        """Let the thread go."""
        if self._worker is not None:
            self._worker.leave()
            self._worker = None
