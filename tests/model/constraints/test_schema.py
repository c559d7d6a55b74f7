"""Which schemas are taken: bounds at their limit and past it, and keywords that are not kept."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.model.constraints import schema as bounds
from sapwood.model.constraints.calls import call_grammar
from sapwood.model.constraints.schema import read_schema
from sapwood.model.constraints.spec import ConstraintRefused
from tests.model.constraints.toy import CONTROL


def refusal(schema: Any) -> str:
    with pytest.raises(ConstraintRefused) as caught:
        read_schema(schema if isinstance(schema, str) else json.dumps(schema))
    return str(caught.value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_what_people_write_is_taken() -> None:
    taken = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/order",
        "title": "Order",
        "$defs": {"line": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Z]{3}$", "description": "three letters"},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "maxItems": 3},
            "when": {"type": ["string", "null"], "format": "date"},
            "kind": {"enum": ["a", 1, None, {"x": [1.5]}]},
            "more": {"anyOf": [{"type": "number", "minimum": -1.5}, {"const": "none"}]},
        },
        "required": ["id", "lines"],
        "additionalProperties": False,
    }
    assert read_schema(json.dumps(taken)) == taken
    assert read_schema("true") is True


@pytest.mark.parametrize(
    "keyword",
    [
        *("nullable", "discriminator", "not", "if", "contains", "uniqueItems", "propertyNames"),
        *("dependentRequired", "unevaluatedProperties", "contentEncoding", "x-guidance"),
        *("$dynamicRef", "$anchor", "$vocabulary", "additionalItems", "propertie"),
    ],
)
def test_a_keyword_that_is_not_kept_is_refused_by_name(keyword: str) -> None:
    assert f"the keyword '{keyword}' is not supported" == refusal({keyword: {}})
    inner = {"type": "object", "properties": {"a": {"anyOf": [{keyword: True}]}}}
    assert repr(keyword) in refusal(inner)


def test_a_propertys_name_is_no_keyword() -> None:
    read_schema(json.dumps({"properties": {"nullable": {"type": "string"}, "$ref": True}}))


LIMITS: dict[str, tuple[Any, Any]] = {
    "depth": (nested(bounds.DEPTH_MAX), nested(bounds.DEPTH_MAX + 1)),
    "optional properties": (
        {"properties": {f"p{n}": {} for n in range(bounds.PROPERTIES_MAX)}},
        {"properties": {f"p{n}": {} for n in range(bounds.PROPERTIES_MAX + 1)}},
    ),
    "branches": (
        {"anyOf": [{}] * bounds.BRANCHES_MAX},
        {"anyOf": [{}] * (bounds.BRANCHES_MAX + 1)},
    ),
    "schemas": (
        {"$defs": {str(n): {"prefixItems": [True] * 19} for n in range(99)}},
        {"$defs": {str(n): {"prefixItems": [True] * 19} for n in range(101)}},
    ),
    "values": (
        {"enum": list(range(bounds.VALUES_MAX - 1))},
        {"enum": list(range(bounds.VALUES_MAX))},
    ),
    "patterns": (
        {"patternProperties": {f"a{n}": {} for n in range(bounds.PATTERNS_MAX)}},
        {"patternProperties": {f"a{n}": {} for n in range(bounds.PATTERNS_MAX + 1)}},
    ),
    "pattern": (
        {"pattern": "a" * bounds.PATTERN_CHARS_MAX},
        {"pattern": "a" * (bounds.PATTERN_CHARS_MAX + 1)},
    ),
    "length": ({"maxLength": bounds.LENGTH_MAX}, {"maxLength": bounds.LENGTH_MAX + 1}),
    "number": ({"minimum": -(2**53)}, {"minimum": -(2**53) - 1}),
    "value": ({"const": 2**53}, {"const": 2**53 + 1}),
    "required": (
        {"required": [str(n) for n in range(bounds.PROPERTIES_MAX)]},
        {"required": [str(n) for n in range(bounds.PROPERTIES_MAX + 1)]},
    ),
    "minProperties": (
        {"minProperties": 2, "required": ["a", "b"]},
        {"minProperties": 2, "required": ["a"]},
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_bound_holds_at_its_limit_and_not_past_it(name: str) -> None:
    within, past = LIMITS[name]
    read_schema(json.dumps(within))
    assert refusal(past)


@pytest.mark.parametrize(
    "schema",
    [
        *('{"const": "\\ud800"}', '{"properties": {"\\udfff": {}}}'),
        *('{"const": 1e400}', '{"maximum": NaN}', "[" * 100_000, "", "{", '"a"', "7"),
        *({"maximum": 10**400}, {"minimum": True}, {"multipleOf": 0}, {"multipleOf": -1}),
        *({"minLength": 2.0}, {"minItems": -1}, {"maxItems": True}, {"maxLength": "3"}),
        *({"enum": []}, {"enum": "a"}, {"anyOf": []}, {"allOf": {}}, {"items": [{}]}),
        *({"type": "integr"}, {"type": []}, {"type": 1}, {"type": [["string"]]}),
        *({"required": ["a", "a"]}, {"required": [1]}, {"properties": []}, {"pattern": 1}),
        *({"format": "regex"}, {"format": 1}, {"$schema": "draft-04"}, {"$schema": 1}),
        *({"$ref": "other.json"}, {"$ref": "#/$defs/x"}, {"$ref": "#x"}, {"$ref": 1}),
        *({"items": {"$id": "x"}}, {"items": 1}, {"properties": {"a": None}}),
        {"default": {"nullable": True}, "$ref": "#/default"},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_what_is_no_schema_of_ours_is_refused(schema: Any) -> None:
    message = refusal(schema)
    assert message and len(message) < 150


def test_a_message_says_a_clients_word_in_short() -> None:
    assert len(refusal({"x" * 10_000: 1})) < 100


def test_references_into_lists_and_through_escapes() -> None:
    taken = {"anyOf": [{"const": 1}, {"$ref": "#/anyOf/0"}, {"$ref": "#/$defs/a~1b~0"}]}
    read_schema(json.dumps(taken | {"$defs": {"a/b~": {"type": "null"}}}))
    for pointer in ("#/anyOf/3", "#/anyOf/x", "#/anyOf/-1", "#/anyOf/00", "#/anyOf"):
        assert refusal({"anyOf": [{}, {}, {"$ref": pointer}]})


KEYWORDS = [*bounds._CHECKS, *bounds._REMARKS, "nullable", "a"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(["#", "string"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_whatever_json_it_is_it_is_taken_or_refused(value: Any) -> None:
    with suppress(ConstraintRefused):
        read_schema(json.dumps(value))
    with suppress(ConstraintRefused):
        call_grammar([("f", json.dumps(value))], CONTROL, many=True)
    with suppress(ConstraintRefused):
        call_grammar([("f", json.dumps({"properties": {"a": value}}))], CONTROL, many=True)
