"""Commands whose imports are dear, or that need the daemon's extra: each imports its own.

So a client starts fast, and runs where only it is installed.
"""

from __future__ import annotations

import argparse

from sapwood.daemon import entry
from sapwood.daemon.extras import require_serve


def install_service_late(arguments: argparse.Namespace) -> int:
    """`sapwood install-service`."""
    require_serve("install-service")
    from sapwood.daemon.cli.install_service import run_install_service

    return run_install_service(arguments)


def convert_late(arguments: argparse.Namespace) -> int:
    """`sapwood convert`."""
    require_serve("convert")
    from sapwood.daemon.cli.convert import run_convert

    entry.imported()
    return run_convert(arguments)


def check_late(arguments: argparse.Namespace) -> int:
    """`sapwood check`."""
    require_serve("check")
    from sapwood.daemon.cli.check import run_check

    entry.imported()
    return run_check(arguments)


def pull_late(arguments: argparse.Namespace) -> int:
    """`sapwood pull`."""
    require_serve("pull")
    from sapwood.daemon.cli.pull import run_pull

    entry.imported()
    return run_pull(arguments)


def list_late(arguments: argparse.Namespace) -> int:
    """`sapwood list`."""
    require_serve("list")
    from sapwood.daemon.cli.models import run_list

    entry.imported()
    return run_list(arguments)


def show_late(arguments: argparse.Namespace) -> int:
    """`sapwood show`."""
    require_serve("show")
    from sapwood.daemon.cli.models import run_show

    entry.imported()
    return run_show(arguments)


def top_late(arguments: argparse.Namespace) -> int:
    """`sapwood top`."""
    require_serve("top")
    from sapwood.daemon.cli.top import run_top

    entry.imported()
    return run_top(arguments)
