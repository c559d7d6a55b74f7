"""The command line: flags to one command, errors to one exit code.

- 0 done, 1 failed, 2 bad usage. A message is one line on stderr, without a traceback.
- Only `serve` and `demo` import what loads a model; client commands start fast.
- A command that does not exist yet is not listed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from daemon import commands
from daemon.config import DTYPES, load_config
from daemon.errors import StartError, UsageError
from rootstock.errors import RootstockError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2)."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["demo"]:
        from daemon import demo

        return demo.main(given[1:])
    arguments = _parser().parse_args(given)
    try:
        return int(arguments.run(arguments))
    except UsageError as error:
        return _fail(error, 2)
    except (RootstockError, StartError) as error:
        return _fail(error, 1)
    except (KeyboardInterrupt, BrokenPipeError):
        return 1


def _fail(error: Exception, code: int) -> int:
    print(f"rootstock: {error}", file=sys.stderr)
    return code


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    flags = vars(arguments)
    flags.pop("run")
    config = load_config(flags)
    # anyio and everything that loads a model are slow to import and used by this command alone.
    import anyio

    from daemon.assemble import loader
    from daemon.server import serve

    return anyio.run(serve, config, loader(config))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rootstock",
        description="Serves Gemma 4 with speculative decoding to many clients on one device.",
        allow_abbrev=False,
    )
    commands_of = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands_of.add_parser("serve", help="run the daemon", allow_abbrev=False))
    commands_of.add_parser("demo", help="watch eight clients share one daemon", add_help=False)
    _add_chat(_client_parser(commands_of, "chat", "talk to the model", commands.chat))
    _add_generate(_client_parser(commands_of, "generate", "continue one prompt", commands.generate))
    _client_parser(commands_of, "status", "what is loaded, and memory", commands.status)
    _client_parser(commands_of, "tree", "draw the prefix tree", commands.tree)
    return parser


def _client_parser(commands_of, name, help, run):  # type: ignore[no-untyped-def]
    parser = commands_of.add_parser(name, help=help, allow_abbrev=False)
    parser.add_argument(
        "--connect",
        metavar="ADDR",
        help="unix:PATH or HOST:PORT (default: $ROOTSTOCK_ADDRESS, the socket, 127.0.0.1:50551)",
    )
    parser.set_defaults(run=run)
    return parser
