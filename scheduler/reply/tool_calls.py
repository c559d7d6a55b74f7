"""One call as Gemma writes it, `call:NAME{key:"text",n:1}`, read into a name and a JSON object.

- The quotes are control tokens, so what is a string and what is syntax is never a guess: a call
  comes as pieces of text, every second one of which stood between quotes.
- What a model wrote is not trusted: anything else than one whole call is None, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sapwood.scheduler.events import ToolCall

_DEPTH_MAX = 32


def read_call(pieces: Sequence[str]) -> ToolCall | None:
    """`pieces[1::2]` stood between quotes. None for what is not one whole call."""
    try:
        return _Reader(pieces).call()
    except _Malformed:
        return None


class _Malformed(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Quoted:
    text: str


class _Reader:
    """Recursive descent over characters and quoted strings."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._atoms: list[str | _Quoted] = []
        for index, piece in enumerate(pieces):
            self._atoms += [_Quoted(piece)] if index % 2 else piece
        self._at = 0

    def call(self) -> ToolCall:
        head = self._bare("{").strip()
        name = head.removeprefix("call:").strip()
        if not head.startswith("call:") or not name or self._peek() != "{":
            _malformed()
        arguments = self._value(0)
        if self._at < len(self._atoms) and self._bare("").strip():
            _malformed()
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False))

    def _value(self, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            _malformed()
        self._skip_space()
        match self._peek():
            case _Quoted(text):
                self._at += 1
                return text
            case "{":
                return dict(self._items("}", lambda: self._pair(depth)))
            case "[":
                return self._items("]", lambda: self._value(depth + 1))
            case _:
                return _literal(self._bare(",]}").strip())

    def _items(self, end: str, item: Callable[[], Any]) -> list[Any]:
        """Between an opening bracket and `end`, separated by commas."""
        self._at += 1
        items: list[Any] = []
        while self._next_is(end) is False:
            if items and not self._took(","):
                _malformed()
            items.append(item())
        self._at += 1
        return items

    def _pair(self, depth: int) -> tuple[str, Any]:
        self._skip_space()
        key = self._peek()
        if isinstance(key, _Quoted):
            self._at += 1
            name = key.text
        else:
            name = self._bare(":").strip()
        if not name or not self._took(":"):
            _malformed()
        return name, self._value(depth + 1)

    def _bare(self, ends: str) -> str:
        """Characters up to one of `ends`; a quoted string has no place among them."""
        start = self._at
        while self._at < len(self._atoms) and (atom := self._atoms[self._at]) not in tuple(ends):
            if isinstance(atom, _Quoted):
                _malformed()
            self._at += 1
        return "".join(str(atom) for atom in self._atoms[start : self._at])

    def _peek(self) -> str | _Quoted:
        if self._at == len(self._atoms):
            _malformed()
        return self._atoms[self._at]

    def _next_is(self, char: str) -> bool:
        self._skip_space()
        return self._peek() == char

    def _took(self, char: str) -> bool:
        found = self._next_is(char)
        self._at += found
        return found

    def _skip_space(self) -> None:
        while self._at < len(self._atoms) and self._atoms[self._at] in tuple(" \n\t"):
            self._at += 1


def _literal(text: str) -> Any:
    """null, true, false or a number; a model that forgot its quotes meant a string."""
    if not text:
        _malformed()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float):
        return value if math.isfinite(value) else text
    return value if value is None or isinstance(value, int) else text


def _malformed() -> NoReturn:
    raise _Malformed
