"""The command `sapwood` and `python -m sapwood`: the only one who imports the command line."""

from __future__ import annotations

import sys

from sapwood.daemon.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
