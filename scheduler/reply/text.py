"""From reply tokens to text that may leave: whole characters, no stop string, no hold for ever.

- Bytes of a token become text as soon as they complete a character. Invalid bytes become U+FFFD at
  once, an unfinished character at the end of the reply too: the text of a reply without a stop
  string is exactly its bytes decoded with errors="replace".
- Stop strings are matched over the text, across tokens. The first to complete wins; of those that
  complete with the same character the longest. Text from its first character on never leaves.
- Held back is only the longest suffix that begins some stop string (`depth` of the automaton).
- Every character is looked at once (Aho-Corasick, amortised): linear in the reply.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence

from sapwood.scheduler.reply.stops import StopAutomaton

_Utf8 = getincrementaldecoder("utf-8")


class ReplyText:
    """Text of one reply: push() each token, take() what may leave, finish() when it ends."""

    __slots__ = (
        "_automaton",
        "_decoder",
        "_held",
        "_ready",
        "_state",
        "_token_bytes",
        "stopped_by",
    )

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str] = ()) -> None:
        """`token_bytes[id]` are the bytes of a token, b"" for specials; shared, never changed."""
        self._token_bytes = token_bytes
        self._decoder = _Utf8("replace")
        self._automaton: StopAutomaton | None = None
        self._state = 0
        self._held = ""
        self._ready: list[str] = []
        self.stopped_by = ""
        self.look_for(stops)

    def look_for(self, stops: Sequence[str]) -> None:
        """From the next character on; before, it looked for none."""
        assert self._automaton is None, "it looks for others already"
        self._automaton = StopAutomaton(stops) if stops else None

    def push(self, token: int) -> bool:
        """Append a token. True when it completed a stop string: the reply ends with this token."""
        assert not self.stopped_by, f"token {token} after the stop string {self.stopped_by!r}"
        return self.push_bytes(self._token_bytes[token])

    def push_bytes(self, data: bytes) -> bool:
        """Append bytes that are no one token's."""
        text = self._decoder.decode(data)
        if b"\xed\xa0" <= self._decoder.getstate()[0] < b"\xee":
            # Python holds these two bytes back as if they began a character; none begins so.
            text += self._decoder.decode(b"", True)
        return self._append(text)

    def finish(self) -> None:
        """Let go of everything held back: the reply ended otherwise than by a stop string.

        An unfinished character becomes U+FFFD, which may itself complete a stop string.
        """
        if not self.stopped_by and not self._append(self._decoder.decode(b"", True)):
            self._ready.append(self._held)
            self._held = ""

    def take(self) -> str:
        """Text that may leave and has not been taken yet."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _append(self, piece: str) -> bool:
        if self._automaton is None or not piece:
            self._ready.append(piece)
            return False
        automaton, text = self._automaton, self._held + piece
        for at, char in enumerate(piece, len(self._held) + 1):
            self._state = automaton.advance(self._state, char)
            if stop := automaton.match[self._state]:
                self.stopped_by = stop
                self._ready.append(text[: at - len(stop)])
                self._held = ""
                return True
        keep = len(text) - automaton.depth[self._state]
        self._ready.append(text[:keep])
        self._held = text[keep:]
        return False
