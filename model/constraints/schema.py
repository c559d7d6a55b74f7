"""Which JSON schemas are taken: the keywords that are kept to the letter, within bounds.

- A keyword that is not in the list is refused by its name. The grammar library ignores what no
  draft has (`nullable`, misspelt ones), and a constraint that is not kept is worse than none.
- Counts, depths and magnitudes are bounded here, before anything is built: the library has schemas
  of two keywords that it builds for minutes.
- Nothing is fetched: a `$ref` points into its own schema.
- What is left to the library is what only it can tell: whether a `oneOf` is exclusive, whether
  patterns overlap, whether anything satisfies it all. It refuses, it does not guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sapwood.model.constraints.spec import ConstraintRefused

DEPTH_MAX = 32  # of schemas in schemas, and of values in enum and const
SCHEMAS_MAX = 2_000
VALUES_MAX = 10_000  # in all of enum, const and required
PROPERTIES_MAX = 400  # of one object: with 510 optional ones the library fails in mid-text
BRANCHES_MAX = 32  # of one anyOf, oneOf or allOf
PATTERNS_MAX = 64
PATTERN_CHARS_MAX = 512
LENGTH_MAX = 1_000_000
NUMBER_MAX = 2**53  # beyond, two readers of JSON may read two numbers

_TYPES = {"null", "boolean", "object", "array", "number", "string", "integer"}
_FORMATS = {
    *("date-time", "time", "date", "duration", "email"),
    *("hostname", "ipv4", "ipv6", "uuid", "uri"),
}
# They constrain nothing.
_REMARKS = {
    *("title", "description", "default", "examples", "example", "deprecated"),
    *("readOnly", "writeOnly", "$comment"),
}
_DIALECTS = ("2020-12", "2019-09", "draft-07", "draft-06")


def read_schema(text: str) -> Any:
    """The schema of a JSON text, checked. Raises ConstraintRefused."""
    schema = parsed(text)
    check_schema(schema)
    return schema


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ConstraintRefused."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # escapes may spell half a surrogate pair
    except (ValueError, RecursionError):
        raise ConstraintRefused("the schema is not valid JSON") from None
    return value


def check_schema(schema: Any) -> None:
    """Raises ConstraintRefused for what is not taken; O(size of the schema)."""
    _Checker(schema).check()


class _Checker:
    """One walk over one schema, which counts as it goes."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._schemas = 0
        self._values = 0
        self._patterns = 0
        self._seen: set[int] = set()
        self._referred: list[str] = []

    def check(self) -> None:
        self._schema(self._root, 0, "the schema")
        for pointer in self._referred:
            # Into a remark, for instance: what stands there was not looked at.
            if id(resolved(self._root, pointer)) not in self._seen:
                _refuse(f"$ref {_shown(pointer)} leads to no schema")

    def _schema(self, schema: Any, depth: int, name: str) -> None:
        self._schemas += 1
        if self._schemas > SCHEMAS_MAX:
            _refuse(f"there are more than {SCHEMAS_MAX} schemas in it")
        if depth > DEPTH_MAX:
            _refuse(f"schemas are nested more than {DEPTH_MAX} deep")
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            _refuse(f"{name} is neither an object nor a boolean")
        self._seen.add(id(schema))
        for keyword, value in schema.items():
            if keyword in _REMARKS:
                continue
            if keyword not in _CHECKS:
                _refuse(f"the keyword {_shown(keyword)} is not supported")
            _CHECKS[keyword](self, value, keyword, depth)
        self._together(schema)

    def _together(self, schema: Mapping[str, Any]) -> None:
        """What single keywords do not show."""
        optional = schema.get("properties", {}).keys() - set(schema.get("required", ()))
        if len(optional) > PROPERTIES_MAX:
            _refuse(f"an object has at most {PROPERTIES_MAX} optional properties")
        # Names beside the declared ones may be written twice, and count once.
        least = schema.get("minProperties", 0)
        if least > max(1, len(set(schema.get("required", ())))):
            _refuse("minProperties above 1 and above the number of required ones is not supported")

    def inner(self, value: Any, keyword: str, depth: int) -> None:
        if keyword == "items" and isinstance(value, list):
            _refuse("items is a list: that is called prefixItems")
        self._schema(value, depth + 1, keyword)

    def branches(self, value: Any, keyword: str, depth: int) -> None:
        if not isinstance(value, list) or not 1 <= len(value) <= BRANCHES_MAX:
            _refuse(f"{keyword} is a list of 1 to {BRANCHES_MAX} schemas")
        for branch in value:
            self._schema(branch, depth + 1, f"a part of {keyword}")

    def named(self, value: Any, keyword: str, depth: int) -> None:
        if not isinstance(value, dict):
            _refuse(f"{keyword} is an object of schemas")
        if len(value) > PROPERTIES_MAX:
            _refuse(f"{keyword} has at most {PROPERTIES_MAX} entries")
        for name, inner in value.items():
            if keyword == "patternProperties":
                self.pattern(name, keyword, depth)
            self._schema(inner, depth + 1, f"a part of {keyword}")

    def required(self, value: Any, keyword: str, depth: int) -> None:
        texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not texts or len(value) > PROPERTIES_MAX or len(set(value)) < len(value):
            _refuse(f"required is a list of at most {PROPERTIES_MAX} different names")

    def values(self, value: Any, keyword: str, depth: int) -> None:
        if keyword == "enum" and (not isinstance(value, list) or not value):
            _refuse("enum is a list of at least one value")
        self._value(value, depth)

    def _value(self, value: Any, depth: int) -> None:
        self._values += 1
        if self._values > VALUES_MAX:
            _refuse(f"enum and const hold more than {VALUES_MAX} values")
        if depth > DEPTH_MAX:
            _refuse(f"enum and const are nested more than {DEPTH_MAX} deep")
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                self._value(inner, depth + 1)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self.number(value, "enum or const", depth)

    def number(self, value: Any, keyword: str, depth: int) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (isinstance(value, float) and not math.isfinite(value)):
            _refuse(f"{keyword} is a number")
        if abs(value) > NUMBER_MAX:
            _refuse(f"numbers are at most 2**53, and one of {keyword} is not")

    def step(self, value: Any, keyword: str, depth: int) -> None:
        self.number(value, keyword, depth)
        if value <= 0:
            _refuse("multipleOf is more than 0")

    def count(self, value: Any, keyword: str, depth: int) -> None:
        if type(value) is not int or not 0 <= value <= LENGTH_MAX:
            _refuse(f"{keyword} is an integer from 0 to {LENGTH_MAX}")

    def pattern(self, value: Any, keyword: str, depth: int) -> None:
        self._patterns += 1
        if not isinstance(value, str) or len(value) > PATTERN_CHARS_MAX:
            _refuse(f"a pattern is a text of at most {PATTERN_CHARS_MAX} characters")
        if self._patterns > PATTERNS_MAX:
            _refuse(f"there are more than {PATTERNS_MAX} patterns in it")

    def format(self, value: Any, keyword: str, depth: int) -> None:
        if not isinstance(value, str) or value not in _FORMATS:
            _refuse(f"the format {_shown(value)} is not supported")

    def type(self, value: Any, keyword: str, depth: int) -> None:
        kinds = value if isinstance(value, list) else [value]
        if not kinds or not all(isinstance(kind, str) and kind in _TYPES for kind in kinds):
            _refuse("type names no type of JSON")

    def reference(self, value: Any, keyword: str, depth: int) -> None:
        resolved(self._root, value)
        self._referred.append(value)

    def dialect(self, value: Any, keyword: str, depth: int) -> None:
        if not isinstance(value, str) or not any(name in value for name in _DIALECTS):
            _refuse("$schema names none of the drafts 6, 7, 2019-09 and 2020-12")

    def identity(self, value: Any, keyword: str, depth: int) -> None:
        if depth or not isinstance(value, str):
            _refuse("$id stands at the top only")


def resolved(root: Any, pointer: Any) -> Any:
    """What a `$ref` points to. Raises ConstraintRefused."""
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        _refuse("$ref is # or a JSON pointer that begins with #/")
    at = root
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        at = _inside(at, part)
        if at is None:
            _refuse(f"$ref {_shown(pointer)} leads nowhere")
    return at


def _inside(value: Any, part: str) -> Any:
    """What a step of a JSON pointer leads to, None for nothing."""
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list) and part in map(str, range(len(value))):
        return value[int(part)]
    return None


_CHECKS: Mapping[str, Callable[[_Checker, Any, str, int], None]] = {
    "$schema": _Checker.dialect,
    "$id": _Checker.identity,
    "$ref": _Checker.reference,
    "$defs": _Checker.named,
    "definitions": _Checker.named,
    "type": _Checker.type,
    "enum": _Checker.values,
    "const": _Checker.values,
    "allOf": _Checker.branches,
    "anyOf": _Checker.branches,
    "oneOf": _Checker.branches,
    "properties": _Checker.named,
    "patternProperties": _Checker.named,
    "additionalProperties": _Checker.inner,
    "required": _Checker.required,
    "minProperties": _Checker.count,
    "maxProperties": _Checker.count,
    "items": _Checker.inner,
    "prefixItems": _Checker.branches,
    "minItems": _Checker.count,
    "maxItems": _Checker.count,
    "minLength": _Checker.count,
    "maxLength": _Checker.count,
    "pattern": _Checker.pattern,
    "format": _Checker.format,
    "minimum": _Checker.number,
    "maximum": _Checker.number,
    "exclusiveMinimum": _Checker.number,
    "exclusiveMaximum": _Checker.number,
    "multipleOf": _Checker.step,
}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity, which are no JSON


def _shown(value: Any) -> str:
    """A client's own word, short enough for a message."""
    text = value if isinstance(value, str) else type(value).__name__
    return repr(text[:40])


def _refuse(problem: str) -> NoReturn:
    raise ConstraintRefused(problem)
