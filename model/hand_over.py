"""What is handed over to the device, in which order, and how long the engine thread waits there.

- On a GPU a step's graph is handed over in parts: the device works on the first while the host
  builds the next. Parts change no value, only when each is computed.
- A pool is written in place only while nobody reads it, and a read holds its pool until it has run.
  The drafter reads two layers' pools: its drafts are waited for before the part that writes the
  first of them is handed over. The parts before it keep the device busy meanwhile.
- A step ends with two waits: `eval` may return though a command buffer failed, and then the error
  comes with the stream's next use. `synchronize` is such a use, and the last before a commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx


class HandOver:
    """The engine thread's calls of the device. seconds: that it stood in them so far.

    drafted_at: when it last saw drafts that were there, by perf_counter; 0: never.
    """

    def __init__(self, layers_per_part: int) -> None:
        """layers_per_part: of a forward; 0: a graph goes as a whole."""
        self.layers_per_part = layers_per_part
        self.seconds = 0.0
        self.drafted_at = 0.0

    def start(self, *arrays: mx.array) -> None:
        """Have `arrays` computed; waits only where the device's queue is full."""
        with self.timed():
            mx.async_eval(arrays)

    def start_early(self, array: mx.array) -> None:
        """The same of a part, where there are parts: a later start has it in any case."""
        if self.layers_per_part:
            self.start(array)

    def wait_for(self, *arrays: mx.array) -> None:
        """Until `arrays` are there; what was started after them goes on."""
        with self.timed():
            mx.eval(arrays)

    def finish(self, arrays: Sequence[mx.array]) -> None:
        """Until `arrays` and all that was started are there. Raises what failed of it."""
        with self.timed():
            mx.eval(arrays)
            mx.synchronize()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds of work that waits for the device by itself."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begun


class ForwardParts:
    """The parts of one forward: its first layer, so that the device begins, then every few."""

    def __init__(self, hand_over: HandOver, drafts: mx.array | None, drafts_read: int) -> None:
        """drafts: started already. drafts_read: the first layer whose pool they were drawn from."""
        self._hand_over = hand_over
        self._drafts, self._drafts_read = drafts, drafts_read

    def built(self, index: int, hidden: mx.array) -> None:
        """Layer `index` is built, `hidden` is its output."""
        layers = self._hand_over.layers_per_part
        if layers and index % layers == 0:
            if index >= self._drafts_read:
                self._wait_for_drafts()
            self._hand_over.start(hidden)

    def rest(self, arrays: Sequence[mx.array]) -> None:
        """All is built; `arrays` are what is wanted of it."""
        self._wait_for_drafts()
        self._hand_over.start(*arrays)

    def _wait_for_drafts(self) -> None:
        if self._drafts is not None:
            self._hand_over.wait_for(self._drafts)
            self._hand_over.drafted_at = time.perf_counter()
            self._drafts = None
