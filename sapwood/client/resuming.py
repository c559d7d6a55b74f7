"""How a stream of a session is gone on with when its connection breaks. Pure, for both clients.

- Broken is what ended without a word of the daemon's own: a connection that was lost, a proxy that
  cut the stream. What the daemon says ends the stream as it ends any other.
- What the caller has is counted by the prompt's length and the ids that came, so a session that
  the client did not make itself can be resumed once the first event is there.
- Tries follow each other slower and slower, and end where none of them brought anything for
  RESUMING_S_MAX, or with the call's deadline.
"""

from __future__ import annotations

from sapwood.client.errors import SapwoodError
from sapwood.client.reply import ReplyBuilder
from sapwood.v1 import generation_pb2, session_pb2

SESSION_TTL_S = 600.0  # of a session that is there for one stream
RESUMING_S_MAX = 60.0
_WAIT_S = 0.05
_WAIT_S_MAX = 2.0


class Resuming:
    """Of one stream. own: its session was made for it, and has held nothing before."""

    def __init__(self, request: generation_pb2.GenerateRequest, *, own: bool) -> None:
        self._whole = request
        self._own = own
        self._waits = self._waited_s = 0.0
        self._had: int | None = None  # tokens, when it broke last
        self._tried = False  # to resume what may never have come

    def after(
        self, error: SapwoodError, builder: ReplyBuilder
    ) -> tuple[generation_pb2.GenerateRequest, float] | None:
        """What is asked for next, and how long from now; None: the stream has ended."""
        if self._tried and not builder.begun and error.reason == "BAD_REQUEST":
            self._tried = False
            return self._whole, 0.0  # it was never asked for
        if not error.cut or not (self._own or builder.begun):
            return None
        if self._had != builder.tokens:
            self._had, self._waits, self._waited_s = builder.tokens, _WAIT_S, 0.0
        if self._waited_s >= RESUMING_S_MAX:
            return None
        wait_s, self._waits = self._waits, min(2 * self._waits, _WAIT_S_MAX)
        self._waited_s += wait_s
        self._tried = True
        resume = session_pb2.Resume(session=self._whole.session, from_token=builder.tokens)
        return generation_pb2.GenerateRequest(resume=resume), wait_s
