"""Fakes that remember what they were given, so that a test can compare content, not just sizes.

- A TokenLog stands for stored K/V and holds the very tokens it was computed from.
- Its Tracker counts every payload made and closed; a use after close or a second close fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sapwood.cache.geometry import buffer_bytes
from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.result import TokenLogprobs

FULL_BYTES = 3  # per token; coprime to SLIDING_BYTES, so that a mixed-up sum shows
SLIDING_BYTES = 10


def toy_logprobs(tokens: Sequence[int], count: int) -> tuple[TokenLogprobs, ...]:
    """What a fake device reports of tokens that it drew: theirs alone; nothing for a count of 0."""
    if not count:
        return ()
    return tuple(
        TokenLogprobs(-token / 8, tuple((token + n, -n / 4) for n in range(count)))
        for token in tokens
    )


class OutOfDeviceMemory(Exception):
    """What a payload's operation raises where the Tracker says so."""


@dataclass
class Tracker:
    """Created == live + closed, for all payloads of one test."""

    full_bytes: int = FULL_BYTES
    sliding_bytes: int = SLIDING_BYTES
    page_bytes: int = 1
    created: int = 0
    closed: int = 0
    bytes: int = 0  # of all that live, in pages
    buffers: int = 0  # likewise
    operations: int = 0  # splits, merges, thinnings
    copied_tokens: int = 0  # by merges
    operations_until_failure: int | None = None
    live: set[int] = field(default_factory=set)
    lying: Counter[int] = field(default_factory=Counter)  # full K/V that live payloads hold, by id

    def log(
        self, tokens: Sequence[int], start: int, end: int, sliding_start: int | None = None
    ) -> TokenLog:
        """What a device would hand back for [start, end) of the path `tokens`."""
        first = start if sliding_start is None else sliding_start
        assert 0 <= start <= first <= end <= len(tokens), f"[{start}, {end}) from {first}"
        return TokenLog(self, start, tuple(tokens[start:end]), tuple(tokens[first:end]))

    def operate(self) -> None:
        self.operations += 1
        if self.operations_until_failure is not None:
            if self.operations_until_failure == 0:
                raise OutOfDeviceMemory
            self.operations_until_failure -= 1


class TokenLog:
    """A Payload whose K/V are the tokens themselves."""

    def __init__(
        self, tracker: Tracker, start: int, full: tuple[int, ...], sliding: tuple[int, ...]
    ) -> None:
        self._tracker = tracker
        self._start, self._full, self._sliding = start, full, sliding
        tracker.created += 1
        tracker.live.add(id(self))
        tracker.lying[id(full)] += 1
        self._live = True
        tracker.bytes += self.full_bytes + self.sliding_bytes
        tracker.buffers += self.buffers

    @property
    def start(self) -> int:
        return self._use()._start

    @property
    def end(self) -> int:
        return self.start + len(self._full)

    @property
    def sliding_start(self) -> int:
        return self.end - len(self._sliding)

    @property
    def full_bytes(self) -> int:
        return buffer_bytes(self._tracker.full_bytes * len(self.full), self._tracker.page_bytes)

    @property
    def sliding_bytes(self) -> int:
        asked = self._tracker.sliding_bytes * len(self.sliding)
        return buffer_bytes(asked, self._tracker.page_bytes)

    @property
    def buffers(self) -> int:
        """One for each kind of layer that has any bytes."""
        return bool(self.full_bytes) + bool(self.sliding_bytes)

    @property
    def full(self) -> tuple[int, ...]:
        return self._use()._full

    @property
    def sliding(self) -> tuple[int, ...]:
        return self._use()._sliding

    def split(self, at: int) -> tuple[Payload, Payload]:
        assert self.start < at < self.end, f"cannot split [{self.start}, {self.end}) at {at}"
        self._tracker.operate()
        cut = max(0, at - self.sliding_start)
        upper = self._make(self.start, self._full[: at - self.start], self._sliding[:cut])
        lower = self._make(at, self._full[at - self.start :], self._sliding[cut:])
        self.close()
        return upper, lower

    def merge(self, child: Payload) -> Payload:
        assert isinstance(child, TokenLog)
        assert self.end == child.start, f"[.., {self.end}) and [{child.start}, ..)"
        self._tracker.operate()
        self._tracker.copied_tokens += len(self.full) + len(child.full)
        gap = child.sliding_start > child.start
        sliding = child.sliding if gap else self.sliding + child.sliding
        merged = self._make(self.start, self.full + child.full, sliding)
        self.close()
        child.close()
        return merged

    def thin(self, sliding_start: int) -> Payload:
        assert self.sliding_start < sliding_start <= self.end, f"thin to {sliding_start}"
        self._tracker.operate()
        dropped = sliding_start - self.sliding_start
        thinned = self._make(self.start, self.full, self.sliding[dropped:])
        self.close()
        return thinned

    def copy(self, start: int, end: int, sliding_start: int) -> Payload:
        assert self.start <= start < end <= self.end, f"[{start}, {end}) of [{self.start}, ..)"
        first = min(end, max(start, sliding_start, self.sliding_start))
        full = self.full[start - self.start : end - self.start]
        sliding = self.sliding[first - self.sliding_start : end - self.sliding_start]
        return self._make(start, full, sliding)

    def close(self) -> None:
        self._tracker.bytes -= self.full_bytes + self.sliding_bytes
        self._tracker.buffers -= self.buffers
        self._live = False
        self._tracker.closed += 1
        self._tracker.live.remove(id(self))
        lying = self._tracker.lying
        lying[id(self._full)] -= 1
        if not lying[id(self._full)]:
            del lying[id(self._full)]  # or a soak would grow by it

    def _make(self, start: int, full: tuple[int, ...], sliding: tuple[int, ...]) -> TokenLog:
        return TokenLog(self._tracker, start, full, sliding)

    def _use(self) -> TokenLog:
        assert self._live, f"[{self._start}, +{len(self._full)}) was closed or taken already"
        return self
