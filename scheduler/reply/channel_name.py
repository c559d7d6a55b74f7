"""The name of a channel, told from what the model thinks in it.

- The one name is Gemma's own, `thought`, where white space or the channel's end follows. Any other
  first word is a thought: a name too many is seen and does no harm, a lost thought is never seen.
- With the name go the white space before it, the blanks behind it and one line break.
- What may still become the name is held back: some 20 bytes at most.
"""

from __future__ import annotations

import re

_SPACE = b" \t\r\n"
_BEFORE_BYTES_MAX = 8  # white space before the name; a model writes one at most
_NAME = b"thought"
_NAMED = re.compile(rb"[ \t\r\n]{0,%d}%s(?=[ \t\r\n])" % (_BEFORE_BYTES_MAX, _NAME))


class ChannelName:
    """One channel's beginning: push() its bytes, take what is no name, end() it."""

    __slots__ = ("_given", "_held", "_named", "_settled")

    def __init__(self, prompt: bytes = b"") -> None:
        """`prompt` is what the prompt had in the channel: it may hold the name, or half of it."""
        self._held = b""
        self._given = 0
        self._named = self._settled = False
        self.push(prompt)
        self._given = len(self._held)

    def push(self, data: bytes) -> bytes:
        """What of `data`, and of what was held back, is thought."""
        if self._settled:
            return data
        if not self._named:
            self._held += data
            named = _NAMED.match(self._held)
            if named is None:
                return b"" if self._may_be_named() else self.end()
            self._named, data = True, self._held[named.end() :]
        return self._behind_name(data)

    def end(self) -> bytes:
        """What was held back and is no name. What comes from now on is thought."""
        named = self._named or _NAMED.match(self._held + b"\n")
        thought = b"" if named else self._held[self._given :]
        self._held, self._settled = b"", True
        return thought

    def _may_be_named(self) -> bool:
        begun = self._held.lstrip(_SPACE)
        before_bytes = len(self._held) - len(begun)
        return before_bytes <= _BEFORE_BYTES_MAX and _NAME.startswith(begun)

    def _behind_name(self, data: bytes) -> bytes:
        data = data.lstrip(b" \t\r")
        self._settled = bool(data)
        return data.removeprefix(b"\n")
