"""The masks of one step: one call of the library for everybody, under a clock.

- Where the call takes too long everybody's matcher is made anew from what it was fed, and each is
  asked alone: who takes too long then is failed, and nobody else.
- One call for all rows, not one for each place: every call gives up the GIL and waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from llguidance.numpy import allocate_token_bitmask

from sapwood.model.constraints.guide import Guide, MaskRows, Walk
from sapwood.model.constraints.mask_worker import MaskWorker
from sapwood.model.constraints.vocabulary import allow

_TOO_LONG = "the next token of the constraint takes too long to find"


class StepMasks:
    """Computes masks. Of one thread, the engine's."""

    def __init__(self, vocabulary: int, mask_s_max: float) -> None:
        """vocabulary: tokens. mask_s_max: of a step's call; where it is over, of each reply's."""
        self._vocabulary = vocabulary
        self._mask_s_max = mask_s_max
        self._worker: MaskWorker | None = None

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
        masks = allocate_token_bitmask(sum(len(path) + 1 for _, path in every), self._vocabulary)
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
        masks = allocate_token_bitmask(sum(len(path) + 1 for _, path in some), self._vocabulary)
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
