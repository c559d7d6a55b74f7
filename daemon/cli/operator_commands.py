"""The commands that look into the prefix tree and steer it, each over sapwood.Client.

- A line for each node and each pin; where no terminal is looked at, nothing of a line and no node
  is left out. What is printed as JSON has the names of the wire contract.
- A prefix is written as `generate` takes a prompt: a user's turn, a system message before it or
  alone, or with --raw text as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from sapwood import Freed, Message, Pin, Prompt, TreeNode
from sapwood.daemon.cli.client_commands import connect, conversation, stored_json
from sapwood.daemon.errors import UsageError
from sapwood.daemon.input_files import TEXT_CHARS_MAX
from sapwood.daemon.render import ROWS_MAX, draw_tree
from sapwood.daemon.sizes import format_bytes

PIPE_COLUMNS = 1_000_000  # more than any line has


def tree(arguments: argparse.Namespace) -> int:
    """Draw the prefix tree, once or again and again."""
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    with connect(arguments) as client:
        while True:
            nodes = list(client.describe_tree())
            if arguments.json:
                print(json.dumps({"nodes": [_node(node) for node in nodes]}), flush=True)
            else:
                _draw(console, nodes, clear=arguments.watch is not None)
            if arguments.watch is None:
                return 0
            time.sleep(arguments.watch)


def _draw(console: Console, nodes: Sequence[TreeNode], clear: bool) -> None:
    if clear and console.is_terminal:
        console.clear()
    console.print(draw_tree(nodes, ROWS_MAX if console.is_terminal else len(nodes)))


def _node(node: TreeNode) -> dict[str, Any]:
    """Without token ids and text, which were not asked for."""
    told = {name: value for name, value in asdict(node).items() if name not in _UNASKED}
    return told | {"stored": stored_json(node.stored)}


_UNASKED = {"stored", "token_ids", "text"}


def pin(arguments: argparse.Namespace) -> int:
    """Keep a prefix, and print its pin."""
    prefix = _prefix(arguments)
    with connect(arguments) as client:
        made = client.pin_prefix(prefix, ttl=arguments.ttl, timeout=arguments.timeout)
    print(json.dumps(_told(made)) if arguments.json else _line(made))
    return 0


def pins(arguments: argparse.Namespace) -> int:
    """Print what is pinned, oldest first."""
    with connect(arguments) as client:
        found = client.list_pins()
    if arguments.json:
        print(json.dumps([_told(each) for each in found]))
    else:
        print("\n".join(map(_line, found)) or "nothing is pinned")
    return 0


def unpin(arguments: argparse.Namespace) -> int:
    """Give pins back to ordinary eviction, one after another."""
    with connect(arguments) as client:
        for id in arguments.pins:
            client.unpin_prefix(id)
            print(f"{id}  unpinned")
    return 0


def evict(arguments: argparse.Namespace) -> int:
    """Take out of the tree what begins with a prefix."""
    prefix = _prefix(arguments)
    with connect(arguments) as client:
        return _say(client.evict_prefix(prefix))


def clear(arguments: argparse.Namespace) -> int:
    """Take everything out of the tree."""
    with connect(arguments) as client:
        return _say(client.clear_cache())


def _say(freed: Freed) -> int:
    print(f"{freed.nodes} nodes, {format_bytes(freed.freed_bytes)} freed")
    if freed.held_bytes:
        print(f"{format_bytes(freed.held_bytes)} more when running requests end")
    return 0


def _prefix(arguments: argparse.Namespace) -> Prompt:
    if arguments.raw and (arguments.system or arguments.thinking is not None):
        raise UsageError("--system and --thinking are for a conversation, --raw is none")
    text = arguments.prompt
    if text == "-" or (text is None and not arguments.system):
        text = sys.stdin.read(TEXT_CHARS_MAX + 1)
    if arguments.raw:
        return str(text)
    return conversation(arguments, [] if text is None else [Message("user", text)])


def _line(pin: Pin) -> str:
    ends = "" if pin.expire_time is None else f"  until {_time(pin)}"
    whose = "  for every tenant" if pin.public else ""
    return f"{pin.id}  {pin.tokens} tokens  {format_bytes(pin.bytes)}{ends}{whose}"


def _told(pin: Pin) -> dict[str, Any]:
    return asdict(pin) | {"expire_time": None if pin.expire_time is None else _time(pin)}


def _time(pin: Pin) -> str:
    """In the reader's own time."""
    assert pin.expire_time is not None, f"pin {pin.id} does not end"
    return pin.expire_time.astimezone().isoformat(timespec="seconds")
