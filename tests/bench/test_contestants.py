"""Who takes part and what is asked: command lines, environments, readiness, prompts, counting."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from bench.measure import BenchError
from bench.peers.contestants import ALL_COUNTS, Contestant, Running, contestants, started
from bench.peers.environments import ENVIRONMENTS, Environment
from bench.peers.heard import ChatClient, Heard, PeerChat
from bench.peers.http_client import http_clients
from bench.peers.load import SameText, load_measures
from bench.peers.pairs import PairPlan, WrittenPair
from bench.peers.prompts import (
    PROMPT_TOKENIZER,
    SYSTEM_TOKENS,
    as_dicts,
    chat_tokens,
    chats,
    fresh_questions,
    long_chat,
    sharing_chats,
    system_message,
    text_tokens,
)
from bench.peers.throughput import Burst
from sapwood import Message

QUESTION = [Message("user", "What is a river?")]
REPLY = (
    'data: {"choices": [{"delta": {"content": "A river flows."}}]}\n\n'
    'data: {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 3}}\n\n'
)


def test_load_is_counted_by_one_tokenizer_over_the_span_of_all() -> None:
    early = Heard(10.0, (11.0,), 14.0, "A river flows.", 30, 20, resets=1)
    late = Heard(12.0, (12.5,), 20.0, "A river flows.", 30, None)
    found = load_measures([early, late])
    assert found["tokens"] == 2 * text_tokens("A river flows.")
    assert found["tokens_per_s"] == found["tokens"] / 10.0
    assert (found["first_text_s"], found["resets"], found["replies"]) == (0.75, 1.0, 2.0)
    assert "cached_tokens" not in found  # one did not tell
    assert load_measures([early])["cached_tokens"] == 20.0


def test_text_is_compared_within_one_turn() -> None:
    same = SameText()
    assert same.equal((4, 0), ["a", "b"]) == 2.0
    assert same.equal((4, 0), ["a", "x"]) == 1.0
    assert same.equal((4, 1), ["c", "d"]) == 2.0


def test_prompts_are_as_long_as_they_say() -> None:
    assert SYSTEM_TOKENS - 6 <= text_tokens(system_message().content) <= SYSTEM_TOKENS
    for tokens in (100, 2000, 8000):
        assert tokens - 6 <= chat_tokens(long_chat(tokens, 1)) <= tokens
    assert long_chat(100, 1)[0].content[:4] != long_chat(100, 2)[0].content[:4]


def test_two_prompts_share_their_system_prompt_and_no_more() -> None:
    cold, hit = sharing_chats(400, 7)
    assert cold[0] == hit[0] and 394 <= text_tokens(cold[0].content) <= 400
    ids = [PROMPT_TOKENIZER.encode_messages(as_dicts(chat)) for chat in (cold, hit)]
    shared = next(at for at, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    assert 394 <= shared <= 415
    assert sharing_chats(400, 8)[0][0].content[:4] != cold[0].content[:4]


def test_no_two_turns_ask_the_same() -> None:
    """Five alternations, each measured thrice, and the warming one: at most 16 turns of 80."""
    assert len(set(fresh_questions(16 * 80))) == 16 * 80
    assert fresh_questions(3, 1) == fresh_questions(4)[1:]
    assert {chat[0].content for chat in chats(4)} == {system_message().content}
    assert [chat[1].content for chat in chats(2, 5)] == fresh_questions(7)[5:]


def test_every_contestant_computes_with_one_blas_and_asks_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    pair = PairPlan("p", "P").write(tmp_path)
    made = contestants()
    assert list(made) == ["ours", "depth 0", "mlx_lm", "mlx_vlm", "smg"]
    environs = [c.process_environ() for c in made.values()]
    assert {e.get("LD_PRELOAD") for e in environs} == {environs[0].get("LD_PRELOAD")}
    assert {e["HF_HUB_OFFLINE"] for e in environs} == {"1"}
    assert not any("PYTHONDONTWRITEBYTECODE" in e for e in environs), "who started anew compiles"
    for contestant in made.values():
        command = contestant.command(pair, 7777)
        assert str(pair.target) in command and any("7777" in word for word in command)
        assert (str(pair.drafter) in command) == (contestant.name in ("ours", "depth 0", "mlx_vlm"))
        peer = contestant.environment
        assert command[0] == (sys.executable if peer is None else str(peer.python))


def test_peers_run_as_their_documentation_offers(tmp_path: Path) -> None:
    pair = PairPlan("p", "P").write(tmp_path)
    made = contestants()

    def flags(name: str) -> str:
        return " ".join(made[name].command(pair, 1))

    assert "--decode-concurrency 32 " in flags("mlx_lm")
    assert "--prompt-concurrency 32 " in flags("mlx_lm")
    assert "--draft-kind mtp" in flags("mlx_vlm") and made["mlx_vlm"].environ["APC_ENABLED"] == "1"
    heavy, bundled = PairPlan("h", "H", widening=2), PairPlan("b", "B")
    assert made["mlx_vlm"].counts_on(heavy) == made["mlx_vlm"].counts_on(bundled) == (1, 8, 16)
    assert made["smg"].counts_on(bundled) == made["ours"].counts_on(heavy) == ALL_COUNTS
    assert made["smg"].counts_on(heavy) == (1, 8)
    assert "--completion-batch-size 32" in flags("smg")
    assert "--draft-depth 0" in flags("depth 0") and "--draft-depth" not in flags("ours")


FAKE = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())
    def log_message(self, *_):
        pass
if sys.argv[2] == "fail":
    sys.exit("no such model")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def fake(says: str) -> Contestant:
    return Contestant(
        "fake",
        "Fake",
        lambda _, port: [sys.executable, "-c", FAKE, str(port), says],
        lambda _: partial(http_clients, model="m"),
    )


def test_ready_is_who_has_answered(tmp_path: Path) -> None:
    pair = WrittenPair(PairPlan("p", "P"), tmp_path, tmp_path)

    async def run() -> tuple[float, int]:
        async with started(fake(REPLY), pair) as found:
            async with found.clients(found.address, 1) as (client,):
                heard = await client.ask(QUESTION, 8)
            assert heard.text == "A river flows." and heard.cached_tokens is None
            return found.ready_s, found.pid

    ready_s, pid = anyio.run(run)
    assert ready_s > 0.05
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_who_ends_before_serving_is_named_with_its_last_words(tmp_path: Path) -> None:
    pair = WrittenPair(PairPlan("p", "P"), tmp_path, tmp_path)

    async def run() -> None:
        async with started(fake("fail"), pair):
            raise AssertionError

    with pytest.raises(BenchError, match=r"(?s)fake: ended with exit code 1.*no such model"):
        anyio.run(run)


def test_requirements_are_pinned_to_the_hash_and_a_change_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for environment in ENVIRONMENTS.values():
        lines = environment.requirements.read_text().splitlines()
        pinned = [line for line in lines if line and line[0] not in " #"]
        assert pinned and all("==" in line for line in pinned)
        assert sum("--hash=sha256:" in line for line in lines) >= len(pinned)
    monkeypatch.setattr("bench.peers.environments.BUILD", tmp_path)
    monkeypatch.setattr("bench.peers.environments.REQUIREMENTS", tmp_path)
    peer = Environment("peer", ())
    (tmp_path / "peer.txt").write_text("a==1")
    (tmp_path / "peer").mkdir()
    assert not peer.made
    (tmp_path / "peer/.made-from-requirements").write_text("a==1")
    assert peer.made
    (tmp_path / "peer.txt").write_text("a==2")
    assert not peer.made


class EchoClient:
    """Answers with the question."""

    async def ask(self, chat: PeerChat, tokens_max: int) -> Heard:
        return Heard(0.0, (1.0,), 2.0, chat[-1].content, 10)


@asynccontextmanager
async def echo_clients(address: str, count: int) -> AsyncIterator[list[ChatClient]]:
    yield [EchoClient() for _ in range(count)]


class Recording(SameText):
    """Keeps what each turn heard."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, ...]] = []

    def equal(self, turn: tuple[int, ...], texts: Sequence[str]) -> float:
        self.heard.append(tuple(texts))
        return super().equal(turn, texts)


def test_all_sides_of_a_turn_are_asked_the_same_and_no_two_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recording = Recording()
    monkeypatch.setattr("bench.peers.throughput.SameText", lambda: recording)
    echo = Running(contestants()["ours"], "", 0, echo_clients, 0.0, "")
    burst = Burst({"a": echo, "b": echo}, 8, 2)

    async def run() -> None:
        for count, number in ((1, -1), (1, 0), (2, -1), (2, 0)):
            for side in "ab":
                measures = await burst.take(count, side, number)
                assert measures["equal_replies"] == measures["replies"] == 2.0

    anyio.run(run)
    a, b = recording.heard[::2], recording.heard[1::2]
    assert a == b and len({text for turn in a for text in turn}) == 8
