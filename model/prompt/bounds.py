"""How much a chat template may make: no text longer than `RENDERED_CHARS_MAX`, nothing endless.

- What makes text is measured before it is made, by what goes in; what only then shows its length
  (escapes, up to ten characters for one) is measured after.
- A lone surrogate stands for a control token that the template itself wrote (chat_template), so
  nothing that a template can call may make one out of a number or of bytes: `check_char`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

RENDERED_CHARS_MAX = 16 << 20
ITEMS_MAX = 100_000  # as jinja has it for range()
_INTEGER_BITS_MAX = 256
# More than a float has digits, or an object of jinja's a representation.
_SCALAR_CHARS = 400
SURROGATE = re.compile("([\ud800-\udfff])")


class OutOfBounds(SecurityError):
    """Raised when a template would make too much or takes too long."""


def check_bound(holds: bool) -> None:
    """Raise OutOfBounds if it does not hold."""
    if not holds:
        raise OutOfBounds("a template makes too much")


def check_chars(chars: int) -> None:
    """Of one text. Raises OutOfBounds."""
    check_bound(chars <= RENDERED_CHARS_MAX)


def check_count(count: Any) -> None:
    """Of items or columns; what is no number is left to who takes it. Raises OutOfBounds."""
    check_bound(not isinstance(count, int) or abs(count) <= ITEMS_MAX)


def check_char(code: Any) -> None:
    """That a number does not become a surrogate. Raises SecurityError."""
    if isinstance(code, int) and 0xD800 <= code <= 0xDFFF:
        raise SecurityError("a template makes a character that is none")


def is_wide(value: Any) -> bool:
    """An integer that arithmetic must not make wider."""
    return isinstance(value, int) and value.bit_length() > _INTEGER_BITS_MAX


def chars_of(value: Any) -> int:
    """About how long str(value) is, escapes aside; never less. Raises OutOfBounds past the bound.

    One text may be in a list a thousand times, so that little memory makes a long text.
    """
    if isinstance(value, str):
        return len(value)
    chars = 0
    left: list[Any] = [value]
    while left:
        item = left.pop()
        if isinstance(item, str | bytes):
            chars += len(item) + 4
        elif isinstance(item, int):
            chars += item.bit_length() // 3 + 8
        elif isinstance(item, Collection) and not isinstance(item, range):
            chars += 4 * len(item) + 2
            check_chars(chars)
            left += [*item, *item.values()] if isinstance(item, Mapping) else item
        else:
            chars += _SCALAR_CHARS
        check_chars(chars)
    return chars
