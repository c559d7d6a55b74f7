"""`sapwood completion`: a script that makes a shell complete commands, flags and files.

shtab writes it from the parser itself, so that it has every flag there is.
"""

from __future__ import annotations

import argparse
import re

import shtab

_FILES = re.compile(r"FILE|PATH|DIR|BUNDLE|SRC|DST")


def print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """shell: bash, zsh or fish."""
    _mark_files(parser)
    print(shtab.complete(parser, shell))
    return 0


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """shtab asks each action; argparse has no public list of them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_files(command)
        elif isinstance(action.metavar, str) and _FILES.search(action.metavar):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
