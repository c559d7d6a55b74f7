"""`%` and str.format as chat templates may use them: measured, and no way out of the sandbox.

- Widths and precisions are what makes a format grow: they are read before the text is made.
- A character by its number is none of those that stand for control tokens.
- Fields of str.format reach what the sandbox lets through, attribute by attribute (jinja's own).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import update_wrapper
from typing import Any

from jinja2 import Environment
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter

from sapwood.model.prompt.bounds import chars_of, check_bound, check_char, check_chars

_NUMBER = re.compile("[0-9]++")
_CONVERSION = re.compile(r"[-+ #0]*+(\*|[0-9]*+)(?:\.(\*|[0-9]*+))?+[hlL]?+(.?)", re.DOTALL)
_NUMBER_CHARS = 5000  # what one number takes before its width: 4,300 digits are Python's own limit


def check_percent(text: Any, values: Any) -> None:
    """That `text % values` is within bounds. Raises OutOfBounds, and SecurityError."""
    check_bound(not isinstance(text, bytes))
    if not isinstance(text, str):
        return
    chars = len(text)
    each = values if isinstance(values, tuple) else (values,)
    mapped = values if isinstance(values, Mapping) else {}
    by_number = by_place = 0
    for key, sizes, kind in _conversions(text):
        for size in sizes:
            # A width among the values: which one does not matter for a bound.
            stars = (abs(v) for v in each if isinstance(v, int))
            chars += sum(stars) if size == "*" else int(size or 0)
        if key is not None:
            chars += chars_of(mapped.get(key))
        by_place += key is None
        by_number += kind not in "sra%"
        if kind == "c":
            for code in (*each, mapped.get(key)):
                check_char(code)
    check_chars(chars + by_number * _NUMBER_CHARS + (chars_of(each) if by_place else 0))


def _conversions(text: str) -> Iterator[tuple[str | None, Sequence[str], str]]:
    """(key, (width, precision), type) of each, as Python finds them."""
    at = text.find("%") + 1
    while at:
        key = None
        if text[at : at + 1] == "(":
            start, depth = at + 1, 0
            while at < len(text):
                depth += (text[at] == "(") - (text[at] == ")")
                at += 1
                if not depth:
                    break
            key = text[start : at - 1]
        found = _CONVERSION.match(text, at)
        assert found is not None, "every part of the pattern may be empty"
        yield key, (found[1], found[2] or ""), found[3]
        at = text.find("%", found.end()) + 1


def format_of(environment: Environment, method: Callable[..., str]) -> Callable[..., str]:
    """What stands for `text.format` or `text.format_map` in a template. It raises OutOfBounds."""
    text: Any = method.__self__  # type: ignore[attr-defined]
    mapped = method.__name__ == "format_map"

    def formatted(*args: Any, **kwargs: Any) -> str:
        if mapped:
            kwargs, args = _mapping(*args, **kwargs), ()
        formatter = _Measured(environment)
        if hasattr(text, "__html__"):
            formatter = _MeasuredEscape(environment, escape=text.escape)
        made: str = type(text)(formatter.vformat(text, args, kwargs))
        return made

    return update_wrapper(formatted, method)


def _mapping(mapping: Any, /) -> Any:
    """All that format_map takes."""
    return mapping


class _Measured(SandboxedFormatter):
    """One call's formatter: counts what its fields have made."""

    _chars = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            self._count(chars_of(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        digits = value.bit_length() * 2 if isinstance(value, int) else 0
        sizes = sum(int(number) for number in _NUMBER.findall(format_spec))
        self._count(chars_of(value) + digits + sizes)
        if format_spec.endswith("c"):
            check_char(value)
        return super().format_field(value, format_spec)

    def _count(self, chars: int) -> None:
        self._chars += chars
        check_chars(self._chars)


class _MeasuredEscape(_Measured, SandboxedEscapeFormatter):
    """Of a text that is marked safe, whose fields are escaped."""
