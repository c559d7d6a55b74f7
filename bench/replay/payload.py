"""A Payload without K/V: only its ranges, and what they would weigh.

- Bytes are exact, without a device's pages: a budget of gigabytes does not see them.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.replay.trace import KVShape
from sapwood.cache.prefix.snapshot import Payload


@dataclass(slots=True)
class WeightlessPayload:
    """[start, end), sliding layers from sliding_start on. Never changes; closing it is nothing."""

    shape: KVShape
    start: int
    end: int
    sliding_start: int

    @property
    def full_bytes(self) -> int:
        return (self.end - self.start) * self.shape.full_bytes

    @property
    def sliding_bytes(self) -> int:
        return (self.end - self.sliding_start) * self.shape.sliding_bytes

    def split(self, at: int) -> tuple[Payload, Payload]:
        assert self.start < at < self.end, f"{self} at {at}"
        return (
            WeightlessPayload(self.shape, self.start, at, min(at, self.sliding_start)),
            WeightlessPayload(self.shape, at, self.end, max(at, self.sliding_start)),
        )

    def merge(self, child: Payload) -> Payload:
        assert self.end == child.start, f"{self} and {child}"
        gap = child.sliding_start > child.start
        first = child.sliding_start if gap else self.sliding_start
        return WeightlessPayload(self.shape, self.start, child.end, first)

    def thin(self, sliding_start: int) -> Payload:
        assert self.sliding_start < sliding_start <= self.end, f"{self} to {sliding_start}"
        return WeightlessPayload(self.shape, self.start, self.end, sliding_start)

    def copy(self, start: int, end: int, sliding_start: int) -> Payload:
        first = min(end, max(start, sliding_start, self.sliding_start))
        return WeightlessPayload(self.shape, start, end, first)

    def close(self) -> None:
        pass
