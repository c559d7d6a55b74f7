"""A thread that computes masks and can be left behind: no call of the grammar library can be ended.

What is handed to it is its own until it is done, the buffer too: it may write there when nobody
waits any more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue

from llguidance import LLExecutor
from llguidance.numpy import (
    fill_next_token_bitmask_par,
    fill_next_token_bitmask_par_with_draft_tokens,
)

from sapwood.model.constraints.guide import MaskRows, Walk


class MaskWorker:
    """A thread that computes one step's masks after another, until it is left."""

    def __init__(self, threads: int | None = None) -> None:
        """threads: of the library's own, which it computes with; None: as it likes."""
        self._threads = threads
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
        executor = LLExecutor(self._threads)
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
