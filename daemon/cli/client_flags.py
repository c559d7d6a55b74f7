"""The flags of the commands that talk to a daemon, each over sapwood.Client."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from sapwood import SapwoodError
from sapwood.daemon import entry
from sapwood.daemon.advice import advised
from sapwood.daemon.cli import client_commands as commands
from sapwood.daemon.cli import operator_commands as operators
from sapwood.daemon.cli import session_commands
from sapwood.daemon.cli.flag_values import interval, timeout_s
from sapwood.daemon.cli.parser import Parser
from sapwood.daemon.sizes import parse_time, unsigned


def add_client_commands(add: Callable[[str, str], Parser]) -> None:
    """add: makes the parser of a command by its name and what it does."""
    _add_chat(add_client(add("chat", "talk to the model"), commands.chat))
    _add_generate(add_client(add("generate", "continue one prompt"), commands.generate))
    _add_sessions(
        add_client(add("sessions", "list sessions, or see to one"), session_commands.sessions)
    )
    _add_json(add_client(add("status", "what is loaded, and how full memory is"), commands.status))
    _add_tree(add_client(add("tree", "draw the prefix tree"), operators.tree))
    _add_pin(add_client(add("pin", "compute a prefix and keep it"), operators.pin))
    _add_json(add_client(add("pins", "list what is pinned"), operators.pins))
    _add_unpin(add_client(add("unpin", "let a pinned prefix go"), operators.unpin))
    _add_prefix(add_client(add("evict", "take out what begins with a prefix"), operators.evict))
    add_client(add("clear", "take everything out of the prefix tree"), operators.clear)


def add_client(parser: Parser, run: Callable[[argparse.Namespace], int]) -> Parser:
    """The flags of every client; `run` can be interrupted, and its errors get advice."""

    def interruptible(arguments: argparse.Namespace) -> int:
        entry.imported()
        try:
            return run(arguments)
        except SapwoodError as error:
            entry.complain(advised(error, commands.address_of(arguments)))
            return 1

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


def _add_sampling(parser: Parser) -> None:
    add = parser.add_argument
    add("--max-tokens", type=unsigned(32), metavar="N")
    add("--min-tokens", type=unsigned(32), metavar="N", help="go on for at least so many")
    help = "of all that the model thinks, before it has to answer"
    add("--thinking-tokens-max", type=unsigned(32), metavar="N", help=help)
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


def _add_turns(parser: Parser) -> None:
    add = parser.add_argument
    add("--system", metavar="TEXT", help="a system message to begin with")
    add(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let the model think before it answers (default: the model's)",
    )


def _add_generate(parser: Parser) -> None:
    _add_sampling(parser)
    _add_turns(parser)
    add = parser.add_argument
    add("prompt", nargs="*", metavar="WORD", help="the prompt (default: standard input, as is -)")
    help = "text that goes before the words, repeatable; - is standard input"
    add("--file", action="append", default=[], metavar="FILE", help=help)
    add("--raw", action="store_true", help="continue the text as it is, not as a user's turn")
    add("--json", action="store_true", help="a line of JSON for each event, with ids and usage")
    add("--tools", metavar="FILE", help="JSON of the tools that the model may call")
    help = "go on a session of the daemon, which is made where there is none"
    add("--session", metavar="NAME", help=help)
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--schema", metavar="FILE", help="a JSON schema that the reply follows")
    held.add_argument("--regex", metavar="REGEX", help="an expression that the reply matches")
    help = "with --json: so many replies to the one prompt"
    add("--candidates", type=unsigned(32), metavar="N", help=help)
    help = "with --json: each token's log probability and N alternatives"
    add("--top-logprobs", type=unsigned(32), metavar="N", help=help)
    help = "with --json: the same for each token of the prompt"
    add("--prompt-logprobs", type=unsigned(32), metavar="N", help=help)
    add("--timeout", type=timeout_s, metavar="SECONDS")


def _add_sessions(parser: Parser) -> None:
    _add_json(parser)
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of them (default: all)")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--fork", metavar="NEW", help="make another one of it")
    one.add_argument("--rollback", type=unsigned(32), metavar="N", help="keep its first N tokens")
    one.add_argument("--delete", action="store_true", help="forget it, and end its request")


def _add_chat(parser: Parser) -> None:
    _add_sampling(parser)
    _add_turns(parser)


def _add_tree(parser: Parser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--watch",
        type=interval,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="again and again, every 2 seconds unless you say",
    )


def _add_pin(parser: Parser) -> None:
    _add_prefix(parser)
    _add_json(parser)
    help = "how long to keep it, such as 90, 30m, 12h or 7d (default: until it is unpinned)"
    parser.add_argument("--ttl", type=parse_time, metavar="TIME", help=help)
    parser.add_argument("--timeout", type=timeout_s, metavar="SECONDS")


def _add_unpin(parser: Parser) -> None:
    parser.add_argument("pins", nargs="+", metavar="PIN", help="its id, as `pins` lists it")


def _add_prefix(parser: Parser) -> None:
    _add_turns(parser)
    add = parser.add_argument
    help = "text (default: standard input, or with --system nothing more)"
    add("prompt", nargs="?", metavar="PROMPT", help=help)
    add("--raw", action="store_true", help="the text as it is, not as a user's turn")


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
