"""What is held of one named conversation. Whose it is and who changes it: sessions.py."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from sapwood.scheduler.core.last_reply import LastReply
from sapwood.scheduler.core.sequence import Sequence


@dataclass(slots=True, eq=False)
class KeptSession:
    """One of them. tokens: without what has come of a reply under way."""

    created_at: float
    ttl_s: float
    revision: int
    tokens: array[int]
    expires_at: float = 0.0
    root: bytes = b""  # of the request that it was used by last
    style: object = None
    calls: tuple[tuple[str, str], ...] = ()
    running: Sequence | None = None
    last: LastReply | None = None

    @property
    def path(self) -> array[int]:
        """What it holds now, with what has come of a reply under way."""
        sequence = self.running
        if sequence is None or not sequence.emitted:
            return self.tokens
        return sequence.packed_path(sequence.prompt_tokens + sequence.emitted)

    @property
    def room_tokens(self) -> int:
        """Tokens that it may come to hold as it is, those of a last reply included."""
        last = 0 if self.last is None or self.last.tokens is self.tokens else len(self.last.tokens)
        return last + max(len(self.tokens), self.running.tokens_max if self.running else 0)

    def over(self, now: float) -> bool:
        """Whether its time is."""
        return self.running is None and self.expires_at <= now
