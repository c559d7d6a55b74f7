"""The masks of one step: one call of the library for everybody, under a clock.

- A mask is computed by a thread that can be left behind, since no call of the library can be ended.
  What is handed to it is its own until it is done: the buffer too.
- Where the call takes too long everybody's matcher is made anew from what it was fed, and each is
  asked alone: who takes too long then is failed, and nobody else.
- One call for all rows, not one for each place: every call gives up the GIL and waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue

from llguidance import LLExecutor
from llguidance.numpy import (
    allocate_token_bitmask,
    fill_next_token_bitmask_par,
    fill_next_token_bitmask_par_with_draft_tokens,
)

from sapwood.model.constraints.guide import Guide, MaskRows, Walk
from sapwood.model.constraints.vocabulary import allow

_TOO_LONG = "the next token of the constraint takes too long to find"


class StepMasks:
    """Computes masks. Of one thread, the engine's."""

    def __init__(self, vocabulary: int, mask_s_max: float) -> None:
        """vocabulary: tokens. mask_s_max: of a step's call; where it is over, of each reply's."""
        self._vocabulary = vocabulary
        self._mask_s_max = mask_s_max
        self._worker: _Worker | None = None

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
        self._worker = self._worker or _Worker()
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


class _Worker:
    """A thread that computes one step's masks after another, until it is left."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[MaskRows, Sequence[Walk], threading.Event, list[bool]] | None]
        self._work = SimpleQueue()
        # Nobody waits for it at the end: it may be in a call that does not end.
        threading.Thread(target=self._run, name="masks", daemon=True).start()

    def compute(self, masks: MaskRows, walks: Sequence[Walk], seconds_max: float) -> bool:
        """Whether it was done in time, and well. Else masks and matchers are the thread's."""
        done, well = threading.Event(), [False]
        self._work.put((masks, walks, done, well))
        return done.wait(seconds_max) and well[0]

    def leave(self) -> None:
        """No more work comes."""
        self._work.put(None)

    def _run(self) -> None:
        executor = LLExecutor()
        while (work := self._work.get()) is not None:
            masks, walks, done, well = work
            try:
                _fill(executor, masks, walks)
                well[0] = True
            except BaseException:  # a panic of the library is one too: who waits is told by `well`
                well[0] = False
            done.set()
            del work, masks, walks


def _fill(executor: LLExecutor, masks: MaskRows, walks: Sequence[Walk]) -> None:
    """The library takes no empty list of drafts."""
    drafted = [(walk.matcher, walk.place, walk.drafts) for walk in walks if walk.drafts]
    plain = [(walk.matcher, walk.place) for walk in walks if not walk.drafts]
    if drafted:
        fill_next_token_bitmask_par_with_draft_tokens(executor, drafted, masks)
    if plain:
        fill_next_token_bitmask_par(executor, plain, masks)
