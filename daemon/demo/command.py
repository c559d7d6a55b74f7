"""The command `sapwood demo`: two phases, one report, one exit code.

- 0: played to its end and every claim held. 1: anything else, said in one message. 2: bad usage.
  130: Ctrl-C.
- It ends by itself: LIMIT_S bounds everything but the last seconds of killing what runs.
- SIGTERM ends it on the way of Ctrl-C, with 1, so that no daemon outlives it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console

from sapwood import SapwoodError
from sapwood.daemon import blas, entry
from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.phase import Phase, play
from sapwood.daemon.demo.process import running, serve_command
from sapwood.daemon.demo.report import DemoReport, demo_report
from sapwood.daemon.demo.script import CAST
from sapwood.daemon.demo.tables import report_tables
from sapwood.daemon.demo.view import LiveView, PlainView, View, panels

LIMIT_S = 110.0
_WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_SVG_COLUMNS = 110


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code. argv None: the process's own. Takes over SIGINT and SIGTERM."""
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False)
    plain = arguments.plain or not console.is_terminal
    view: View = PlainView(console) if plain else LiveView(console)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: _interrupt(terminated))
    try:
        console.print(_announced(arguments), style="dim", markup=False)
        found = perform(_serve_flags(arguments), view, partial(console.print, style="dim"))
        console.print(report_tables(found))
        _write(found, arguments)
    except (DemoError, OSError) as error:
        print(f"sapwood demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        asked = "terminated" if terminated.is_set() else "interrupted"
        print(f"sapwood demo: {asked}", file=sys.stderr)
        return 1 if terminated.is_set() else entry.INTERRUPTED
    return 0 if all(claim.holds for claim in found.claims) else 1


def _announced(arguments: argparse.Namespace) -> str:
    model = arguments.model or "the small bundled Gemma 4, no download"
    return (
        f"{len(CAST)} clients, first at once and then one by one, each time on a daemon of its "
        f"own: {model}. It ends within {LIMIT_S:.0f} s; Ctrl-C ends it sooner."
    )


def perform(serve_flags: Sequence[str], view: View, say: Callable[[str], object]) -> DemoReport:
    """Both phases, each on a fresh daemon. say: told what is done next. Raises DemoError."""
    deadline = time.monotonic() + LIMIT_S
    say("1 of 2, together: starting a daemon and loading the model, some seconds")
    together, library = _phase(serve_flags, True, view, deadline)
    say("2 of 2, one by one: a fresh daemon for the same clients")
    one_by_one, other = _phase(serve_flags, False, view, deadline)
    if library != other:
        raise DemoError(f"one daemon computed with {library}, the other with {other}")
    return demo_report(together, one_by_one, library)


def _phase(
    serve_flags: Sequence[str], together: bool, view: View, deadline: float
) -> tuple[Phase, str]:
    # What is set for another daemon is not for this one.
    plain = {name: it for name, it in os.environ.items() if not name.startswith("SAPWOOD_")}
    environ = blas.environment(plain)
    with running(serve_command(*serve_flags), environ, deadline) as daemon:

        async def played() -> Phase:
            with anyio.fail_after(deadline - time.monotonic()):
                return await play(daemon, CAST, together, view)

        try:
            return anyio.run(played), blas.loaded(daemon.pid)
        except TimeoutError:
            raise DemoError(f"not finished within {LIMIT_S:.0f} s") from None
        except ExceptionGroup as group:
            raise DemoError(_first_message(group)) from group


def _first_message(group: ExceptionGroup[Exception]) -> str:
    """What went wrong first; the other clients' errors follow from it."""
    leaf: Exception = group
    while isinstance(leaf, ExceptionGroup):
        leaf = leaf.exceptions[0]
    return str(leaf) if isinstance(leaf, DemoError | SapwoodError) else repr(leaf)


def _write(found: DemoReport, arguments: argparse.Namespace) -> None:
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    if arguments.svg is not None:
        arguments.svg.write_text(picture(found))


def picture(found: DemoReport) -> str:
    """The final view as SVG, for the README."""
    console = Console(
        record=True, file=io.StringIO(), width=_SVG_COLUMNS, force_terminal=True, highlight=False
    )
    console.print(panels("together", found.together.dialogues))
    console.print(report_tables(found))
    # Without rich's web font: a picture in a README loads nothing from elsewhere.
    return _WEB_FONT.sub("", console.export_svg(title="sapwood demo"))


def _interrupt(terminated: threading.Event) -> None:
    """As Ctrl-C, which the event loop turns into an orderly cancellation."""
    terminated.set()
    signal.raise_signal(signal.SIGINT)


def _serve_flags(arguments: argparse.Namespace) -> list[str]:
    http = "127.0.0.1:0" if arguments.http else None
    given = {"--model": arguments.model, "--draft": arguments.draft, "--http": http}
    return [word for flag, value in given.items() if value for word in (flag, value)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sapwood demo",
        description="Eight clients talk to one Gemma 4 at once, then one after another.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--json", type=_writable, metavar="FILE", help="write what was measured")
    add("--plain", action="store_true", help="lines instead of the live view")
    add("--model", metavar="DIR|ID", help="as for serve (default: the bundled demo pair)")
    add("--draft", metavar="DIR|ID|none", help="as for serve")
    add("--http", action="store_true", help="the same clients over HTTP, through SMG")
    add("--svg", type=_writable, metavar="FILE", help=argparse.SUPPRESS)
    return parser


def _writable(name: str) -> Path:
    """Refused now rather than after the run."""
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {name}")
    return path
