"""`[principals.NAME]` of the configuration: what is set of those who may call.

- A name is what a token, a certificate or a socket says. `local` comes by the daemon's own socket,
  and by loopback TCP where no tokens are in use. `default` is for all that have no table.
- A quota that is not set does not bind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sapwood.daemon.errors import UsageError
from sapwood.daemon.sizes import parse_size
from sapwood.daemon.suggestion import suggestion

LOCAL = "local"
REST = "default"
_WEIGHT_MAX = 1000
_NAME = re.compile(r"[!-~]{1,255}")


class Role(StrEnum):
    """What somebody may do: generate, or also look at and change what all share."""

    USER = "user"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much of a daemon one principal may have at once. None: no bound of its own."""

    running_max: int | None = None
    queued_max: int | None = None
    tokens_per_minute_max: int | None = None
    pin_bytes_max: int | None = None
    sessions_max: int | None = None


@dataclass(frozen=True, slots=True)
class PrincipalSettings:
    """role: of who comes by a certificate or a socket; None: nothing is set. pool: shared caches"""

    role: Role | None = None
    weight: int = 1
    quotas: Quotas = field(default_factory=Quotas)
    pool: str | None = None


def is_name(text: str) -> bool:
    """Whether somebody can be called so: printable ASCII without spaces, at most 255."""
    return _NAME.fullmatch(text) is not None


def parse_principals(value: Any) -> Mapping[str, PrincipalSettings]:
    """The tables by name. Raises UsageError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError("is a table of tables")
    return {name: _parsed(name, table) for name, table in value.items()}


def parse_role(value: Any) -> Role:
    """Raises UsageError."""
    if value not in list(Role):
        raise UsageError(f"{value!r} is not a role: {' or '.join(Role)}")
    return Role(value)


def parse_weight(value: Any) -> int:
    """Raises UsageError."""
    return _whole(1, _WEIGHT_MAX, value)


def _parsed(name: str, table: Any) -> PrincipalSettings:
    if not is_name(name):
        raise UsageError(f"{name!r} is not a name: 1 to 255 printable ASCII characters")
    if not isinstance(table, dict):
        raise UsageError(f"{name} is a table")
    values = {key: _setting(name, key, value) for key, value in table.items()}
    if name == REST and values.get("role") is Role.OPERATOR:
        raise UsageError("default: who is not named is no operator")
    return PrincipalSettings(
        role=values.get("role"),
        weight=values.get("weight", 1),
        quotas=Quotas(
            values.get("running_max"),
            values.get("queued_max"),
            values.get("tokens_per_minute_max"),
            values.get("pin_bytes_max"),
            values.get("sessions_max"),
        ),
        pool=values.get("pool"),
    )


def _setting(name: str, key: str, value: Any) -> Any:
    if key not in _PARSERS:
        raise UsageError(f"{name}: unknown setting {key!r}{suggestion(key, _PARSERS)}")
    try:
        return _PARSERS[key](value)
    except UsageError as error:
        raise UsageError(f"{name}.{key}: {error}") from None


def _whole(least: int, most: int | None, value: Any) -> int:
    fits = type(value) is int and least <= value and (most is None or value <= most)
    if not fits:
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise UsageError(f"{value!r} is not a whole number, {wanted}")
    return int(value)


def _pool(value: Any) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise UsageError(f"{value!r} is not the name of a pool")
    return value


def _at_least(least: int) -> Callable[[Any], int]:
    return lambda value: _whole(least, None, value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "role": parse_role,
    "weight": parse_weight,
    "running_max": _at_least(1),
    "queued_max": _at_least(0),
    "tokens_per_minute_max": _at_least(1),
    "pin_bytes_max": parse_size,
    "sessions_max": _at_least(0),
    "pool": _pool,
}
