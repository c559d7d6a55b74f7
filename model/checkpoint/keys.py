"""Typed reads of one JSON object of a config; every complaint names file and key.

- Nothing has a default: a key is there and what it should be, or ModelRefused says what is wrong.
- Numbers are bounded far above any Gemma, and low enough that no product of three overflows mlx's
  sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sapwood.model.checkpoint.files import ModelRefused, shown

SIZE_MAX = 1 << 20
TOKENS_MAX = 1 << 24
_NUMBER_MIN, _NUMBER_MAX = 1e-12, 1e12


@dataclass(frozen=True, slots=True)
class Keys:
    """One object of `file`. prefix: where it lies inside, "text_config." or nothing."""

    document: Mapping[str, Any]
    file: str
    prefix: str = ""

    def refuse(self, key: str, what: str) -> ModelRefused:
        """The refusal of a key, made and not raised."""
        return ModelRefused(f"{self.file}: {self.prefix}{key} {what}")

    def need(self, key: str) -> Any:
        """Whatever is there, null included."""
        if key not in self.document:
            raise self.refuse(key, "is missing")
        return self.document[key]

    def integer(self, key: str, low: int = 1, high: int = SIZE_MAX) -> int:
        """One in low..high; true and 1.0 are none."""
        value = self.need(key)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, f"is {shown(value)}, not an integer in {low}..{high}")
        return value

    def count(self, key: str) -> int:
        """An integer that may be 0, or null for none."""
        return 0 if self.need(key) is None else self.integer(key, low=0)

    def number(self, key: str, low: float = _NUMBER_MIN, high: float = _NUMBER_MAX) -> float:
        """An integer or a float in low..high, and so no NaN."""
        value = self.need(key)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.refuse(key, f"is {shown(value)}, not a number in {low:g}..{high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false, not 1 or 0."""
        value = self.need(key)
        if type(value) is not bool:
            raise self.refuse(key, f"is {shown(value)}, not true or false")
        return value

    def inner(self, key: str) -> Keys:
        """An object inside of this one."""
        value = self.need(key)
        if not isinstance(value, dict):
            raise self.refuse(key, f"is {shown(value)}, not an object")
        return Keys(value, self.file, f"{self.prefix}{key}.")

    def only(self, key: str, allowed: tuple[Any, ...]) -> Any:
        """One of the allowed values, and of its type."""
        value = self.need(key)
        # 0 and 1 are equal to False and True, and are not what the key may hold.
        if not any(type(value) is type(a) and value == a for a in allowed):
            wanted = " or ".join(repr(a) for a in allowed)
            raise self.refuse(key, f"is {shown(value)}; supported is {wanted}")
        return value
