"""Calls in Gemma's own syntax as a Lark grammar: `call:NAME{key:<|"|>text<|"|>,n:1}`.

- What the grammar takes the daemon's own reader of calls reads back, and the arguments then follow
  the function's schema.
- Names stand in the order in which Gemma's template writes them, sorted without regard to case.
- Stricter than the schema: an object that declares properties has no others; a number has at most
  17 digits and a small exponent.
- Strings stand between quote tokens, never between letters, so no text in one can end it.
- What a grammar of calls cannot keep is refused by name, as schema.py refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from llguidance import regex_to_lark

from sapwood.model.constraints.schema import NUMBER_MAX, check_schema, parsed, resolved
from sapwood.model.constraints.spec import ConstraintRefused
from sapwood.scheduler.control_tokens import ControlTokens

OPTIONAL_MAX = 128  # of one object: a grammar's row has items for each of them
REFERENCES_MAX = 64  # one behind another
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_BARE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_REMARKS = {"title", "description", "default", "examples", "example", "deprecated"}
_SILENT = _REMARKS | {"readOnly", "writeOnly", "$comment", "$defs", "definitions", "$schema", "$id"}
# Which keywords a schema of each type may have beside `type` and remarks.
_OF_TYPE: Mapping[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "number": set(_BOUNDS),
    "integer": set(_BOUNDS),
    "boolean": set(),
    "null": set(),
}
_INTEGER = "/-?(0|[1-9][0-9]{0,16})/"
_NUMBER = r"/-?(0|[1-9][0-9]{0,16})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/"


def call_grammar(tools: Sequence[tuple[str, str]], control: ControlTokens, *, many: bool) -> str:
    """A Lark grammar of one call block, or of one or more, of these tools.

    tools: names and the JSON texts of their parameters. Raises ConstraintRefused.
    """
    grammar = _CallGrammar(control)
    blocks = [grammar.block(name, text) for name, text in tools]
    start, end = (f"<[{token}]>" for token in (control.call_start, control.call_end))
    repeated = "+" if many else ""
    rules = [f"start: ({start} ({' | '.join(blocks)}) {end}){repeated}"]
    return "\n".join([*rules, *(f"{name}: {body}" for name, body in grammar.rules.items())])


class _CallGrammar:
    """Rules by name, in the order in which they were begun."""

    def __init__(self, control: ControlTokens) -> None:
        self.rules: dict[str, str] = {}
        self._quote = f"<[{control.quote}]>"
        self._root: Any = None
        self._referred: dict[str, str] = {}  # rules by what a $ref says, of one tool
        self._any = ""
        self._within = 0  # how many references, one behind another

    def block(self, name: str, parameters: str) -> str:
        """The rule of one call of this function."""
        if not _NAME.fullmatch(name):
            _refuse("a function that is to be called has letters, digits and _.:/- in its name")
        self._root = parsed(parameters) if parameters else {"type": "object", "properties": {}}
        check_schema(self._root)
        self._referred, self._within = {}, 0
        if not isinstance(self._root, dict) or self._root.get("type", "object") != "object":
            _refuse(f"the parameters of {name!r} are no object")
        try:
            return self._rule(f"{_text('call:' + name)} {self._object(self._root)}")
        except ConstraintRefused as refusal:
            raise ConstraintRefused(f"of {name[:40]!r}: {refusal}") from None
        except RecursionError:  # fewer references, with much between them
            raise ConstraintRefused(f"of {name[:40]!r}: references lead on for too long") from None

    def _rule(self, body: str, head: str = "r") -> str:
        """A name of its own for this body; upper-case heads are of one regular expression."""
        name = f"{head}{len(self.rules)}"
        self.rules[name] = body
        return name

    def _value(self, schema: Any) -> str:
        if schema is False:
            _refuse("a schema that nothing satisfies is not supported in calls")
        asked = set() if schema is True else schema.keys() - _SILENT
        if not asked:
            return self._anything()
        for keyword, read in _WHOLE.items():
            if keyword in asked:
                if (
                    more := asked
                    - {keyword}
                    - ({"type"} if keyword in ("const", "enum") else set())
                ):
                    _refuse(f"{min(more)!r} beside {keyword!r} is not supported in calls")
                return read(self, schema)
        kinds = schema.get("type")
        if kinds is None:
            kinds = [kind for kind, own in _OF_TYPE.items() if own >= asked]
            if len(kinds) != 1 and kinds != ["number", "integer"]:
                _refuse(f"{min(asked)!r} without a type is not supported in calls")
            kinds = kinds[0]
        if isinstance(kinds, str):
            return self._typed(schema, kinds)
        known = set().union(*(_OF_TYPE[kind] for kind in kinds))
        parts = [
            self._typed({k: v for k, v in schema.items() if k in _OF_TYPE[kind]}, kind)
            for kind in dict.fromkeys(kinds)
        ]
        if unknown := asked - known - {"type"}:
            _refuse(f"{min(unknown)!r} is not supported in calls")
        return self._rule(" | ".join(parts))

    def _typed(self, schema: Mapping[str, Any], kind: str) -> str:
        if unknown := schema.keys() - _SILENT - _OF_TYPE[kind] - {"type"}:
            _refuse(f"{min(unknown)!r} is not supported in calls")
        return _TYPED[kind](self, schema)

    def _reference(self, schema: Mapping[str, Any]) -> str:
        pointer = schema["$ref"]
        if pointer not in self._referred:
            # Named before it is built: it may hold itself.
            name = self._referred[pointer] = self._rule("")
            self._within += 1
            if self._within > REFERENCES_MAX:
                _refuse("references lead on for too long")
            self.rules[name] = self._value(resolved(self._root, pointer))
            self._within -= 1
        return self._referred[pointer]

    def _branches(self, schema: Mapping[str, Any]) -> str:
        return self._rule(" | ".join([self._value(branch) for branch in schema["anyOf"]]))

    def _literals(self, schema: Mapping[str, Any]) -> str:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        kinds = schema.get("type", list(_OF_TYPE))
        kinds = [kinds] if isinstance(kinds, str) else kinds
        fitting = [value for value in values if _kind(value) in _widened(kinds)]
        if not fitting:
            _refuse("an enum without a value of its type")
        return self._rule(" | ".join(map(self._literal, fitting)))

    def _literal(self, value: Any) -> str:
        if isinstance(value, dict | list):
            _refuse("objects and lists in enum and const are not supported in calls")
        if isinstance(value, str):
            return (
                f"{self._quote} {_text(value)} {self._quote}"
                if value
                else f"{self._quote} {self._quote}"
            )
        return _text(json.dumps(value))

    def _anything(self) -> str:
        if not self._any:
            self._any = self._rule("")
            kinds = [_TYPED[kind](self, {}) for kind in _OF_TYPE if kind != "integer"]
            self.rules[self._any] = " | ".join(kinds)
        return self._any

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        bounded = bool(least) or most != ""
        text = rf"/(.|\n){{{least},{most}}}/" if bounded else r"/(.|\n)*/"
        if "pattern" in schema:
            if bounded:
                _refuse("a pattern beside a length is not supported in calls")
            text = _pattern(schema["pattern"])
        return self._rule(f"{self._quote} {self._rule(text, 'T')} {self._quote}")

    def _integer(self, schema: Mapping[str, Any]) -> str:
        return self._number(schema, "integer", _INTEGER)

    def _real(self, schema: Mapping[str, Any]) -> str:
        return self._number(schema, "number", _NUMBER)

    def _number(self, schema: Mapping[str, Any], kind: str, free: str) -> str:
        bounds = {name: schema[name] for name in _BOUNDS if name in schema}
        if not bounds:
            return self._rule(self._rule(free, "T"))
        # Bounded on both sides: digits without end are no number to any reader.
        if not bounds.keys() & {"minimum", "exclusiveMinimum"}:
            bounds["minimum"] = -NUMBER_MAX
        if not bounds.keys() & {"maximum", "exclusiveMaximum"}:
            bounds["maximum"] = NUMBER_MAX
        return self._rule("%json " + json.dumps({"type": kind} | bounds))

    def _boolean(self, schema: Mapping[str, Any]) -> str:
        return self._rule('"true" | "false"')

    def _null(self, schema: Mapping[str, Any]) -> str:
        return self._rule('"null"')

    def _array(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return self._rule('"[" "]"')
        if most is not None and most < least:
            _refuse("maxItems is less than minItems")
        item = self._value(schema.get("items", True))
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        some = f"{item} {more}"
        return self._rule(f'"[" {some} "]"' if least else f'"[" ({some})? "]"')

    def _object(self, schema: Mapping[str, Any]) -> str:
        if unknown := schema.keys() - _SILENT - _OF_TYPE["object"] - {"type"}:
            _refuse(f"{min(unknown)!r} is not supported in calls")
        properties = dict(schema.get("properties", {}))
        required = schema.get("required", [])
        for name in required:
            properties.setdefault(name, schema.get("additionalProperties", True))
        if not properties and schema.get("properties") is None:
            return self._map(schema.get("additionalProperties", True))
        if len(properties) - len(required) > OPTIONAL_MAX:
            _refuse(f"an object has at most {OPTIONAL_MAX} optional properties in calls")
        # What may follow where nothing was written yet, and where something was.
        first = later = '""'
        for name in sorted(properties, key=lambda name: (name.lower(), name), reverse=True):
            pair = f"{self._key(name)} {self._value(properties[name])}"
            skip = name not in required
            first, later = (
                self._rule(f"{pair} {later}" + (f" | {first}" if skip else "")),
                self._rule(f'"," {pair} {later}' + (f" | {later}" if skip else "")),
            )
        return self._rule(f'"{{" {first} "}}"')

    def _map(self, values: Any) -> str:
        """Any names, with values of this schema."""
        if values is False:
            return self._rule('"{" "}"')
        key = self._rule("/[A-Za-z_][A-Za-z0-9_]*/", "T")
        pair = self._rule(f'{key} ":" {self._value(values)}')
        return self._rule(f'"{{" ({pair} ("," {pair})*)? "}}"')

    def _key(self, name: str) -> str:
        return _text(name + ":") if _BARE_KEY.fullmatch(name) else f'{self._literal(name)} ":"'


_WHOLE: Mapping[str, Callable[[_CallGrammar, Mapping[str, Any]], str]] = {
    "$ref": _CallGrammar._reference,
    "anyOf": _CallGrammar._branches,
    "const": _CallGrammar._literals,
    "enum": _CallGrammar._literals,
}
_TYPED: Mapping[str, Callable[[_CallGrammar, Mapping[str, Any]], str]] = {
    "object": _CallGrammar._object,
    "array": _CallGrammar._array,
    "string": _CallGrammar._string,
    "number": _CallGrammar._real,
    "integer": _CallGrammar._integer,
    "boolean": _CallGrammar._boolean,
    "null": _CallGrammar._null,
}


def _pattern(pattern: str) -> str:
    """A JSON schema's pattern, which is looked for anywhere in the text, as a Lark expression."""
    begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(?:\\\\)*\$$", pattern) is not None
    inner = pattern[1 if begins else 0 : len(pattern) - 1 if ends else None]
    if "|" in pattern and (begins or ends):
        _refuse("a pattern with | beside an anchor is not supported in calls")
    free = r"(.|\n)*"
    text = f"{'' if begins else free}({inner}){'' if ends else free}"
    return f"/{regex_to_lark(text, use_ascii='dw')}/"


def _text(value: str) -> str:
    """A literal of Lark's."""
    return json.dumps(value, ensure_ascii=False)


def _kind(value: Any) -> str:
    kinds = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
    return kinds.get(type(value), "array" if isinstance(value, list) else "object")


def _widened(kinds: Sequence[str]) -> set[str]:
    """An integer is a number too."""
    return {*kinds, *(["integer"] if "number" in kinds else [])}


def _refuse(problem: str) -> NoReturn:
    raise ConstraintRefused(problem)
