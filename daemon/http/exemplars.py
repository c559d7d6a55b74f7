"""For each bucket of a request's latencies, the newest request that fell into it.

- In OpenMetrics an exemplar leads from a slow bucket to that request's line in the log, by
  `request_id`, and to its trace where there is one, by `trace_id`.
- One for each bucket, so their number is bounded; they are no labels and make no series.
- The values are those that the core observed: both come from the reply's Usage.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.core import Exemplar, Timestamp

from sapwood.daemon.engine.engine import Engine
from sapwood.daemon.telemetry.calls import CallRecord
from sapwood.scheduler.events import Usage

# OpenMetrics allows 128 characters; an id has 64 at most.
_LABELS = ("request_id", "trace_id")


class Exemplars:
    """Of one daemon. On the event loop only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._newest: defaultdict[str, dict[int, Exemplar]] = defaultdict(dict)

    def of(self, histogram: str) -> Mapping[int, Exemplar]:
        """By the number of their bucket."""
        return self._newest[histogram]

    def take(self, record: CallRecord) -> None:
        """A sink of Telemetry's: of a reply that is whole."""
        published, generation = self._engine.published, record.generation
        if published is None or generation is None or generation.finished is None:
            return
        known = zip(_LABELS, (record.id, record.trace_id), strict=True)
        labels = {name: value for name, value in known if value}
        now = time.time()
        at = Timestamp(int(now), int(now % 1 * 1e9))
        for name, value in _latencies(generation.finished.usage).items():
            bounds = getattr(published.stats, name).bounds
            self._newest[name][bisect_left(bounds, value)] = Exemplar(labels, value, at)


def _latencies(usage: Usage) -> dict[str, float]:
    """By the histogram of Stats that has them."""
    first_token_s = usage.queue_seconds + usage.prefill_seconds
    return {
        "time_to_first_token": first_token_s,
        "request_queue": usage.queue_seconds,
        "request_prefill": usage.prefill_seconds,
        "request_decode": usage.decode_seconds,
        "request_duration": first_token_s + usage.decode_seconds,
    }
