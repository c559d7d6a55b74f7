"""A reply's place: a path's masks are those of each step, and control tokens lead through it."""

from __future__ import annotations

import json

import pytest

from sapwood.model.constraints.constraint import Constraint
from sapwood.model.constraints.guide import FORCED_BYTES_MAX, Guide
from sapwood.model.constraints.spec import ConstraintSpec
from sapwood.model.constraints.step_masks import StepMasks
from tests.model.constraints.toy import (
    CALL,
    CALL_END,
    CHANNEL,
    CHANNEL_END,
    ENDS,
    EOS,
    NAMES,
    QUOTE,
    TOKEN_BYTES,
    TURN,
    allowed,
    built,
    encode,
    schema,
)

ORDER = json.dumps(
    {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "s": {"type": "string"}},
        "required": ["n", "s"],
        "additionalProperties": False,
    }
)
TEXT = '{"n":12,"s":"a<b>\\n"}'
EVERY = set(range(len(TOKEN_BYTES)))
TOOL = ("f", json.dumps({"type": "object", "properties": {"a": {"type": "string"}}}))
AUTO = ConstraintSpec("calls", tools=(TOOL,), talks=True)
BLOCK = [CALL, *encode("call:f{a:"), QUOTE, *encode("x"), QUOTE, *encode("}"), CALL_END]


@pytest.fixture
def masks() -> StepMasks:
    return StepMasks(len(TOKEN_BYTES), 5.0)


def step_by_step(held: Constraint, masks: StepMasks, path: list[int]) -> list[set[int]]:
    """One mask, one token at a time; up to where a token was not allowed, or ended the reply."""
    guide, found = Guide(held, ()), []
    for token in [*path, -1]:
        (choices,) = allowed(guide, masks)
        found.append(choices)
        if token not in choices or token in ENDS:
            break
        guide.push([token])
    return found


PATHS = {
    "right": encode(TEXT),
    "with tokens of several letters": [267, *encode("n"), 268, *encode("1")],
    "wrong in the middle": [*encode('{"n":1'), *encode("x"), *encode(',"s"')],
    "wrong at once": encode("[1]"),
    "ended": [*encode(TEXT), EOS, *encode("x")],
    "ended before its end": [*encode('{"n":1'), EOS, *encode("2")],
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("before", [0, 3, 7])
def test_a_paths_masks_are_those_of_each_step(name: str, before: int, masks: StepMasks) -> None:
    held, path = schema(ORDER), PATHS[name]
    due = step_by_step(held, masks, path)
    before = min(before, len(due) - 1)
    guide = Guide(held, ())
    guide.push(path[:before])
    for end in range(before, min(before + 8, len(path)) + 1):
        found = allowed(guide, masks, path[before:end])
        count = min(len(found), len(due) - before)
        assert found[:count] == due[before : before + count]
    # Nothing moved.
    assert allowed(guide, masks) == [due[before]]


def test_end_tokens_are_allowed_where_the_text_may_end_and_nowhere_else(masks: StepMasks) -> None:
    guide = Guide(schema(ORDER), ())
    for token in encode(TEXT):
        (choices,) = allowed(guide, masks)
        assert not choices & ENDS and token in choices
        guide.push([token])
    assert allowed(guide, masks) == [ENDS]
    guide.push([EOS, *encode("more, of nobody")])
    assert not guide.failure


def test_control_tokens_are_in_no_string_and_ordinary_added_tokens_are(masks: StepMasks) -> None:
    guide = Guide(schema(ORDER), ())
    guide.push(encode('{"n":1,"s":"'))
    (choices,) = allowed(guide, masks)
    assert not choices & set(NAMES.values())
    assert 10 + 256 in choices and TOKEN_BYTES[10 + 256] == b"<b>"
    assert TOKEN_BYTES.index(b"<unused7>") not in choices
    guide.push([CHANNEL])
    assert guide.failure


def test_a_guide_that_failed_says_so_for_good(masks: StepMasks) -> None:
    guide = Guide(schema(ORDER), ())
    guide.push(encode("x"))
    assert guide.failure
    guide.push(encode(TEXT))
    assert guide.failure and allowed(guide, masks, encode("ab")) == [EVERY] * 3


def test_what_was_said_before_it_was_parked_leads_to_the_same_place(masks: StepMasks) -> None:
    reply = encode(TEXT)
    for at in range(len(reply)):
        guide = Guide(schema(ORDER), ())
        guide.push(reply[:at])
        assert allowed(guide, masks) == allowed(Guide(schema(ORDER), (), reply[:at]), masks)


def test_a_thought_comes_first_where_it_was_asked_for(masks: StepMasks) -> None:
    held = schema(ORDER, thinks=True)
    (plain,) = allowed(Guide(schema(ORDER), ()), masks)
    guide = Guide(held, ())
    path = [CHANNEL, *encode("thought\n}"), CHANNEL_END, *encode('{"n"')]
    found = allowed(guide, masks, path)
    assert found[0] == plain | {CHANNEL}
    assert all(
        place == EVERY - set(NAMES.values()) - {273} | {CHANNEL_END} for place in found[1:11]
    )
    assert found[11] == plain
    assert found[1:12] == [allowed(Guide(held, (), path[:n]), masks)[0] for n in range(1, 12)]
    # Or none comes.
    assert (
        allowed(guide, masks, encode('{"n'))[1:]
        == allowed(Guide(schema(ORDER), ()), masks, encode('{"n'))[1:]
    )
    guide.push([*path, *encode(':1,"s":""}'), EOS])
    assert not guide.failure


def test_a_prompt_that_opened_a_channel_goes_on_in_it(masks: StepMasks) -> None:
    held = schema(ORDER)
    thinking = allowed(Guide(held, [TURN, CHANNEL, *encode("thought")]), masks)[0]
    assert CHANNEL_END in thinking and not thinking & ENDS
    for closed in ([CHANNEL, CHANNEL_END], [CHANNEL, TURN], []):
        assert allowed(Guide(held, closed), masks) == allowed(Guide(held, ()), masks)


def test_beside_calls_text_is_free_and_each_call_is_held(masks: StepMasks) -> None:
    held = built(AUTO)
    text = encode("well ")
    path = [*text, *BLOCK, *text, *BLOCK, EOS]
    found = allowed(Guide(held, ()), masks, path)
    inside = allowed(Guide(held, ()), masks, BLOCK)[1:-1]
    due = [*[EVERY] * 6, *inside, *[EVERY] * 6, *inside, *[EVERY] * 3]
    assert found == due[: len(found)] and inside[0] == {10 + ord("c")}
    one = [allowed(Guide(held, (), path[:n]), masks)[0] for n in range(len(path))]
    assert found[: len(one)] == one
    guide = Guide(held, ())
    guide.push(path)
    assert not guide.failure


@pytest.mark.parametrize(("once", "again"), [(True, set()), (False, {CALL})])
def test_required_calls_are_all_that_is_said(once: bool, again: set[int], masks: StepMasks) -> None:
    guide = Guide(built(ConstraintSpec("calls", tools=(TOOL,), once=once)), ())
    assert allowed(guide, masks) == [{CALL}]
    guide.push(BLOCK)
    assert allowed(guide, masks) == [ENDS | again]


def test_what_is_forced_is_what_must_come_and_legal(masks: StepMasks) -> None:
    guide = Guide(schema(ORDER), ())
    assert guide.forced == tuple(encode('{"n":'))
    for token in guide.forced:
        (choices,) = allowed(guide, masks)
        assert token in choices
        guide.push([token])
    assert guide.forced == ()  # a number may begin with any digit
    guide.push(encode("1"))
    assert guide.forced == ()
    guide.push(encode(","))
    assert guide.forced == tuple(encode('"s":'))  # a token may hold the quote and what follows
    guide.push(encode('"s":"x"'))
    assert guide.forced == tuple(encode("}"))
    guide.push(encode("}"))
    assert guide.forced == ()  # ends are never fed to a matcher
    guide.push([EOS])
    assert guide.forced == ()


def test_nothing_is_forced_where_no_matcher_holds_or_knows(masks: StepMasks) -> None:
    thinking = Guide(schema(ORDER, thinks=True), ())
    assert thinking.forced == ()  # a thought may come first
    thinking.push([CHANNEL, *encode("x"), CHANNEL_END])
    assert thinking.forced == tuple(encode('{"n":'))
    called = Guide(built(AUTO), ())
    assert called.forced == ()  # free text
    called.push(BLOCK[:3])
    assert called.forced == tuple(BLOCK[3 : 3 + len(called.forced)]) != ()
    lost = Guide(schema(ORDER), ())
    lost.push(encode("["))
    assert lost.failure and lost.forced == ()


def test_of_a_long_constant_only_the_end_is_made_into_tokens() -> None:
    text = "x" * (FORCED_BYTES_MAX + 10)
    guide = Guide(built(ConstraintSpec("regex", text)), ())
    assert guide.forced == ()
    guide.push(encode("x" * 10))
    assert guide.forced == tuple(encode("x" * FORCED_BYTES_MAX))
