"""Random schemas of the shapes that people send, and how long a document of one can be."""

from __future__ import annotations

from random import Random
from typing import Any

# What a character can take: an escape of six letters.
CHAR_BYTES = 6
_PATTERNS = {"^[A-Z]{2}-[0-9]{3}$": 6, "^(yes|no|maybe)$": 5, "^[a-z]{1,8}$": 8}


def schema_of(random: Random, depth: int = 0) -> tuple[dict[str, Any], int]:
    """An object of three to five properties, and the most bytes that a document of it has."""
    properties: dict[str, Any] = {}
    longest = 2
    for number in range(random.randint(3, 5)):
        name = random.choice(("id", "name", "größe", "a b", "kind", 'q"', "x")) + str(number)
        properties[name], inner = _value(random, depth)
        longest += CHAR_BYTES * len(name) + 4 + inner
    required = [name for name in properties if random.random() < 0.7]
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return schema, longest


def _value(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    kinds = [_enum, _string, _integer, _pattern, _boolean, _either, _format]
    kind = random.choice([*kinds, _array, _array, _object] if depth < 2 else kinds)
    return kind(random, depth)


def _object(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    return schema_of(random, depth + 1)


def _enum(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    values = random.sample(["new", "used", "ä<b>", 7, -1.5, None, True, ""], 3)
    return {"enum": values}, 8 * CHAR_BYTES


def _string(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    least = random.randint(0, 4)
    most = least + random.randint(0, 8)
    return {"type": "string", "minLength": least, "maxLength": most}, CHAR_BYTES * most + 2


def _integer(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    least = random.randint(-1000, 1000)
    return {"type": "integer", "minimum": least, "maximum": least + random.randint(0, 500)}, 6


def _pattern(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    pattern = random.choice(list(_PATTERNS))
    return {"type": "string", "pattern": pattern}, _PATTERNS[pattern] + 2


def _boolean(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    return {"type": random.choice(("boolean", "null", ["boolean", "null"]))}, 5


def _format(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    return random.choice([({"type": "string", "format": "date"}, 12), ({"const": "fixed"}, 7)])


def _either(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    found = [_value(random, 2) for _ in range(2)]
    return {"anyOf": [schema for schema, _ in found]}, max(longest for _, longest in found)


def _array(random: Random, depth: int) -> tuple[dict[str, Any], int]:
    items, inner = _value(random, depth + 1)
    least = random.randint(0, 2)
    most = least + random.randint(0, 2)
    schema = {"type": "array", "items": items, "minItems": least, "maxItems": most}
    return schema, 2 + most * (inner + 1)
