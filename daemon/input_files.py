"""What commands read from files: UTF-8 and bounded, a UsageError with the file's name otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sapwood import Tool
from sapwood.daemon.errors import UsageError

TEXT_CHARS_MAX = 4 * 1024 * 1024  # of a prompt, in a file or on standard input
TOOLS_CHARS_MAX = 1024 * 1024


def read_text(path: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Raises UsageError, also for what is longer."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(chars_max + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8") from None
    if len(text) > chars_max:
        raise UsageError(f"{path}: is longer than {chars_max} characters")
    return text


def read_json(path: str, chars_max: int) -> Any:
    """Raises UsageError."""
    try:
        return json.loads(read_text(path, chars_max))
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: is not JSON") from None


def read_tools(path: str) -> tuple[Tool, ...]:
    """A JSON list of tools, or one: each with name, description and parameters, or as OpenAI has
    it, with these in `function`. Raises UsageError."""
    found = read_json(path, TOOLS_CHARS_MAX)
    try:
        return tools_of(found)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def tools_of(values: Any) -> tuple[Tool, ...]:
    """As read_tools, of what was read. Raises ValueError."""
    return tuple(map(_tool, values if isinstance(values, list) else [values]))


def _tool(value: Any) -> Tool:
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("a tool is an object with a name")
    name, parameters = value["name"], value.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ValueError(f"the parameters of {name} are no object")
    return Tool(name, str(value.get("description") or ""), parameters)
