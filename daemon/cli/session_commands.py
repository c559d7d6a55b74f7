"""The command for sessions: what there is, and what becomes of it, over sapwood.Client."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from sapwood import Client, Session
from sapwood.daemon.cli.client_commands import connect
from sapwood.daemon.errors import UsageError


def sessions(arguments: argparse.Namespace) -> int:
    """List sessions, or show, fork, cut and delete one of a name. Raises UsageError."""
    if arguments.name is None and (
        arguments.fork or arguments.delete or arguments.rollback is not None
    ):
        raise UsageError("--fork, --rollback and --delete need the name of a session")
    with connect(arguments) as client:
        found = _asked(client, arguments)
    if arguments.json:
        print(json.dumps([_told(each) for each in found]))
    elif found:
        print("\n".join(map(_line, found)))
    elif not arguments.delete:
        print("there are no sessions")
    return 0


def _asked(client: Client, arguments: argparse.Namespace) -> list[Session]:
    name = arguments.name
    if name is None:
        return client.list_sessions()
    if arguments.delete:
        client.delete_session(name)
        return []
    if arguments.fork is not None:
        return [client.fork_session(name, arguments.fork)]
    if arguments.rollback is not None:
        return [client.rollback_session(name, arguments.rollback)]
    return [client.get_session(name, include_tokens=arguments.json)]


def _told(session: Session) -> dict[str, object]:
    return {
        name: it.isoformat() if hasattr(it, "isoformat") else it
        for name, it in asdict(session).items()
    }


def _line(session: Session) -> str:
    said = [session.name, f"{session.tokens} tokens"]
    said += ["busy"] * session.busy + ["parked"] * session.parked
    if session.expire_time is not None:
        said.append(f"until {session.expire_time.astimezone():%Y-%m-%d %H:%M:%S}")
    return ", ".join(said)
