"""Sessions of the core: what they hold, who may use them, and when they end."""

from __future__ import annotations

import pytest

from sapwood.scheduler.core.sessions import Sessions
from sapwood.scheduler.reasons import Reason
from tests.fakes import FULL_BYTES
from tests.scheduler.house import failed, prompt
from tests.scheduler.session_house import (
    LIMITS,
    LONG,
    SessionHouse,
    begun,
    house,
    reason,
    tokens,
    told,
    whole,
)


def test_n2_it_holds_what_was_sent_and_emitted_turn_after_turn() -> None:
    made = house()
    first = whole(made, made.speak("a", prompt(20), 6))
    second = whole(made, made.speak("a", prompt(9, 3), 6))
    assert second.request.prompt == (*prompt(20), *first.tokens, *prompt(9, 3))
    assert tokens(made, "a") == (*second.request.prompt, *second.tokens)
    assert second.progress[-1].cached == 20 + len(first.tokens) - 1, "all but its last token"
    made.close()


def test_a_fork_takes_no_memory_and_computes_nothing() -> None:
    made = house()
    first = whole(made, made.speak("a", prompt(60), 6))
    before = made.tree.bytes, made.device.evaluated_tokens, made.tree.nodes
    for each in range(16):
        assert told(made.fork("a", f"b{each}")).tokens == 60 + len(first.tokens)
    assert (made.tree.bytes, made.device.evaluated_tokens, made.tree.nodes) == before
    streams = [made.speak(f"b{each}", prompt(5, 20 + each), 1) for each in range(3)]
    made.run()
    held = 60 + len(first.tokens)
    assert all(stream.progress[-1].cached >= held - 1 for stream in streams)
    assert made.tree.full_bytes <= (held + 3 * 6) * FULL_BYTES, "one copy of what they share"
    assert tokens(made, "a") == tokens(made, "b3"), "the first is as it was"
    made.close()


def test_a_fork_at_a_token_and_a_rollback_hold_a_beginning() -> None:
    made = house()
    stream = whole(made, made.speak("a", prompt(30), 8, **LONG))
    held = (*prompt(30), *stream.tokens)
    assert told(made.fork("a", "b", 33)).tokens == 33
    assert tokens(made, "b") == held[:33]
    assert told(made.rollback("a", 31)).tokens == 31
    assert tokens(made, "a") == held[:31]
    again = whole(made, made.speak("a", prompt(4, 9), 3))
    assert again.request.prompt == (*held[:31], *prompt(4, 9))
    assert told(made.rollback("a", 0)).tokens == 0
    made.close()


@pytest.mark.parametrize("count", [9, 1 << 31])
def test_past_the_end_is_a_bad_request(count: int) -> None:
    made = house()
    whole(made, made.speak("a", prompt(5), 3, **LONG))
    assert told(made.fork("a", "at the limit", 8)).tokens == 8
    assert reason(made.fork("a", "b", count)) is Reason.BAD_REQUEST
    assert reason(made.rollback("a", count)) is Reason.BAD_REQUEST
    assert len(tokens(made, "a")) == 8
    made.close()


def test_n1_one_request_at_a_time() -> None:
    made = house()
    runs = made.speak("a", prompt(20), 20, **LONG)
    busy = made.speak("a", prompt(3))
    made.deliver()
    assert failed(busy).reason is Reason.SESSION_BUSY
    assert reason(made.rollback("a", 0)) is Reason.SESSION_BUSY
    begun(made, runs, 3)
    assert told(made.fork("a", "b")).tokens == 20 + len(runs.tokens), "as far as it has come"
    whole(made, runs)
    assert whole(made, made.speak("a", prompt(3)))
    made.close()


def test_n1_a_prompt_that_was_made_before_another_turn_comes_too_late() -> None:
    made = house()
    whole(made, made.speak("a", prompt(5), 3))
    held = made.held("a")
    assert held is not None
    late = made.speak("a", prompt(5, 2))
    made.cancel(late)
    whole(made, made.speak("a", prompt(5, 3), 3))
    again = made.submit(late.request.prompt, 3, session=late.request.session)
    made.deliver()
    assert failed(again).reason is Reason.SESSION_BUSY
    made.close()


def test_names_are_their_owners_and_counted() -> None:
    made = house(sessions_max=3)
    assert reason(made.create("a")) is Reason.SESSION_EXISTS
    assert reason(made.create("b", most=1)) is Reason.CLIENT_QUOTA
    assert told(made.create("b", most=2)).name == "b"
    assert told(made.fork("a", "c")).name == "c"
    assert reason(made.create("d")) is Reason.CLIENT_QUOTA
    assert reason(made.fork("a", "b")) is Reason.SESSION_EXISTS
    assert reason(made.fork("x", "d")) is Reason.SESSION_NOT_FOUND
    assert told(made.delete("b")).name == "b"
    assert [view.name for view in made.core.sessions("somebody", made.now)] == ["a", "c"]
    assert made.core.sessions("somebody else", made.now) == ()
    made.close()


def test_their_tokens_are_bounded_together() -> None:
    made = house(session_tokens_max=100)
    whole(made, made.speak("a", prompt(40), 10, **LONG))
    assert told(made.fork("a", "b", 50)).tokens == 50
    assert reason(made.fork("a", "c", 1)) is Reason.CLIENT_QUOTA
    refused = made.speak("b", prompt(1), 1)
    made.deliver()
    assert failed(refused).reason is Reason.CLIENT_QUOTA
    made.delete("a")
    whole(made, made.speak("b", prompt(10), 10))
    made.close()


def test_n4_it_ends_when_it_was_not_used_for_its_time_and_never_while_it_is_busy() -> None:
    made = SessionHouse(limits=LIMITS)
    made.create("a", 5.0)
    made.create("b", 50.0)
    stream = made.speak("a", prompt(20), 30, **LONG)
    begun(made, stream)
    made.now += 6.0
    made.step()
    whole(made, stream)
    held = made.held("a")
    assert held is not None and held.view.expires_at is not None
    assert made.now + 4.9 < held.view.expires_at <= made.now + 5.0
    made.now = held.view.expires_at - 0.001
    made.step()
    assert made.held("a") is not None
    made.now = held.view.expires_at
    assert made.held("a") is None and made.held("b") is not None
    assert [view.name for view in made.core.sessions("somebody", made.now)] == ["b"]
    assert reason(made.rollback("a", 0)) is Reason.SESSION_NOT_FOUND
    assert told(made.create("a")).tokens == 0
    made.close()


def test_n4_it_outlives_its_kv() -> None:
    made = house()
    first = whole(made, made.speak("a", prompt(40), 6))
    held = made.held("a")
    assert held is not None and not held.view.parked
    made.clear()
    held = made.held("a")
    assert held is not None and held.view.parked
    second = whole(made, made.speak("a", prompt(5, 2), 6))
    assert second.progress[-1].cached == 0
    assert second.request.prompt[:40] == prompt(40) and len(first.tokens) == 6
    made.close()


def test_n2_who_ends_before_the_first_token_changes_nothing() -> None:
    made = house()
    whole(made, made.speak("a", prompt(20), 4))
    before = tokens(made, "a")
    unread = made.speak("a", prompt(40, 4), 4)
    made.step()
    made.cancel(unread)
    assert tokens(made, "a") == before
    gone = begun(made, made.speak("a", prompt(5, 4), 30, **LONG), 4)
    made.cancel(gone)
    made.deliver()
    assert tokens(made, "a") == (*gone.request.prompt, *gone.tokens), "what was emitted counts"
    made.close()


def test_deleting_one_ends_its_request() -> None:
    made = house()
    stream = begun(made, made.speak("a", prompt(20), 30, **LONG))
    assert told(made.delete("a")).name == "a"
    assert failed(stream).reason is Reason.CANCELLED
    assert reason(made.delete("a")) is Reason.SESSION_NOT_FOUND
    resumed = made.resume(stream)
    made.deliver()
    assert failed(resumed).reason is Reason.SESSION_NOT_FOUND
    made.close()


def test_n1_is_checked_by_the_core_itself() -> None:
    made = house()
    begun(made, made.speak("a", prompt(20), 30, **LONG))
    sessions: Sessions = made.core._sessions
    next(iter(sessions._sessions.values())).running = None
    with pytest.raises(AssertionError, match="N1"):
        made.core.check()


@pytest.mark.parametrize("to", [31, 40, 44])
def test_what_is_behind_a_rollback_computes_nothing_of_what_is_kept(to: int) -> None:
    """In the prompt, at its end, in the reply: all windows of so short a path are there."""
    made = house()
    whole(made, made.speak("a", prompt(40), 8, **LONG))
    made.rollback("a", to)
    again = whole(made, made.speak("a", prompt(4, 9), 3))
    assert again.progress[-1].cached == to
    made.close()
