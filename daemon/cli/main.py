"""The command line: flags to one command, errors to one exit code.

- 0 done, 1 failed, 2 bad usage, 130 Ctrl-C. A message is one line on stderr, without a traceback.
- What serves and what loads a model is imported by the commands that need it: clients start fast,
  and run where only they are installed.
- A command that does not exist yet is not listed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sapwood import SapwoodError, __version__
from sapwood.daemon import entry
from sapwood.daemon.advice import advised
from sapwood.daemon.cli import client_commands as commands
from sapwood.daemon.cli import operator_commands as operators
from sapwood.daemon.cli import tokens
from sapwood.daemon.cli.flag_values import interval, timeout_s
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.extras import require_gateway, require_serve
from sapwood.daemon.log import log_to_stderr
from sapwood.daemon.settings.config import DEFAULT_METRICS, DTYPES, load_config
from sapwood.daemon.sizes import parse_time, unsigned

if TYPE_CHECKING:
    from sapwood.daemon.engine.loaded import Loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2)."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if given[:1] == ["demo"]:
            return _demo(given[1:])
        arguments = _parser().parse_args(given)
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
    log_to_stderr()
    flags = vars(arguments)
    flags.pop("run")
    config = load_config(flags)
    if config.gateway is not None or config.http is not None:
        require_gateway(http=config.http is not None)
    import anyio

    from sapwood.daemon.process.run import serve

    def load() -> Loaded:
        from sapwood.daemon.process import assemble

        return assemble.load(config)

    return anyio.run(serve, config, load)


def _convert(arguments: argparse.Namespace) -> int:
    require_serve("convert")
    from sapwood.daemon.cli import convert

    entry.imported()
    return convert.run_convert(arguments)


def _check(arguments: argparse.Namespace) -> int:
    require_serve("check")
    from sapwood.daemon.cli import check

    entry.imported()
    return check.run_check(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sapwood",
        description="Serves Gemma 4 with speculative decoding to many clients on one device.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sapwood {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return subparsers.add_parser(name, help=help, allow_abbrev=False)

    _add_serve(add("serve", "run the daemon"))
    add("demo", "watch eight clients share one daemon")  # main() hands its flags over unread
    _add_chat(_add_client(add("chat", "talk to the model"), commands.chat))
    _add_generate(_add_client(add("generate", "continue one prompt"), commands.generate))
    _add_client(add("status", "what is loaded, and how full memory is"), commands.status)
    _add_tree(_add_client(add("tree", "draw the prefix tree"), operators.tree))
    _add_pin(_add_client(add("pin", "compute a prefix and keep it"), operators.pin))
    _add_json(_add_client(add("pins", "list what is pinned"), operators.pins))
    _add_unpin(_add_client(add("unpin", "let a pinned prefix go"), operators.unpin))
    _add_prefix(_add_client(add("evict", "take out what begins with a prefix"), operators.evict))
    _add_client(add("clear", "take everything out of the prefix tree"), operators.clear)
    _add_convert(add("convert", "make one bundle of a model and its drafter, quantised or not"))
    _add_token(add("token", "make a token for a client of the daemon"))
    _add_check(add("check", "verify a bundle: digests, shapes, drafter, a self-check round"))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
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
    add("--metrics", metavar="HOST:PORT", help=f"default {DEFAULT_METRICS}")
    add(
        "--memory",
        metavar="SIZE",
        help="budget such as 8G, 8GiB or 500MB (default: from the device)",
    )
    add(
        "--wire-memory",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the budget resident on Metal; docs/memory.md says what it risks (default: no)",
    )
    add("--numerics", metavar="fast", help="only fast is built")
    add("--dtype", metavar="|".join(DTYPES), help="of weights and K/V (default: auto)")
    add("--ready-file", metavar="PATH", help="JSON with the addresses, written when serving")
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


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_convert)
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


def _add_token(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = kinds.add_parser("new", help="print a new token, once", allow_abbrev=False)
    new.set_defaults(run=tokens.new)
    add = new.add_argument
    add("name", metavar="NAME", help="of the principal; it may have several tokens")
    add("--tokens", metavar="FILE", required=True, help="made where it is missing; a line is added")
    add("--role", metavar="user|operator", default="user", help="default: user")
    add("--weight", type=unsigned(16), metavar="N", help="of its share beside others (default: 1)")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_check)
    add = parser.add_argument
    add(
        "bundle",
        nargs="?",
        metavar="BUNDLE",
        help="a bundle, a directory or a cached hub id (default: the bundled demo pair)",
    )
    add("--draft", metavar="DIR|ID|none", help="the drafter (default: the bundle's own)")
    add("--dtype", metavar="|".join(DTYPES), help="to compute in (default: auto)")
    add("--json", action="store_true", help="print one JSON object")


def _add_client(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    def interruptible(arguments: argparse.Namespace) -> int:
        entry.imported()
        try:
            return run(arguments)
        except SapwoodError as error:
            return _fail(advised(error, commands.address_of(arguments)), 1)

    parser.set_defaults(run=interruptible)
    parser.add_argument(
        "--connect",
        metavar="ADDR",
        help="unix:PATH or HOST:PORT (default: $SAPWOOD_ADDRESS, the socket, 127.0.0.1:50551)",
    )
    add = parser.add_argument
    add("--token-file", metavar="FILE", help="with the token (default: $SAPWOOD_TOKEN, the token)")
    add("--tls-ca", metavar="FILE", help="whose certificate the daemon has: TLS, and no other way")
    add("--tls-client-cert", metavar="FILE", help="who we are, where the daemon asks for it")
    add("--tls-client-key", metavar="FILE", help="the key of --tls-client-cert")
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-tokens", type=unsigned(32), metavar="N")
    add("--temperature", type=float, metavar="T", help="0 is greedy")
    add("--top-k", type=unsigned(32), metavar="K")
    add("--top-p", type=float, metavar="P")
    add("--min-p", type=float, metavar="P")
    add("--repetition-penalty", type=float, metavar="R", help="1 is off")
    add("--presence-penalty", type=float, metavar="P", help="0 is off")
    add("--frequency-penalty", type=float, metavar="P", help="0 is off")
    add("--seed", type=unsigned(64), metavar="N", help="the same seed gives the same reply")
    add("--draft-tokens", type=unsigned(32), metavar="N", help="pin the draft depth, 0 for none")
    add("--stop", action="append", metavar="TEXT", help="end the reply here, repeatable")


def _add_turns(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--system", metavar="TEXT", help="a system message to begin with")
    add(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let the model think before it answers (default: the model's)",
    )


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_sampling(parser)
    _add_turns(parser)
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="text (default: standard input)")
    add("--raw", action="store_true", help="continue the text as it is, not as a user's turn")
    add("--json", action="store_true", help="print one JSON object with text, ids and usage")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--schema", metavar="FILE", help="a JSON schema that the reply follows")
    held.add_argument("--regex", metavar="REGEX", help="an expression that the reply matches")
    help = "with --json: each token's log probability and N alternatives"
    add("--top-logprobs", type=unsigned(32), metavar="N", help=help)
    add("--timeout", type=timeout_s, metavar="SECONDS")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    _add_sampling(parser)
    _add_turns(parser)


def _add_tree(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--watch",
        type=interval,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="again and again, every 2 seconds unless you say",
    )


def _add_pin(parser: argparse.ArgumentParser) -> None:
    _add_prefix(parser)
    _add_json(parser)
    help = "how long to keep it, such as 90, 30m, 12h or 7d (default: until it is unpinned)"
    parser.add_argument("--ttl", type=parse_time, metavar="TIME", help=help)
    parser.add_argument("--timeout", type=timeout_s, metavar="SECONDS")


def _add_unpin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pins", nargs="+", metavar="PIN", help="its id, as `pins` lists it")


def _add_prefix(parser: argparse.ArgumentParser) -> None:
    _add_turns(parser)
    add = parser.add_argument
    help = "text (default: standard input, or with --system nothing more)"
    add("prompt", nargs="?", metavar="PROMPT", help=help)
    add("--raw", action="store_true", help="the text as it is, not as a user's turn")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
