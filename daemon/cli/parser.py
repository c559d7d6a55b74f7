"""How arguments are read: argparse, which says in one line what is wrong and what was meant.

- What is wrong is a UsageError, as everywhere; only help and version leave by SystemExit.
- Flags may stand between the words of a command that takes words.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from sapwood.daemon.errors import UsageError
from sapwood.daemon.suggestion import suggestion


class Parser(argparse.ArgumentParser):
    """Of the whole command line, or of one command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError: the command, what is wrong, and where to read on."""
        raise UsageError(f"{self.command}{message}; `{self.prog} --help` says more")

    @property
    def command(self) -> str:
        """`generate: `, or nothing for the whole command line."""
        name = self.prog.partition(" ")[2]
        return f"{name}: " if name else ""

    def read(self, given: Sequence[str], commands: dict[str, Parser]) -> argparse.Namespace:
        """All of the command line. commands: this parser's. Raises UsageError."""
        name = given[0] if given else ""
        if name and not name.startswith("-") and name not in commands:
            raise UsageError(
                f"there is no command {name!r}{suggestion(name, commands)}; "
                f"`{self.prog} --help` lists them"
            )
        arguments, rest = self.parse_known_args(given)
        if rest and all(not word.startswith("-") for word in rest):
            words = getattr(arguments, "prompt", None)
            if isinstance(words, list):  # of which argparse takes no more behind a flag
                words += rest
                return arguments
        if rest:
            commands.get(name, self).refuse(rest)
        return arguments

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Raises UsageError for what is left over, a flag before a word."""
        first = next((word for word in rest if word.startswith("-")), rest[0])
        flag = first.partition("=")[0]
        if not flag.startswith("-"):
            self.error(f"there is no place for {first!r}")
        flags = re.findall(r"--[a-z][\w-]*", self.format_help())
        self.error(f"there is no flag {flag}{suggestion(flag, flags)}")
