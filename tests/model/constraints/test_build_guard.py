"""Grammars are tried in a process that is killed past its limits; nobody else loses by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llguidance import LLMatcher

from sapwood.model.constraints.build_guard import BuildGuard
from sapwood.model.constraints.spec import ConstraintRefused
from tests.model.constraints.toy import vocabulary

GOOD = LLMatcher.grammar_from_json_schema({"type": "string"})
BAD = LLMatcher.grammar_from_regex("(a")
BUILD_S, BUILD_BYTES = 1.0, 64 << 20
# Two keywords, each harmless: what their intersection takes the library does not know before.
ENDLESS = {"type": "string", "pattern": "^(a|aa|aaa){1,500}$", "maxLength": 100_000}


@pytest.fixture
def guard() -> Iterator[BuildGuard]:
    made = BuildGuard(vocabulary(), BUILD_S, BUILD_BYTES)
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
