"""Where a setting was written: on the command line, in the environment, in the file.

- A flag wins over the environment, that over the file. Names are the same in all three:
  `--draft-depth`, `SAPWOOD_DRAFT_DEPTH`, `draft_depth`. Tables are for the file alone.
- In the environment `true` and `false` are what they are in the file, and spaces lie between the
  addresses of `listen`.
- A name that is none is refused with the nearest that is one; a value that is wrong says where it
  was written.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapwood.daemon.errors import UsageError
from sapwood.daemon.suggestion import suggestion

CONFIG_BYTES_MAX = 1 << 20
FILE_TABLES = ("principals", "limits")  # of the file alone
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class WrittenSetting:
    """A value as it was given, and where, as messages begin."""

    value: Any
    where: str


def gather(
    flags: Mapping[str, Any], environ: Mapping[str, str], names: Collection[str]
) -> dict[str, WrittenSetting]:
    """What was written of the settings of these names. flags: None is not given.

    Raises UsageError.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    file = given.pop("config", None) or environ.get(variable("config")) or None
    found = {} if file is None else _in_file(Path(file).expanduser(), names)
    for name in names:
        if name not in FILE_TABLES and (text := environ.get(variable(name))):
            found[name] = WrittenSetting(_from_text(name, text), variable(name))
    for name, value in given.items():
        found[name] = WrittenSetting(value, f"--{name.replace('_', '-')}")
    return found


def variable(name: str) -> str:
    """Of the environment."""
    return f"SAPWOOD_{name.upper()}"


def _from_text(name: str, text: str) -> Any:
    return text.split() if name == "listen" else _BOOLEANS.get(text, text)


def _in_file(path: Path, names: Collection[str]) -> dict[str, WrittenSetting]:
    settings = _read(path)
    if unknown := settings.keys() - set(names):
        name = min(unknown)
        raise UsageError(f"{path}: unknown setting {name!r}{suggestion(name, names)}")
    return {name: WrittenSetting(value, f"{path}: {name}") for name, value in settings.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_BYTES_MAX + 1)
        if len(text) > CONFIG_BYTES_MAX:
            raise UsageError(f"{path} is longer than {CONFIG_BYTES_MAX} bytes")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
