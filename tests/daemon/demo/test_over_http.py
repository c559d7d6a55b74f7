"""The demo's HTTP client against a server that says what the test wants."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sapwood import Delta, Event, Finish, FinishReason, Message, Prefill
from sapwood.daemon.demo.command import LIMIT_S
from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.over_http import HttpChat
from tests.system.test_http import pytestmark as needs_smg

pytestmark = pytest.mark.anyio

ASKED = [Message("user", "What is bread?")]


def chunk(text: str, tokens: int, **choice: Any) -> dict[str, Any]:
    told = {"content": [{"token": "x", "bytes": [120], "logprob": 0.0}] * tokens}
    return {"choices": [{"delta": {"content": text}, "logprobs": told, **choice}]}


def usage(completion: int) -> dict[str, Any]:
    details = {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 1}
    counts = {"prompt_tokens": 9, "completion_tokens": completion}
    cached = {"cached_tokens": 5}
    return {
        "choices": [],
        "usage": {
            **counts,
            "prompt_tokens_details": cached,
            "completion_tokens_details": details,
        },
    }


@contextmanager
def server(
    said: list[Any], status: int = 200, more: bool = False
) -> Iterator[tuple[str, list[Any]]]:
    """Its address, and what it was asked. more: the stream does not end."""
    asked: list[Any] = []
    over = threading.Event()

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            for one in said:
                self.wfile.write(f"data: {json.dumps(one)}\n\n".encode())
            if more:
                over.wait(20)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"127.0.0.1:{serving.server_port}", asked
        finally:
            over.set()
            serving.shutdown()


async def events(address: str) -> list[Event]:
    chat = HttpChat(address, "m")
    async with chat.generate(ASKED, max_tokens=7, seed=3, draft_tokens=8) as stream:
        return [event async for event in stream]


async def test_a_reply_comes_as_our_own_clients_events() -> None:
    said = [chunk("Bread", 1), chunk(" is", 2), chunk("", 0, finish_reason="stop"), usage(4)]
    with server(said) as (address, asked):
        found = await events(address)
    (body,) = asked
    assert body["messages"] == [{"role": "user", "content": "What is bread?"}]
    assert (body["model"], body["max_tokens"], body["seed"]) == ("m", 7, 3)
    assert "draft_tokens" not in body
    texts = [event.text for event in found if isinstance(event, Delta)]
    assert texts == ["Bread", " is", ""], "the last one is the token that ended it"
    assert sum(len(event.token_ids) for event in found if isinstance(event, Delta)) == 4
    assert Prefill(5, 9, 9) in found
    end = found[-1]
    assert isinstance(end, Finish)
    assert (end.reason, end.usage.draft_tokens, end.usage.accepted_tokens) == (
        *(FinishReason.STOP, 3, 2),
    )


async def test_a_last_token_that_was_told_is_not_counted_twice() -> None:
    with server([chunk("Bread", 3, finish_reason="length"), usage(3)]) as (address, _):
        found = await events(address)
    assert sum(len(event.token_ids) for event in found if isinstance(event, Delta)) == 3
    assert isinstance(found[-1], Finish) and found[-1].reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        ([{"error": {"message": "no such model"}}], 200, "HTTP: no such model"),
        ([{"message": "not now"}], 503, "HTTP 503"),
    ],
)
async def test_what_goes_wrong_is_told(said: list[Any], status: int, error: str) -> None:
    with server(said, status) as (address, _), pytest.raises(ExceptionGroup) as caught:
        await events(address)
    (leaf,) = caught.value.exceptions
    assert isinstance(leaf, DemoError)
    assert str(leaf).startswith(error)


async def test_leaving_hangs_up_at_once_and_is_no_error() -> None:
    with server([chunk("Once", 1)], more=True) as (address, _):
        async with HttpChat(address, "m").generate(ASKED) as stream:
            assert isinstance(await anext(aiter(stream)), Delta)


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S + 20)
@needs_smg
def test_the_demo_plays_over_http(tmp_path: Path) -> None:
    figures = tmp_path / "demo.json"
    command = [sys.executable, "-m", "sapwood", "demo", "--http", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(figures.read_text())["metrics_agree"] is True
    assert "None" not in done.stdout
    assert "8 of 8 replies letter for letter the same" in " ".join(done.stdout.split())
