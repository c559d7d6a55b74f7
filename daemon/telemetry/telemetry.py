"""Every RPC that is open, how all that ended have ended, and who wants to know of an end.

- One begin() and one end() for each RPC, on the event loop.
- A sink that fails costs its own line or span, never the RPC.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable

from sapwood.daemon.faults import described
from sapwood.daemon.telemetry.calls import CallRecord

Sink = Callable[[CallRecord], None]

_log = logging.getLogger(__name__)


class Telemetry:
    """Of one daemon."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.ended: Counter[tuple[str, str]] = Counter()  # RPCs, by method and code
        self.open: set[CallRecord] = set()
        self._sinks: list[Sink] = []

    def expect(self, methods: Iterable[str]) -> None:
        """These are served: none of them ended so far, which is a count too."""
        self.ended.update({(method, "OK"): 0 for method in methods})

    def add_sink(self, sink: Sink) -> None:
        """It is told of every RPC that ends from now on, after those that were added before."""
        self._sinks.append(sink)

    def begin(self, record: CallRecord) -> None:
        """The RPC is open."""
        self.open.add(record)

    def end(self, record: CallRecord) -> None:
        """The RPC is over, for whatever reason, which its record has."""
        record.ended_at = time.monotonic()
        self.open.discard(record)
        self.ended[record.method, record.code] += 1
        for sink in self._sinks:
            try:
                sink(record)
            except Exception as bug:
                _log.error("an RPC was not told of: %s", described(bug))
