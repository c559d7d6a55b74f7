"""Text of replies: whole characters, stop strings across tokens, no hold after the end (R3)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sapwood.scheduler.reply.stops import StopAutomaton
from sapwood.scheduler.reply.text import ReplyText
from tests.scheduler.reference import first_stop, whole_characters

CHARACTERS = st.sampled_from(["a", "b", "ab", "\u00e9", "\u20ac", "\U0001f600", " "])
PIECES = st.lists(st.one_of(CHARACTERS.map(str.encode), st.binary(max_size=3)), max_size=30)
STOPS = st.lists(st.text("ab\u00e9 ", min_size=1, max_size=4), max_size=4).map(tuple)


def feed(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, int, list[str]]:
    """The text, how many tokens it took, and what left after each."""
    text = ReplyText(pieces, stops)
    left = []
    for token in range(len(pieces)):
        stopped = text.push(token)
        left.append(text.take())
        if stopped:
            return "".join(left), token + 1, left
    text.finish()
    return "".join(left) + text.take(), len(pieces), left


@given(PIECES)
@example([b"\xed\xa0"])
@example([b"\xed", b"\xbf", b"\x80a"])
def test_without_stop_strings_text_is_the_bytes_decoded(pieces: list[bytes]) -> None:
    """R3: any bytes, in any portions, invalid ones included."""
    text, _, left = feed(pieces)
    assert text == b"".join(pieces).decode(errors="replace")
    for count in range(len(left)):
        whole = whole_characters(b"".join(pieces[: count + 1]))
        assert "".join(left[: count + 1]) == whole, "characters leave as soon as they are whole"


@given(PIECES, STOPS)
def test_stop_strings_cut_where_a_naive_search_does(
    pieces: list[bytes], stops: tuple[str, ...]
) -> None:
    """S4: the first to be complete wins, of two at once the longest, whatever the tokens are."""
    text, used, left = feed(pieces, stops)
    for count in range(1, len(pieces) + 1):
        cut = first_stop(whole_characters(b"".join(pieces[:count])), stops)
        if cut is not None:
            assert (text, used) == (cut[0], count)
            return
    assert used == len(pieces)
    full = b"".join(pieces).decode(errors="replace")
    assert text == full
    for count in range(len(left)):
        seen, whole = "".join(left[: count + 1]), whole_characters(b"".join(pieces[: count + 1]))
        held = whole[len(seen) :]
        assert whole.startswith(seen)
        beginnings = {stop[:n] for stop in stops for n in range(1, len(stop))}
        longest = max((n for n in range(len(whole) + 1) if whole[-n:] in beginnings), default=0)
        assert len(held) == longest, "held back is only what may begin a stop string"


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped_by"),
    [
        (("END",), [b"say E", b"N", b"D now"], "say ", "END"),
        (("abcd", "bc"), [b"abcd"], "a", "bc"),
        (("c", "abc"), [b"xab", b"cd"], "x", "abc"),
        (("aab",), [b"a", b"a", b"a", b"b"], "a", "aab"),
        (("\u00e9",), [b"x\xc3", b"\xa9y"], "x", "\u00e9"),
    ],
)
def test_stop_strings(
    stops: tuple[str, ...], pieces: list[bytes], text: str, stopped_by: str
) -> None:
    reply = ReplyText(pieces, stops)
    assert [reply.push(token) for token in range(len(pieces))][-1]
    assert (reply.take(), reply.stopped_by) == (text, stopped_by)
    with pytest.raises(AssertionError, match="after the stop string"):
        reply.push(0)


def test_an_unfinished_character_leaves_at_the_end() -> None:
    """R3: nothing is held after finish, and a stop string half seen is just text."""
    reply = ReplyText([b"a\xf0\x9f", b"EN"], ("END",))
    reply.push(0)
    assert reply.take() == "a"
    reply.push(1)
    reply.finish()
    assert reply.take() == "\ufffdEN"


def test_one_long_repetition_is_linear() -> None:
    """The classic trap of naive matching: each character is looked at a bounded number of times."""
    automaton = StopAutomaton(["a" * 60 + "b"])
    looks = 0
    follow = automaton.advance

    state = 0
    for char in "a" * 2000:
        before = automaton.depth[state]
        state = follow(state, char)
        looks += before - automaton.depth[state] + 2  # links followed, plus the step itself
    assert looks <= 3 * 2000
    assert automaton.depth[state] == 60


def test_an_empty_stop_string_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="empty stop string"):
        ReplyText([b"a"], ("",))
