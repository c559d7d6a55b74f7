"""Calls as models write them, `call:NAME{key:<|"|>text<|"|>,n:1}`: names and JSON objects.

- Gemma's own quotes are control tokens, so what stands between them is never a guess: it is the
  string, to the letter. They are read first, and nothing else looks inside of them.
- Models also write JSON and Python there: ordinary double and single quotes around strings and
  keys, with either language's escapes; None, True and False beside null, true and false.
- What a model wrote is not trusted. A block is calls all through, or it is none; an unknown form is
  never an error and never torn at a comma.
- Depth and the number of values are bounded and time is linear in the block: it is read in the
  thread that steps for everybody.

Where forms are ambiguous:
- A value or key that begins with an ordinary quote is quoted, and ends at the next such quote that
  no backslash escapes. Were the quote a letter of it, the model would have used its own quotes.
- A backslash that begins no escape is a letter, as in Python: it stands in patterns and in paths.
- A string without quotes goes up to a comma or a closing bracket: models forget the quotes around a
  word or two. So that it is never a torn piece of something else it holds no bracket and no quote
  of any kind (an apostrophe inside a word is none), and parentheses only in pairs; a key without
  quotes holds no comma. `{a:1,2,b:3}` and `{a:say "x, b:c"}` are text.
- Half a surrogate pair, which no text can hold, is U+FFFD, as it is in a reply's text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sapwood.scheduler.events import ToolCall

_DEPTH_MAX = 32
# Calls, elements and pairs of one block. Each costs some microseconds, a letter of a string none.
_VALUES_MAX = 16_384

# Stands for the quote token: half a surrogate pair, which decoded bytes never hold.
_QUOTE = "\ud800"

# Repetitions are possessive: where a pattern fails it has looked at every character once.
_SPACE = re.compile(r"(\s*+)")
_NAME = re.compile(rf"call:([^{_QUOTE}\"'`,(){{}}\[\]]*+)\{{")
_QUOTED = {
    _QUOTE: re.compile(rf"{_QUOTE}([^{_QUOTE}]*+){_QUOTE}"),
    '"': re.compile(rf'"([^"\\{_QUOTE}]*+(?:\\[^{_QUOTE}][^"\\{_QUOTE}]*+)*+)"'),
    "'": re.compile(rf"'([^'\\{_QUOTE}]*+(?:\\[^{_QUOTE}][^'\\{_QUOTE}]*+)*+)'"),
}
_BARE_KEY = re.compile(rf'([^\s,:{{}}\[\]"{_QUOTE}][^,:{{}}"{_QUOTE}]*+)')
_BARE_VALUE = re.compile(rf'([^\s,{{}}\[\]"{_QUOTE}][^,{{}}\[\]"{_QUOTE}]*+)')
_CALL_IN_NAME = re.compile(r"\scall:")
_QUOTE_IN_BARE = re.compile(
    r"(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)|[`\u201c-\u201f\u00ab\u00bb]"
)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+")
_WORDS = {
    **{"null": None, "true": True, "false": False},
    **{"None": None, "True": True, "False": False},
}
_ESCAPE = re.compile(
    r"""\\(?:(["'\\/bfnrt])"""
    r"|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4}))"
)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_calls(pieces: Sequence[str]) -> tuple[ToolCall, ...]:
    """The calls of one block; `pieces[1::2]` stood between quote tokens. () for anything else."""
    try:
        return tuple(_Reader(_QUOTE.join(pieces)).calls())
    except _Malformed:
        return ()


class _Malformed(Exception):
    pass


class _Reader:
    """Recursive descent, a string or number at a time."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._values = 0

    def calls(self) -> list[ToolCall]:
        """All up to the end, one behind another, with white space or a comma between them."""
        calls = [self._call()]
        while self._peek():
            self._took(",")
            calls.append(self._call())
        return calls

    def _call(self) -> ToolCall:
        self._count()
        self._peek()
        name = self._match(_NAME).strip()
        # A call of an unknown form before this one is no part of its name.
        if not name or _CALL_IN_NAME.search(name):
            _malformed()
        self._at -= 1
        return ToolCall(name, json.dumps(self._value(0), ensure_ascii=False))

    def _value(self, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            _malformed()
        match self._peek():
            case "{":
                return dict(self._items("}", lambda: self._pair(depth)))
            case "[":
                return self._items("]", lambda: self._value(depth + 1))
            case char if char in _QUOTED:
                return self._quoted(char)
            case _:
                return _literal(self._bare(_BARE_VALUE))

    def _items(self, end: str, item: Callable[[], Any]) -> list[Any]:
        """Between an opening bracket and `end`, separated by commas."""
        self._at += 1
        items: list[Any] = []
        while not self._took(end):
            if items and not self._took(","):
                _malformed()
            self._count()
            items.append(item())
        return items

    def _count(self) -> None:
        self._values += 1
        if self._values > _VALUES_MAX:
            _malformed()

    def _pair(self, depth: int) -> tuple[str, Any]:
        char = self._peek()
        name = self._quoted(char) if char in _QUOTED else self._bare(_BARE_KEY)
        if not self._took(":"):
            _malformed()
        return name, self._value(depth + 1)

    def _quoted(self, quote: str) -> str:
        text = self._match(_QUOTED[quote])
        return text if quote == _QUOTE else _unescaped(text)

    def _bare(self, pattern: re.Pattern[str]) -> str:
        text = self._match(pattern).strip()
        if _QUOTE_IN_BARE.search(text) or text.count("(") != text.count(")"):
            _malformed()
        return text

    def _match(self, pattern: re.Pattern[str]) -> str:
        """The pattern's group, here; the reader goes on behind the pattern."""
        found = pattern.match(self._text, self._at)
        if found is None:
            _malformed()
        self._at = found.end()
        return found[1]

    def _peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        self._match(_SPACE)
        return self._text[self._at : self._at + 1]

    def _took(self, char: str) -> bool:
        found = self._peek() == char
        self._at += found
        return found


def _literal(text: str) -> Any:
    """null, true, false or a number; a model that forgot its quotes meant a string."""
    if text in _WORDS:
        return _WORDS[text]
    if not _NUMBER.fullmatch(text):
        return text
    try:
        value = json.loads(text)
    except ValueError:  # more digits than Python reads
        return text
    return value if isinstance(value, int) or math.isfinite(value) else text


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(_escaped, text)
    if not _SURROGATE.search(text):
        return text
    # JSON writes a character beyond U+FFFF as two escapes: together they are one again.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escaped(escape: re.Match[str]) -> str:
    char, *codes = escape.groups()
    if char is not None:
        return _ESCAPED.get(char, char)
    return chr(int(next(code for code in codes if code is not None), 16))


def _malformed() -> NoReturn:
    raise _Malformed
