"""Gemma's calls under a grammar: right ones pass, wrong ones do not, all that passes is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sapwood.model.constraints.calls import call_grammar
from sapwood.model.constraints.constraint import Constraint
from sapwood.model.constraints.guide import Guide
from sapwood.model.constraints.spec import ConstraintRefused, ConstraintSpec
from sapwood.scheduler.reply.tool_calls import read_calls
from tests.model.constraints.toy import (
    CALL,
    CALL_END,
    CONTROL,
    EOS,
    QUOTE,
    built,
    decode,
    encode,
    follow,
)

WEATHER = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["C", "F"], "title": "Unit"},
        "city": {"type": "string", "description": "where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city"],
}
TREE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,5}$"},
        "odd key": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    },
    "required": ["name", "odd key"],
}
LIST = {
    "type": "object",
    "properties": {
        "rows": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {"k": {"type": ["string", "boolean"]}, "v": {"const": 3}},
                "required": ["k", "v"],
            },
        },
        "t": {"type": "string", "minLength": 2, "maxLength": 4},
    },
    "required": ["rows", "t"],
}
FREE = {"type": "object", "additionalProperties": {"type": "integer"}}
TOOLS: dict[str, dict[str, Any]] = {"weather": WEATHER, "tree": TREE, "list": LIST, "free": FREE}


def constraint(**tools: Any) -> Constraint:
    named = tuple((name, json.dumps(schema)) for name, schema in tools.items())
    return built(ConstraintSpec("calls", tools=named))


def ids(call: str) -> list[int]:
    """The tokens of a block; ' stands for Gemma's quote."""
    quoted = [encode(piece) for piece in call.split("'")]
    block = [CALL, *quoted[0]]
    for piece in quoted[1:]:
        block += [QUOTE, *piece]
    return [*block, CALL_END]


def passes(held: Constraint, call: str) -> bool:
    guide = Guide(held, ())
    guide.push([*ids(call), EOS])
    return not guide.failure


@pytest.mark.parametrize(
    "call",
    [
        "call:weather{city:'Rome'}",
        "call:weather{city:'',days:14,unit:'F'}",
        "call:weather{city:'a,b}: <b>',unit:'C'}",
        "call:tree{name:'a','odd key':null}",
        "call:tree{children:[{name:'b','odd key':-1.5}],name:'abc','odd key':2}",
        "call:list{rows:[{k:true,v:3},{k:'x',v:3}],t:'ab'}",
        "call:free{}",
        "call:free{a:1,b_2:-3}",
    ],
)
def test_right_calls_pass_and_are_read_back(call: str) -> None:
    assert passes(constraint(**TOOLS), call)
    (read,) = read_calls(call.split("'"))
    Draft202012Validator(TOOLS[read.name]).validate(json.loads(read.arguments))


@pytest.mark.parametrize(
    "call",
    [
        "call:weather{}",
        "call:weather{city:Rome}",
        "call:weather{city:'Rome',}",
        "call:weather{unit:'C',city:'Rome'}",  # not in the template's order
        "call:weather{city:'Rome',days:15}",
        "call:weather{city:'Rome',unit:'K'}",
        "call:weather{city:'Rome',more:1}",
        "call:weather {city:'Rome'}",
        "call:other{city:'Rome'}",
        "call:tree{name:'abcdef','odd key':1}",
        "call:tree{name:'a',odd key:1}",
        "call:list{rows:[],t:'ab'}",
        "call:list{rows:[{k:1,v:3}],t:'ab'}",
        "call:list{rows:[{k:true,v:3}],t:'a'}",
        "call:free{a:1.5}",
        "call:free{a:'1'}",
    ],
)
def test_wrong_calls_do_not(call: str) -> None:
    assert not passes(constraint(**TOOLS), call)


def test_no_control_token_stands_inside_of_a_string() -> None:
    guide = Guide(constraint(weather=WEATHER), ())
    guide.push([CALL, *encode("call:weather{city:"), QUOTE, *encode("a"), CALL_END])
    assert guide.failure


@pytest.mark.parametrize("name", TOOLS)
def test_what_is_drawn_under_the_masks_is_read_back_and_valid(name: str) -> None:
    held, validator = constraint(**{name: TOOLS[name]}), Draft202012Validator(TOOLS[name])
    ended = 0
    for seed in range(12):
        reply = follow(held, seed)
        if reply is None:
            continue
        ended += 1
        assert reply[0] == CALL and reply[-2] == CALL_END
        pieces, block = [[]], reply[1:-2]  # type: ignore[var-annotated]
        for token in block:
            if token == QUOTE:
                pieces.append([])
            else:
                pieces[-1].append(token)
        (read,) = read_calls([decode(piece) for piece in pieces])
        assert read.name == name
        validator.validate(json.loads(read.arguments))
    assert ended >= 3


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"type": "array"}, "no object"),
        ({"properties": {"a": {"type": "string", "format": "date"}}}, "format"),
        ({"properties": {"a": {"type": "string", "pattern": "a", "minLength": 1}}}, "length"),
        ({"properties": {"a": {"pattern": "^a|b$"}}}, "|"),
        ({"properties": {"a": {"allOf": [{}]}}}, "allOf"),
        ({"properties": {"a": {"oneOf": [{}]}}}, "oneOf"),
        ({"properties": {"a": {"enum": [[1]]}}}, "enum"),
        ({"properties": {"a": {"$ref": "#", "minLength": 1}}}, "minLength"),
        ({"properties": {"a": {"type": "string", "minimum": 1}}}, "minimum"),
        ({"properties": {"a": False}}, "nothing satisfies"),
        ({"properties": {"a": {"nullable": True}}}, "nullable"),
        ({"properties": {f"p{n}": {} for n in range(130)}}, "optional"),
        ({"patternProperties": {"a": {}}}, "patternProperties"),
        (
            {
                "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(399)}
                | {"d399": {"type": "null"}},
                "properties": {"a": {"$ref": "#/$defs/d0"}},
            },
            "too long",
        ),
        ({"properties": {"a": {"type": "string", "enum": [1]}}}, "enum"),
    ],
)
def test_what_a_grammar_of_calls_cannot_keep_is_refused(
    parameters: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConstraintRefused) as caught:
        call_grammar([("f", json.dumps(parameters))], CONTROL, many=True)
    assert word in str(caught.value)


def test_a_name_that_no_reader_would_read_is_refused() -> None:
    for name in ("", "a b", "f{", "x" * 129, 'say "x"'):
        with pytest.raises(ConstraintRefused, match="name"):
            call_grammar([(name, "")], CONTROL, many=True)
