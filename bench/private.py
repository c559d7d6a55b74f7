"""What a report may not tell: paths, and the names of user and machine.

- Of a path its last part stays, whatever else of it was said; so do relative paths, which are ours.
- A name that is a path itself, such as the home or the model's folder, goes first and whole: it may
  have spaces in it.
- Names shorter than three letters stay: they would be found in every text.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

# From a root, a home or a drive; what stands behind :// is an address, and gone as well.
_PATH = re.compile(r"(?:(?:\w+://)|(?<![\w.~)\]]))~?(?:/[^\s/:'\"`,;()\[\]{}<>]+)+/?")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?")


def scrubbed(value: Any, names: Sequence[str] | None = None) -> Any:
    """The same document with its strings cleaned, keys aside. names: of here, unless given."""
    known = own_names() if names is None else list(names)
    match value:
        case str():
            return _clean(value, known)
        case Mapping():
            return {key: scrubbed(item, known) for key, item in value.items()}
        case list() | tuple():
            return [scrubbed(item, known) for item in value]
    return value


def own_names() -> list[str]:
    """Of this machine, its user, and the home; longest first."""
    host, home = platform.node(), os.path.expanduser("~")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return sorted({host, host.partition(".")[0], user, home}, key=len, reverse=True)


def _clean(text: str, names: Sequence[str]) -> str:
    for place in (name for name in names if "/" in name.strip("/")):
        text = text.replace(place, "NAME")
    text = _ADDRESS.sub("ADDRESS", _PATH.sub(_last_part, text))
    for name in (name for name in names if len(name) >= 3):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", text)
    return text


def _last_part(found: re.Match[str]) -> str:
    return "…/" + found[0].rstrip("/").rpartition("/")[2]
