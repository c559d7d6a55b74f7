"""`sapwood config`: what `serve` would go by, as a file that says the same; whether a file holds.

What is printed is TOML: settings that were given, and where, and in comments what the others are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sapwood.daemon.settings.config import effective_settings, load_config
from sapwood.daemon.settings.sources import FILE_TABLES
from sapwood.scheduler.limits import Limits

_COMMENT_COLUMN = 48


def run_config_show(arguments: argparse.Namespace) -> int:
    """Print what flags, environment and file come to. Raises UsageError."""
    flags = {name: it for name, it in vars(arguments).items() if name not in ("run", "json")}
    found = list(effective_settings(flags, os.environ))
    if arguments.json:
        print(json.dumps({name: {"value": _plain(it), "from": at} for name, it, at in found}))
    else:
        print("\n".join(_toml(found)))
    return 0


def run_config_check(arguments: argparse.Namespace) -> int:
    """Say whether a file can be served by. Raises UsageError, with the file's name."""
    load_config({"config": arguments.file})
    print(f"{arguments.file}: ok")
    return 0


def _written(value: Any) -> str:
    """A scalar or list: what JSON has for it TOML has too."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _toml(found: Iterable[tuple[str, Any, str]]) -> Iterator[str]:
    tables: dict[str, Any] = {}
    for name, value, where in found:
        if name in FILE_TABLES:
            tables[name] = value if where else {}
        elif where:
            yield f"{f'{name} = {_written(value)}':{_COMMENT_COLUMN}}  # {where}"
        elif value is not None:
            yield f"# {name} = {_written(value)}"
        else:
            yield f"# {name}: not set"
    for name, table in tables["principals"].items():
        yield from ("", f"[principals.{json.dumps(name)}]", *_pairs(table))
    yield from ("", "[limits]", *_pairs(tables["limits"]))
    for name, value in dataclasses.asdict(Limits()).items():
        if name not in tables["limits"]:
            yield f"# {name} = {value}"


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        yield f"{name} = {_written(value)}"


def _plain(value: Any) -> Any:
    """As TOML and JSON have it: an address, a path are text."""
    if dataclasses.is_dataclass(value) and hasattr(value, "address"):
        value = value.address
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Limits):
        return {}
    return value if isinstance(value, bool | int | float | str | list | dict | None) else str(value)
