"""What a request's time went to: queue, prefill, rounds, emit, one after the other. Pure.

- Of a whole reply the core's own durations, laid out back from when its end was heard of.
- Of one that was cut off, what the loop heard: a queue that ends with its first slice,
  a prefill that ends with the first token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sapwood.daemon.telemetry.calls import CallRecord, GenerationRecord


@dataclass(frozen=True, slots=True)
class RequestPart:
    """[start, end) by the engine's clock, in seconds. told: attributes of its span."""

    name: str
    start: float
    end: float
    told: dict[str, int] = field(default_factory=dict)


def parts_of_request(record: CallRecord) -> Iterator[RequestPart]:
    """Of a request that has ended; none of one that was not admitted."""
    generation, ended_at = record.generation, record.ended_at
    if generation is None or ended_at is None:
        return
    if generation.finished is None or generation.finished_at is None:
        yield from _heard(generation, ended_at)
        return
    usage, end = generation.finished.usage, generation.finished_at
    drawn = end - usage.decode_seconds
    admitted = drawn - usage.prefill_seconds
    submitted = admitted - usage.queue_seconds - generation.waited_s
    prompt = {"sapwood.cached_tokens": usage.cached_tokens}
    rounds = {
        "sapwood.decode_steps": usage.decode_steps,
        "sapwood.rounds": usage.rounds,
        "sapwood.draft_tokens": usage.draft_tokens,
        "sapwood.accepted_tokens": usage.accepted_tokens,
    }
    yield RequestPart("queue", submitted, admitted)
    yield RequestPart("prefill", admitted, drawn, prompt)
    yield RequestPart("rounds", drawn, end, rounds)
    yield RequestPart("emit", end, max(end, ended_at))


def _heard(generation: GenerationRecord, ended_at: float) -> Iterator[RequestPart]:
    submitted = generation.submitted_at - generation.waited_s
    begun, first = generation.begun_at, generation.first_token_at
    yield RequestPart("queue", submitted, begun or ended_at)
    if begun is not None:
        yield RequestPart("prefill", begun, first or ended_at)
    if first is not None:
        yield RequestPart("rounds", first, ended_at)
