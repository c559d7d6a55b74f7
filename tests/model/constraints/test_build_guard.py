"""Grammars are tried in a process that is killed past its limits; nobody else loses by it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest
from llguidance import LLMatcher

from sapwood.model.constraints import mask_worker
from sapwood.model.constraints.build_guard import BuildGuard
from sapwood.model.constraints.compiler import ConstraintCompiler
from sapwood.model.constraints.spec import ConstraintRefused, ConstraintSpec
from tests.model.constraints.toy import vocabulary

GOOD = LLMatcher.grammar_from_json_schema({"type": "string"})
BAD = LLMatcher.grammar_from_regex("(a")
BUILD_S, BUILD_BYTES = 0.4, 64 << 20
# Two keywords, and the library builds for minutes; nothing of it says so before.
ENDLESS = LLMatcher.grammar_from_json_schema({"type": "integer", "multipleOf": 9_999_991})


@pytest.fixture
def guard() -> Iterator[BuildGuard]:
    made = BuildGuard(vocabulary(), BUILD_S, 8 * BUILD_BYTES)  # what is endless ends by its time
    yield made
    made.close()


def test_what_can_be_built_passes_and_the_process_is_kept(guard: BuildGuard) -> None:
    guard.check(GOOD)
    first = guard._take()
    guard._keep(first)
    for _ in range(5):
        guard.check(GOOD)
    assert guard._take() is first
    first.kill()


def test_what_cannot_says_why_in_one_short_line(guard: BuildGuard) -> None:
    with pytest.raises(ConstraintRefused, match=r"^it cannot be built: .{1,120}$"):
        guard.check(BAD)
    guard.check(GOOD)
    # A reference to nothing but itself is built, and fails at the first mask.
    with pytest.raises(ConstraintRefused):
        guard.check(LLMatcher.grammar_from_lark("start: start"))


def test_a_process_that_died_is_no_bodys_refusal(guard: BuildGuard) -> None:
    guard.check(GOOD)
    builder = guard._take()
    builder._process.kill()
    builder._process.wait()
    guard._keep(builder)
    guard.check(GOOD)


def test_after_the_end_nothing_is_kept() -> None:
    guard = BuildGuard(vocabulary(), BUILD_S, BUILD_BYTES)
    guard.check(GOOD)
    builder = guard._take()
    guard.close()
    guard._keep(builder)
    assert not builder.alive


def test_what_takes_too_long_is_killed_and_nobody_waits_for_it(guard: BuildGuard) -> None:
    guard.check(GOOD)
    ended: list[float] = []

    def others() -> None:
        for _ in range(3):
            guard.check(GOOD)
        ended.append(time.monotonic())

    beside = threading.Thread(target=others)
    begun = time.monotonic()
    first = guard._take()
    guard._keep(first)
    beside.start()
    with pytest.raises(ConstraintRefused, match=r"^it takes longer than 0.4 s to build$"):
        guard.check(ENDLESS)
    took = time.monotonic() - begun
    beside.join()
    assert took >= BUILD_S  # it would take minutes, so that this is reached says enough
    assert ended
    guard.check(GOOD)


def test_what_takes_too_much_memory_ends_its_process() -> None:
    guard = BuildGuard(vocabulary(), 60.0, 16 << 20)
    with pytest.raises(ConstraintRefused, match=r"^it takes too much memory to build$"):
        guard.check(ENDLESS)
    guard.check(GOOD)
    guard.close()


def test_a_process_ends_with_its_daemon(guard: BuildGuard) -> None:
    guard.check(GOOD)
    builder = guard._take()
    assert builder._process.stdin is not None
    builder._process.stdin.close()
    assert builder._process.wait(10) == 0
    builder._process.stdin = open("/dev/null", "wb")  # noqa: SIM115 (kill() closes it)
    builder.kill()


def test_the_compiler_asks_it_first() -> None:
    compiler = ConstraintCompiler(vocabulary(), BUILD_S, 1 << 30, 5.0, takes_lark=True)
    schema = json.dumps({"type": "integer", "multipleOf": 9_999_991})
    with pytest.raises(ConstraintRefused, match=r"longer than 0\.4 s"):
        compiler.compile(ConstraintSpec("json_schema", schema))
    assert compiler.compile(ConstraintSpec("regex", "^a+$")).first.any()
    assert compiler.compile(ConstraintSpec("json_schema", "true")).first.any()
    with pytest.raises(ConstraintRefused, match="nothing satisfies it"):
        compiler.compile(ConstraintSpec("json_schema", "false"))
    compiler.close()


def test_a_first_token_that_is_not_found_in_time_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = ConstraintCompiler(vocabulary(), 5.0, 1 << 30, 0.05, takes_lark=True)
    compiler.compile(ConstraintSpec("regex", "a"))
    monkeypatch.setattr(mask_worker, "_fill", lambda *of: time.sleep(0.3))
    with pytest.raises(ConstraintRefused, match="takes too long to find"):
        compiler.compile(ConstraintSpec("regex", "a"))
    compiler.close()


def test_what_the_daemon_itself_holds_is_not_the_builders() -> None:
    """A process that is started counts the peak of who starts it as its own: not here."""
    held = bytearray(400 << 20)
    held[::4096] = b"x" * len(held[::4096])
    small = BuildGuard(vocabulary(), 60.0, 32 << 20)
    with pytest.raises(ConstraintRefused, match=r"too much memory"):
        small.check(ENDLESS)
    small.check(GOOD)
    small.close()
    assert held[0] == ord("x")
