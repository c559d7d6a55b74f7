"""The command `sapwood` and `python -m sapwood`: the only one who imports the command line.

Signals are answered before the command line is imported, which takes a second or so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sapwood.daemon import entry

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, or without `argv` ends the process, which is ours.

    With it, argparse's SystemExit passes through.
    """
    if argv is not None:
        return _run(argv)
    given = sys.argv[1:]
    entry.begin(serves=given[:1] == ["serve"])
    try:
        code = _run(given)
    except SystemExit as left:  # argparse's: help, version, bad usage
        code = left.code if isinstance(left.code, int) else 0
    entry.leave(code)


def _run(argv: Sequence[str]) -> int:
    from sapwood.daemon.cli.main import main as run_command

    return run_command(argv)


if __name__ == "__main__":
    sys.exit(main())
