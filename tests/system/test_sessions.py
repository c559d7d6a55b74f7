"""Sessions over the wire, with the bundled pair: what they say is what the whole path would say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sapwood import CacheOptions, Client, Message
from sapwood.daemon.demo.process import DaemonProcess, running, serve_command

START_S_MAX = 90.0
OPTIONS: dict[str, Any] = {"temperature": 0.0, "timeout": 120}


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    command = serve_command("--dtype", "float32")
    with running(command, os.environ, time.monotonic() + START_S_MAX) as process:
        yield process


def test_n2_turns_a_fork_and_a_rollback_say_what_the_whole_path_says(
    daemon: DaemonProcess,
) -> None:
    """Greedy, against the session's own ids sent anew past the cache; nothing is read twice."""
    with Client(daemon.address) as client:
        session = client.create_session("talk")
        held = 0
        for text in ("What is a river?", "Is it long?", "Name one."):
            turn = [Message("user", text)]
            reply = client.generate(turn, session=session, max_tokens=24, **OPTIONS).collect()
            usage = reply.finish.usage
            assert usage.cached_tokens >= held - 1, "all but its last token is there"
            ids = client.get_session(session, include_tokens=True).token_ids
            _check_alike(client, ids, usage.prompt_tokens)
            held = len(ids)
        fork = client.fork_session(session, "other", at_token=held - 9)
        client.rollback_session(session, held - 20)
        for name in (fork, session):
            more = client.generate("\nAnd", session=name, max_tokens=16, **OPTIONS).collect()
            ids = client.get_session(name, include_tokens=True).token_ids
            _check_alike(client, ids, more.finish.usage.prompt_tokens)


def _check_alike(client: Client, ids: tuple[int, ...], prompt_tokens: int) -> None:
    alone = client.generate(
        ids[:prompt_tokens],
        max_tokens=len(ids) - prompt_tokens,
        cache=CacheOptions(bypass=True),
        **OPTIONS,
    ).collect()
    assert alone.token_ids == ids[prompt_tokens:]
