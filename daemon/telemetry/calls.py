"""What is known of one RPC from its arrival to its end: its id, whose it is, what its reply took.

- Written on the event loop alone, by whoever has the call in hand; read by Telemetry's sinks once
  it has ended.
- Holds counts, names and times, and no word of a prompt or a reply.
- Times are of time.monotonic(), which is the engine's clock.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from contextvars import ContextVar

from sapwood.scheduler.events import Delta, Effect, Failed, Finished, Progress, Request, Resumed
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.reasons import Reason, Status
from sapwood.scheduler.sampling import Sampling

REQUEST_ID = "x-request-id"  # metadata, of requests and in trailers
REQUEST_ID_CHARS_MAX = 64
_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:/+=@-]{{1,{REQUEST_ID_CHARS_MAX}}}")
_TRACE_KEYS = ("traceparent", "tracestate")  # of W3C Trace Context

# What fails a request, as the daemon's own fault or the client's pace, however far it has come.
_FAULTS = (Reason.SLOW_READER, Reason.INTERNAL, Reason.ENGINE_FAILED)
_GONE = {Status.CANCELLED: Outcome.CANCELLED, Status.DEADLINE_EXCEEDED: Outcome.DEADLINE}


class GenerationRecord:
    """One admitted Generate, as the engine tells of it."""

    def __init__(self, id: int, waited_s: float, request: Request | None = None) -> None:
        """waited_s: for its principal's quotas, before it is submitted, which is now.

        request: None of a reply that is resumed, of which the engine tells.
        """
        self.id = id
        self.submitted_at = time.monotonic()
        self.waited_s = waited_s
        self._note(request)
        self.cached_tokens = 0
        self.processed_tokens = 0
        self.completion_tokens = 0
        self.begun_at: float | None = None  # when first heard of
        self.first_token_at: float | None = None
        self.finished: Finished | None = None
        self.finished_at: float | None = None

    def _note(self, request: Request | None) -> None:
        self.prompt_tokens = 0 if request is None else len(request.prompt)
        self.max_tokens = 0 if request is None else request.max_tokens
        self.sampling = Sampling() if request is None else request.sampling

    def observe(self, effect: Effect) -> None:
        """What the engine tells of the request, whether its client reads it or not."""
        if isinstance(effect, Failed):
            return
        now = time.monotonic()
        if self.begun_at is None:
            self.begun_at = now
        match effect:
            case Resumed():
                self._note(effect.request)
            case Progress():
                self.cached_tokens, self.processed_tokens = effect.cached, effect.processed
            case Delta():
                if self.first_token_at is None:
                    self.first_token_at = now
                self.completion_tokens += len(effect.token_ids)
            case Finished():
                self.finished_at = now
                if effect.id == self.id:  # of several replies the first has the prompt's account
                    self.finished = effect
                    self.cached_tokens = effect.usage.cached_tokens


class CallRecord:
    """One RPC. method: as gRPC calls it, `package.Service/Method`."""

    def __init__(self, method: str, metadata: Iterable[tuple[str, str | bytes]] = ()) -> None:
        shown = {key: value for key, value in metadata if isinstance(value, str)}
        self.method = method
        self.id = _request_id(shown.get(REQUEST_ID, ""))
        self.trace_context = {key: shown[key] for key in _TRACE_KEYS if key in shown}
        self.trace_id = ""  # of the span that was made of it
        self.peer = ""
        self.principal = ""
        self.model = ""
        self.is_chat = False
        self.generation: GenerationRecord | None = None
        self.reason: Reason | None = None  # what it was refused or ended for; None: it was not
        self.began_at = time.monotonic()
        self.ended_at: float | None = None

    @property
    def generates(self) -> bool:
        """Whether it counts in `requests_total`, by whichever contract it came."""
        return self.method.endswith("/Generate")

    @property
    def code(self) -> str:
        """The gRPC status that it ended with."""
        return "OK" if self.reason is None else self.reason.status.name

    @property
    def duration_s(self) -> float:
        """From arrival to the end, or to now."""
        return (time.monotonic() if self.ended_at is None else self.ended_at) - self.began_at

    @property
    def outcome(self) -> Outcome:
        """Of a request that has ended: what `requests_total` counts it as."""
        generation, reason = self.generation, self.reason
        if generation is not None and generation.finished is not None:
            return generation.finished.reason.outcome
        if reason is None:  # a gateway took it back, and was told so in the stream
            return Outcome.CANCELLED
        if reason.status in _GONE:
            return _GONE[reason.status]
        begun = generation is not None and generation.begun_at is not None
        return Outcome.FAILED if begun or reason in _FAULTS else Outcome.REJECTED


def _request_id(shown: str) -> str:
    """What the client shows where that may stand in logs and trailers, else one of our own."""
    return shown if _REQUEST_ID.fullmatch(shown) else secrets.token_hex(8)


def enter_call(record: CallRecord) -> None:
    """The RPC of this task is `record`'s."""
    _record.set(record)


def record_of_call() -> CallRecord:
    """Of the RPC of this task; where nobody watches, one that nobody reads."""
    return _record.get() or CallRecord("")


_record: ContextVar[CallRecord | None] = ContextVar("record", default=None)
