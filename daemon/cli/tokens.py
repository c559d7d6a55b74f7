"""`sapwood token new`: a token goes to standard output, its hash into the file, none elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from sapwood.daemon import entry
from sapwood.daemon.errors import UsageError
from sapwood.daemon.settings.principals import parse_role, parse_weight
from sapwood.daemon.settings.tokens import new_token


def new(arguments: argparse.Namespace) -> int:
    """Make a token and print it, which nobody can do again. A daemon takes it within a second."""
    entry.imported()
    try:
        role = parse_role(arguments.role)
        weight = None if arguments.weight is None else parse_weight(arguments.weight)
    except UsageError as error:
        raise UsageError(f"token new: {error}") from None
    print(new_token(Path(arguments.tokens).expanduser(), arguments.name, role, weight))
    return 0
