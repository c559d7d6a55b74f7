"""The command line: flags to one command, errors to one exit code.

- 0 done, 1 failed, 2 bad usage, 130 Ctrl-C. A message is one line on stderr, without a traceback.
- What serves and what loads a model is imported by the commands that need it: clients start fast,
  and run where only they are installed. What talks to a daemon is not imported by `serve`.
- A command that does not exist yet is not listed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sapwood import SapwoodError, __version__
from sapwood.daemon import entry
from sapwood.daemon.cli import config_commands, late, tokens
from sapwood.daemon.cli.flag_values import interval, timeout_s
from sapwood.daemon.cli.parser import Parser
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.extras import require_gateway, require_serve
from sapwood.daemon.log import FORMATS, LEVELS, log_to_stderr
from sapwood.daemon.settings.config import (
    DEFAULT_ITL_TARGET,
    DEFAULT_METRICS,
    DTYPES,
    NUMERICS,
    SELF_CHECKS,
    STORAGES,
    load_config,
)
from sapwood.daemon.sizes import unsigned

if TYPE_CHECKING:
    from sapwood.daemon.engine.loaded import Loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Help and version leave by SystemExit, with 0."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if given[:1] == ["demo"]:
            return _demo(given[1:])
        parser, commands_by_name = _parser(serves=given[:1] == ["serve"])
        arguments = parser.read(given, commands_by_name)
        return int(arguments.run(arguments))
    except UsageError as error:
        return _fail(error, 2)
    except UnicodeError:  # of arguments and standard input alone: what a daemon sends is UTF-8
        return _fail(UsageError("the text is not UTF-8"), 2)
    except KeyboardInterrupt as interrupt:  # with a text where the command has more to say
        return _fail(str(interrupt) or "interrupted", entry.INTERRUPTED)
    except BrokenPipeError:  # the reader left, as `head` does
        return 1
    except (SapwoodError, StartError, OSError) as error:
        return _fail(error, 1)


def _fail(error: Exception | str, code: int) -> int:
    entry.complain(str(error))
    return code


def _demo(arguments: Sequence[str]) -> int:
    require_serve("demo")
    from sapwood.daemon.demo import command

    entry.imported()
    return command.main(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    require_serve("serve")
    flags = vars(arguments)
    flags.pop("run")
    config = load_config(flags, os.environ)
    log_to_stderr(config.log_level, config.log_format)
    if config.gateway is not None or config.http is not None:
        require_gateway(http=config.http is not None)
    import anyio

    from sapwood.daemon.process.run import serve
    from sapwood.daemon.process.start_screen import Nowhere, StartScreen

    screen = StartScreen() if sys.stderr is not None and sys.stderr.isatty() else Nowhere()

    def load() -> Loaded:
        from sapwood.daemon.process import assemble

        entry.all_imported()
        return assemble.load(config, screen.report)

    return anyio.run(serve, config, load, screen)


def _completion(arguments: argparse.Namespace) -> int:
    from sapwood.daemon.cli.completion import print_completion

    return print_completion(_parser()[0], arguments.shell)


def _parser(*, serves: bool = False) -> tuple[Parser, dict[str, Parser]]:
    """The whole command line, and each command's own by its name; serves: `serve` alone."""
    parser = Parser(
        prog="sapwood",
        description="Serves Gemma 4 with speculative decoding to many clients on one device.",
    )
    parser.add_argument("--version", action="version", version=f"sapwood {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, help: str) -> Parser:
        return subparsers.add_parser(name, help=help, description=help)

    _add_serve(add("serve", "run the daemon"))
    if not serves:
        _add_others(add)
    return parser, dict(subparsers.choices)


def _add_others(add: Callable[[str, str], Parser]) -> None:
    """All but `serve`."""
    from sapwood.daemon.cli.client_flags import add_client_commands

    add("demo", "watch eight clients share one daemon")  # main() hands its flags over unread
    add_client_commands(add)
    _add_models(add)
    _add_convert(add("convert", "make one bundle of a model and its drafter, quantised or not"))
    _add_token(add("token", "make a token for a client of the daemon"))
    _add_check(add("check", "verify a bundle: digests, shapes, drafter, a self-check round"))
    _add_daemon(add)
    _add_service(add("install-service", "write a service that serves after each login or start"))
    _add_config(add("config", "what `serve` would go by, and whether a file of it holds"))


def _add_disk(add: Callable[..., object]) -> None:
    help = "keep prefixes there over restarts: a folder of its own (default: nowhere)"
    add("--cache-dir", metavar="DIR", help=help)
    add("--cache-disk", metavar="SIZE", help="what it may take (default: 20GiB)")
    add("--cache-writes", metavar="SIZE", help="what is written there a day (default: 100GiB)")
    help = "exact: bit for bit; 8bit: about half the bytes, and near to it (default: exact)"
    add("--cache-storage", metavar="|".join(STORAGES), help=help)


def _add_serve(parser: Parser) -> None:
    parser.set_defaults(run=_serve)
    add = parser.add_argument
    add("--config", metavar="FILE", help="TOML with the same names; flags win")
    add(
        "--model",
        metavar="DIR|ID",
        help="directory, bundle or cached hub id (default: the bundled demo pair); of a bundle's "
        "files the sizes are verified, the digests by `check` only",
    )
    add("--draft", metavar="DIR|ID|none", help="the drafter (default: the model bundle's own)")
    add("--draft-depth", metavar="auto|0..8", help="tokens drafted per round (default: auto)")
    add(
        "--itl-target",
        metavar="RATIO",
        help="gaps between a stream's tokens while others' prompts are read, times those without "
        f"(default: {DEFAULT_ITL_TARGET:g})",
    )
    add(
        "--listen",
        metavar="ADDR",
        action="append",
        help="unix:PATH, unix:PATH,principal=NAME or HOST:PORT, repeatable (default: a socket and "
        "127.0.0.1:50551)",
    )
    add("--tls-cert", metavar="FILE", help="PEM, with which TCP addresses have TLS; read again")
    add("--tls-key", metavar="FILE", help="the key of --tls-cert")
    add("--tls-client-ca", metavar="FILE", help="whose certificates clients need, each a principal")
    add("--tokens", metavar="FILE", help="bearer tokens, as `sapwood token new` writes them")
    _add_told(parser)
    help = "budget such as 8G, 8GiB or 500MB (default: from the device)"
    add("--memory", metavar="SIZE", help=help)
    _add_disk(add)
    add(
        "--wire-memory",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the budget resident on Metal; docs/memory.md says what it risks (default: no)",
    )
    _add_computing(parser)
    add(
        "--reflection",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="serve gRPC server reflection (default: yes)",
    )
    add("--record", metavar="FILE", help="write what is planned, without text, to play it again")
    add("--grammar", metavar="lark", help="take Lark grammars of clients (default: none)")
    add("--gateway", metavar="HOST:PORT", help="serve VllmEngine to a gateway, on loopback")
    add("--gateway-principal", metavar="NAME", help="whose that is (default: gateway)")
    add(
        "--http",
        metavar="HOST:PORT",
        help="start SMG beside the daemon: OpenAI's and Anthropic's API",
    )
    add("--http-key-file", metavar="FILE", help="the key that HTTP clients have to give")


def _add_computing(parser: Parser) -> None:
    """How logits come about."""
    add = parser.add_argument
    strict = "strict: the same bits in any company (default: fast)"
    add("--numerics", metavar="|".join(NUMERICS), help=strict)
    checked = "compute some rounds once more; stop: end at the first fault (default: count)"
    add("--self-check", metavar="|".join(SELF_CHECKS), help=checked)
    add("--dtype", metavar="|".join(DTYPES), help="of weights and K/V (default: auto)")


def _add_told(parser: Parser) -> None:
    """How the daemon is watched."""
    add = parser.add_argument
    add("--metrics", metavar="HOST:PORT", help=f"default {DEFAULT_METRICS}")
    add(
        "--page",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show what the daemon does, live, at /page of --metrics (default: no)",
    )
    add("--log-level", metavar="|".join(LEVELS), help="of the log on stderr (default: info)")
    add("--log-format", metavar="|".join(FORMATS), help="one JSON object a line, or for people")
    add("--ready-file", metavar="PATH", help="JSON with the addresses, written when serving")


def _add_convert(parser: Parser) -> None:
    parser.set_defaults(run=late.convert_late)
    add = parser.add_argument
    add("source", metavar="SRC", help="the target: a directory, a bundle or a cached hub id")
    add("destination", metavar="DST", help="the bundle's directory, which must not exist")
    add("--draft", metavar="SRC2|none", help="the drafter (default: SRC's own, if it is a bundle)")
    packings = "2bit, 3bit, 4bit, 5bit, 6bit, 8bit, mxfp4, mxfp8 or nvfp4 (default: as it is)"
    add("--quantize", metavar="HOW", help=f"the target: {packings}")
    add("--quantize-draft", metavar="HOW", help="the drafter, in the same words")
    add(
        "--group-size",
        type=unsigned(32),
        metavar="N",
        help="weights that share a scale: 32, 64 or 128, of the Nbit kinds (default: 64)",
    )
    add("--dtype", metavar="|".join(DTYPES), help="of what stays plain (default: its own)")
    add("--shard-size", metavar="SIZE", help="of a weight file at most (default: 4GiB)")


def _add_token(parser: Parser) -> None:
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = kinds.add_parser("new", help="print a new token, once")
    new.set_defaults(run=tokens.new)
    add = new.add_argument
    add("name", metavar="NAME", help="of the principal; it may have several tokens")
    add("--tokens", metavar="FILE", required=True, help="made where it is missing; a line is added")
    add("--role", metavar="user|operator", default="user", help="default: user")
    add("--weight", type=unsigned(16), metavar="N", help="of its share beside others (default: 1)")


def _add_check(parser: Parser) -> None:
    parser.set_defaults(run=late.check_late)
    add = parser.add_argument
    add(
        "bundle",
        nargs="?",
        metavar="BUNDLE",
        help="a bundle, a directory or a cached hub id (default: the bundled demo pair)",
    )
    add("--draft", metavar="DIR|ID|none", help="the drafter (default: the bundle's own)")
    add("--dtype", metavar="|".join(DTYPES), help="to compute in (default: auto)")
    add("--numerics", metavar="|".join(NUMERICS), help="strict: prove its promise (default: fast)")
    add("--json", action="store_true", help="print one JSON object")


def _add_config(parser: Parser) -> None:
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = kinds.add_parser("show", help="print it as TOML, with the same flags as serve")
    _add_serve(show)
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.set_defaults(run=config_commands.run_config_show)
    check = kinds.add_parser("check", help="read a file, and say whether it can be served by")
    check.add_argument("file", metavar="FILE", help="TOML, as --config takes it")
    check.set_defaults(run=config_commands.run_config_check)


def _add_service(parser: Parser) -> None:
    _add_serve(parser)
    parser.add_argument("--print", action="store_true", help="print it, and write nothing")
    help = "overwrite what this command has not written, or somebody changed"
    parser.add_argument("--force", action="store_true", help=help)
    parser.set_defaults(run=late.install_service_late)


def _add_models(add: Callable[[str, str], Parser]) -> None:
    """Commands about models on this machine and on the hub."""
    pull = add("pull", "fetch a model from the hub, and the drafter that goes with it")
    pull.set_defaults(run=late.pull_late)
    pull.add_argument("model", metavar="ID", help="org/name or org/name@revision")
    help = "the drafter (default: the one that is found for it)"
    pull.add_argument("--draft", metavar="ID|none", help=help)
    listed = add("list", "the models in the hub's local cache")
    listed.set_defaults(run=late.list_late)
    listed.add_argument("--json", action="store_true", help="print it as JSON")
    show = add("show", "what a model is, and what memory it takes, nothing loaded")
    show.set_defaults(run=late.show_late)
    help = "a directory, a bundle or a cached hub id (default: the bundled demo pair)"
    show.add_argument("model", nargs="?", metavar="BUNDLE", help=help)
    show.add_argument("--draft", metavar="DIR|ID|none", help="the drafter (default: its own)")
    show.add_argument("--json", action="store_true", help="print it as JSON")


def _add_daemon(add: Callable[[str, str], Parser]) -> None:
    """Commands about a daemon's process, and about this command itself."""
    from sapwood.daemon.cli import daemon_commands as daemons
    from sapwood.daemon.cli.client_flags import add_client

    stop = add_client(add("stop", "end the daemon on this machine, once it drained"), daemons.stop)
    help = "what the daemon was given (default: beside the default socket)"
    stop.add_argument("--ready-file", metavar="PATH", help=help)
    help = "to wait for its end (default: 60)"
    stop.add_argument("--timeout", type=timeout_s, default=60.0, metavar="SECONDS", help=help)
    top = add("top", "what the daemon is doing, again and again")
    top.set_defaults(run=late.top_late)
    help = "of the daemon (default: the one on this machine)"
    top.add_argument("--metrics", metavar="HOST:PORT", help=help)
    help = "between two looks (default: 1)"
    top.add_argument("--interval", type=interval, default=1.0, metavar="SECONDS", help=help)
    top.add_argument("--once", action="store_true", help="one look, as a line")
    top.add_argument("--json", action="store_true", help="a line of JSON for each look")
    completion = add("completion", "print what makes a shell complete this command")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="bash|zsh|fish")
    completion.set_defaults(run=_completion)
