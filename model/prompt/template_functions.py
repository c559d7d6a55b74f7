"""jinja's filters and Python's methods of text, as chat templates may call them: all, measured.

- They do what jinja and Python do, or raise OutOfBounds; of none is left out what it can do.
- Every filter's text is measured when it is made, so that no chain of them grows without bound.
- What takes time by more than its text's length has a bound of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from io import StringIO
from pprint import PrettyPrinter
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.utils import generate_lorem_ipsum

from sapwood.model.prompt.bounds import (
    SURROGATE,
    chars_of,
    check_bound,
    check_char,
    check_chars,
    check_count,
)
from sapwood.model.prompt.formats import check_percent

# What takes its value as text, whatever it is.
_OF_TEXT = (
    *("capitalize", "center", "e", "escape", "forceescape", "lower", "pprint", "replace"),
    *("string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode"),
    *("urlize", "wordcount", "wordwrap"),
)
_SLOW_CHARS_MAX = 1 << 20
_SLOW_WORD_CHARS_MAX = 2000
_NESTED_CHARS_MAX = 1 << 18  # pprint looks at what lies deep once for each level above it
_DIGITS_MAX = 400
_INDENT_MAX = 16
_WORD = re.compile(r"\w+")
_BEYOND_ASCII = re.compile("[^\x00-\x7f\ud800-\udfff]")


def measured_filters() -> dict[str, Callable[..., Any]]:
    """All of jinja's filters by their names, tojson as transformers has it."""
    return {
        name: _measured(function, _CHECKS.get(name, _nothing), name in _OF_TEXT)
        for name, function in {**FILTERS, **_OURS}.items()
    }


def _measured(
    function: Callable[..., Any], check_values: Callable[..., None], of_text: bool
) -> Callable[..., Any]:
    passes = hasattr(function, "jinja_pass_arg")  # a context before the value

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        values = args[passes:]
        if of_text:
            check_chars(chars_of(values[0]))
        check_values(*values, **kwargs)
        return checked_text(function(*args, **kwargs))

    return measured


def checked_text(made: Any) -> Any:
    """What a call made, if it is no text that is too long. Raises OutOfBounds."""
    if isinstance(made, str | bytes):
        check_chars(len(made))
    return made


def check_method(owner: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """That a method of text, bytes or numbers makes what is within bounds. Raises OutOfBounds."""
    if isinstance(owner, str | bytes | int):
        _METHODS.get(name, _nothing)(owner, *args, **kwargs)


def check_decoded(text: Any) -> None:
    """That bytes did not become a surrogate. Raises SecurityError."""
    if isinstance(text, str) and SURROGATE.search(text):
        raise SecurityError("a template makes a character that is none")


def joined(values: Iterable[Any], separator: str = "") -> str:
    """The values as text, measured before it is made. Raises OutOfBounds."""
    parts: list[str] = []
    chars = 0
    for value in values:
        chars += chars_of(value) + len(separator)
        check_chars(chars)
        parts.append(str(value))
    return separator.join(parts)


def replaced(text: str, old: str, new: str, count: int | None = None) -> str:
    """str.replace, measured before. Raises OutOfBounds."""
    times = text.count(old)
    if count is not None and count >= 0:
        times = min(times, count)
    check_chars(len(text) + times * len(new))
    return text.replace(old, new, -1 if count is None else count)


def lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    """jinja's, up to 100,000 words. Raises OutOfBounds."""
    check_count(n * max)
    return generate_lorem_ipsum(n, html, min, max)


@pass_environment
def _join(
    environment: Environment, values: Iterable[Any], d: Any = "", attribute: Any = None
) -> str:
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return joined(values, str(d))


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    return replaced(str(s), str(old), str(new), count)


@pass_environment
def _sum(
    environment: Environment, iterable: Iterable[Any], attribute: Any = None, start: Any = 0
) -> Any:
    if attribute is not None:
        iterable = map(make_attrgetter(environment, attribute), iterable)
    for value in iterable:
        if isinstance(start, Sequence):
            check_chars(len(start) + len(value))
        start = start + value
    return start


def _wordcount(s: Any) -> int:
    return sum(1 for _ in _WORD.finditer(str(s)))


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter in place of jinja's, which escapes for HTML."""
    encoder = json.JSONEncoder(
        ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        text = encoder.encode(x)
    else:
        # Each line of what lies deep is indented as deep.
        check_bound((len(indent) if isinstance(indent, str) else indent) <= _INDENT_MAX)
        text = joined(encoder.iterencode(x))
    if ensure_ascii:  # the surrogates are no text yet
        text = _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    return text


class _Bounded(StringIO):
    """Takes as much as a text may have. Raises OutOfBounds."""

    def write(self, text: str) -> int:
        check_chars(self.tell() + len(text))
        return super().write(text)


def _pprint(value: Any) -> str:
    made = _Bounded()
    PrettyPrinter(stream=made).pprint(value)
    return made.getvalue().removesuffix("\n")


_OURS: dict[str, Callable[..., Any]] = {
    "join": _join,
    "pprint": _pprint,
    "replace": _replace,
    "sum": _sum,
    "tojson": _to_json,
    "wordcount": _wordcount,
}


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What has nothing to be checked before."""


def _check_format(value: Any, *args: Any, **kwargs: Any) -> None:
    check_percent(str(value), kwargs or args)


def _check_indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> None:
    added = len(width) if isinstance(width, str) else width
    check_chars(len(s) + (len(s.splitlines()) + 1) * (added + 1))


def _check_words(text: str) -> None:
    """Of what splits words: quadratic in a word, slow in a text."""
    check_bound(len(text) <= _SLOW_CHARS_MAX)
    check_bound(all(len(word) <= _SLOW_WORD_CHARS_MAX for word in text.split()))


def _check_wrap(s: str, *args: Any, wrapstring: str | None = None, **kwargs: Any) -> None:
    _check_words(s)
    wrapstring = args[2] if len(args) > 2 else wrapstring
    check_chars((len(s) + 1) * (1 + len(wrapstring or "\n")))


def _check_urls(value: Any, *args: Any, **kwargs: Any) -> None:
    text = str(value)
    _check_words(text)
    attributes = sum(len(v) for v in (*args, *kwargs.values()) if isinstance(v, str))
    check_chars(len(text) * 3 + len(text.split()) * (attributes + 60))


def _check_nested(value: Any) -> None:
    check_bound(chars_of(value) <= _NESTED_CHARS_MAX)


def _check_attributes(d: Mapping[Any, Any], autospace: bool = True) -> None:
    check_chars(chars_of(dict(d)))


def _check_items(value: Any, count: Any, fill_with: Any = None) -> None:
    check_count(count)


def _check_digits(value: Any, precision: int = 0, method: str = "common") -> None:
    check_bound(abs(precision) <= _DIGITS_MAX)


def _check_width(owner: Any, width: Any = 0, *rest: Any) -> None:
    if isinstance(width, int):
        check_chars(width)


def _check_tabs(owner: Any, tabsize: int = 8) -> None:
    tab = "\t" if isinstance(owner, str) else b"\t"
    check_chars(len(owner) + owner.count(tab) * tabsize)


def _check_join(owner: Any, values: Any) -> None:
    check_bound(isinstance(values, Sequence))  # a generator would be used up
    check_chars(sum(len(value) + len(owner) for value in values))


def _check_replace(owner: Any, old: Any, new: Any, *rest: Any) -> None:
    check_chars(len(owner) + owner.count(old) * len(new))


def _check_table(owner: Any, table: Any, *rest: Any) -> None:
    """Of str.translate, whose values are texts or numbers of characters."""
    values: Iterator[Any] = iter(table.values() if isinstance(table, Mapping) else table)
    longest = 1
    for value in values:
        check_char(value)
        longest = max(longest, len(value) if isinstance(value, str) else 1)
    check_chars(len(owner) * longest)


_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_items,
    "center": lambda value, width=80: _check_width(value, width),
    "format": _check_format,
    "indent": _check_indent,
    "pprint": _check_nested,
    "round": _check_digits,
    "slice": _check_items,
    "urlize": _check_urls,
    "wordwrap": _check_wrap,
    "xmlattr": _check_attributes,
}
_METHODS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _check_width),
    "expandtabs": _check_tabs,
    "join": _check_join,
    "replace": _check_replace,
    "to_bytes": lambda owner, length=1, *rest, **signed: _check_width(owner, length),
    "translate": _check_table,
}
