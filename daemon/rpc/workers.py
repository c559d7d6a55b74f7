"""Threads for work that grows with a request, behind a bounded queue.

- What waits or works is at most `calls_max` calls with `bytes_max` bytes of requests between them;
  what comes on top is refused with QUEUE_FULL and a time to retry.
- A caller that leaves takes its work along: out of the queue at once, out of a thread as soon as
  the work looks up. Until then it counts, so that cancels do not multiply what is held.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sapwood.daemon.rpc.refusals import RETRY_AFTER_S
from sapwood.model.prompt.errors import GivenUp
from sapwood.scheduler.reasons import Reason, Refused

_T = TypeVar("_T")


class Workers:
    """A pool of its own for one kind of work. Called on the event loop."""

    def __init__(
        self,
        name: str,
        threads: int,
        calls_max: int,
        bytes_max: int,
        what: str = "texts wait to be tokenised",
    ) -> None:
        """what: of which there may be too many, as a refusal says it."""
        self._problem = f"too many {what}"
        self._threads = ThreadPoolExecutor(threads, name)
        self._calls_max = calls_max
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._calls = 0
        self._bytes = 0

    async def run(self, work: Callable[[GivenUp], _T], request_bytes: int) -> _T:
        """Raises what the work raises, and Refused where too much waits already."""
        self._enter(request_bytes)
        left = threading.Event()
        # Not anyio.to_thread: a cancelled call gives its place back while its thread still works,
        # so cancels would multiply the workers. Here it keeps its worker, or leaves the queue.
        future = self._threads.submit(work, left.is_set)
        future.add_done_callback(partial(self._leave, request_bytes))
        try:
            return await asyncio.wrap_future(future)
        finally:
            left.set()
            del future  # else what it raises holds this frame, which holds it, and the request

    def close(self) -> None:
        """Take no more work; what the threads have is finished, and not waited for."""
        # Queued work is not cancelled: its RPCs would see a CancelledError that is not theirs.
        self._threads.shutdown(wait=False)

    def _enter(self, request_bytes: int) -> None:
        with self._lock:
            if self._calls == self._calls_max or self._bytes + request_bytes > self._bytes_max:
                raise Refused(Reason.QUEUE_FULL, self._problem, retry_after_s=RETRY_AFTER_S)
            self._calls += 1
            self._bytes += request_bytes

    def _leave(self, request_bytes: int, _done: Future[object]) -> None:
        with self._lock:
            self._calls -= 1
            self._bytes -= request_bytes
