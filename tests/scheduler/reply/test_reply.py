"""Where a reply ends, what of a round counts, and the usage equation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.events import Request
from sapwood.scheduler.reply.reply import GeneratedReply
from sapwood.scheduler.result import Decoded
from sapwood.scheduler.sampling import Sampling
from tests.scheduler.fake_device import EOS, toy_facts

BYTES = [b"", b"", b"", b"", b"a", b"b", b"c", b"\xc3"]


def reply(**options: object) -> GeneratedReply:
    options = {"max_tokens": 10, **options}
    request = Request(id=1, root=b"", prompt=(4,), sampling=Sampling(), **options)  # type: ignore[arg-type]
    made = GeneratedReply(request, toy_facts(), BYTES)
    made.push_first(4)
    made.parts.take_text()
    return made


@pytest.mark.parametrize(
    ("options", "tokens", "emitted", "reason", "text", "accepted"),
    [
        ({}, (5, 6, 4), 3, None, "bca", 2),
        ({}, (5, EOS, 6), 2, "stop", "b", 2),
        ({}, (5, 6, EOS), 3, "stop", "bc", 2),
        ({"ignore_eos": True}, (5, EOS, 6), 3, None, "bc", 2),
        ({"stop_token_ids": frozenset({5})}, (5, 6, 4), 1, "stop", "", 1),
        ({"stop_token_ids": frozenset({5}), "ignore_eos": True}, (5, 6, 4), 1, "stop", "", 1),
        ({"stop": ("ca",)}, (5, 6, 4), 3, "stop_sequence", "b", 2),
        ({"stop": ("b",)}, (6, 5, 4), 2, "stop_sequence", "c", 2),
        ({"stop": ("cb",)}, (5, 6, 4), 3, None, "bca", 2),
        ({"max_tokens": 3}, (5, 6, 4), 2, "length", "bc", 2),
        ({"max_tokens": 2}, (7, 6, 4), 1, "length", "\ufffd", 1),
    ],
)
def test_a_round_is_cut_where_the_reply_ends(
    options: dict[str, object],
    tokens: tuple[int, ...],
    emitted: int,
    reason: str | None,
    text: str,
    accepted: int,
) -> None:
    """S3, S4: two accepted drafts and a bonus; nothing after the end counts or shows."""
    made = reply(**options)
    assert made.push_round(Decoded(tokens, drafted=4)) == emitted
    assert (made.reason, made.parts.take_text()) == (reason, text)
    assert made.tokens == [4, *tokens[:emitted]]
    assert (made.draft_tokens, made.accepted_tokens) == (4, accepted)
    bonus_cut = emitted <= 2
    assert len(made.tokens) == 1 + made.decode_steps + made.accepted_tokens - bonus_cut


def test_a_round_without_drafts_is_a_step_but_no_round() -> None:
    made = reply()
    made.push_round(Decoded((5,), drafted=0))
    assert (made.decode_steps, made.rounds, made.draft_tokens) == (1, 0, 0)


def test_half_a_character_that_becomes_the_stop_string_at_the_end_is_the_reason() -> None:
    """A text that was cut at a stop string always says so."""
    made = reply(stop=("\ufffd",), max_tokens=2)
    made.push_round(Decoded((7,), drafted=0))
    expected = ("stop_sequence", "\ufffd", "")
    assert (made.reason, made.stop_sequence, made.parts.take_text()) == expected


@pytest.mark.parametrize(("last", "reason"), [(4, "length"), (EOS, "stop")])
@pytest.mark.parametrize("stop", [("cb", "zz"), ("zz",)])
def test_a_stop_string_in_a_call_that_was_cut_is_the_reason(
    last: int, reason: str, stop: tuple[str, ...]
) -> None:
    """The ids had left before the call was known to be none; the text ends at the stop string."""
    facts = replace(toy_facts(), control_tokens=ControlTokens(call_start=3))
    request = Request(1, b"", (4,), max_tokens=5, sampling=Sampling(), stop=stop)
    made = GeneratedReply(request, facts, BYTES)
    made.push_first(4)
    assert made.push_round(Decoded((3, 6, 5, last), drafted=3)) == 4
    said = (made.reason, made.stop_sequence, made.parts.take_text(), len(made.tokens))
    whole = (reason, "", "acba" if last == 4 else "acb", 5)
    assert said == (("stop_sequence", "cb", "a", 5) if "cb" in stop else whole)


def test_nothing_may_follow_the_end() -> None:
    """S4."""
    made = reply(max_tokens=1)
    assert made.reason == "length"
    with pytest.raises(AssertionError, match="ended by length"):
        made.push_round(Decoded((5,), drafted=0))


def test_a_round_that_accepts_more_than_it_drafted_is_refused() -> None:
    """S3."""
    with pytest.raises(AssertionError, match="more than it drafted"):
        reply().push_round(Decoded((5, 6, 4), drafted=1))
