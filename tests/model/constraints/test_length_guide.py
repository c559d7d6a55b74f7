"""What a reply's bounds leave of a place: a round's masks are those of each step by itself."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from sapwood.model.constraints.guide import Guide
from sapwood.model.constraints.length_guide import LengthGuide
from sapwood.model.constraints.step_masks import HeldRow, StepMasks
from sapwood.scheduler.reply.parts import ReplyParts
from sapwood.scheduler.reply_bounds import ReplyBounds
from tests.model.constraints.toy import (
    CALL,
    CALL_END,
    CHANNEL,
    CHANNEL_END,
    CONTROL,
    ENDS,
    EOS,
    TOKEN_BYTES,
    encode,
    schema,
)

EVERY = set(range(len(TOKEN_BYTES)))
WORD = encode("x")[0]
MASKS = StepMasks(len(TOKEN_BYTES), 5.0)


def bounds(least: int = 0, thinking: int | None = None) -> ReplyBounds:
    return ReplyBounds(frozenset(ENDS), least, thinking, CONTROL)


def allowed(
    length: LengthGuide, drafts: Sequence[int] = (), guide: Guide | None = None
) -> list[set[int]]:
    """The tokens of each place of a round."""
    masks = MASKS.of_rows([HeldRow(guide, length, len(drafts), drafts)])
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row[: len(TOKEN_BYTES)]).tolist()) for row in bits]


def naive(bound: ReplyBounds, prompt: Sequence[int], reply: Sequence[int]) -> set[int]:
    """What may follow `reply`, by who divides replies into parts."""
    parts = ReplyParts(TOKEN_BYTES, (), CONTROL, prompt)
    for token in reply:
        parts.push(token)
    found = set(EVERY) if len(reply) >= bound.min_tokens else EVERY - ENDS
    most, thought = bound.thinking_tokens_max, parts._thought
    if most is not None and parts.thinking_tokens >= most:
        if thought.thinks:
            return {CHANNEL_END}
        if not thought.channel_open:
            found.discard(CHANNEL)
    return found


def drawn(random: Random, count: int) -> list[int]:
    choices = [CHANNEL, CHANNEL_END, CALL, CALL_END, EOS, WORD, WORD, WORD, WORD]
    return random.choices(choices, k=count)


def test_a_rounds_masks_are_those_of_each_step() -> None:
    """Whatever is drafted, for places up to the first draft that is ruled out."""
    random = Random(3)
    followed = 0
    for _ in range(400):
        bound = bounds(random.choice((0, 3, 9)), random.choice((None, 0, 1, 2, 4)))
        prompt, reply = drawn(random, 4), drawn(random, random.randint(0, 6))
        length = LengthGuide(bound, prompt, reply)
        drafts = drawn(random, random.randint(0, 6))
        places = [naive(bound, prompt, [*reply, *drafts[:n]]) for n in range(len(drafts) + 1)]
        legal = next((n for n, d in enumerate(drafts) if d not in places[n]), len(drafts))
        follows = length.follows(len(drafts))
        followed += follows
        masks = MASKS.of_rows([HeldRow(None, length, len(drafts), drafts if follows else ())])
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
        found = [set(np.flatnonzero(row[: len(TOKEN_BYTES)]).tolist()) for row in bits]
        # A reply that is past its budget already is no reply of ours.
        if LengthGuide(bound, prompt).bounds and _kept(bound, prompt, reply):
            assert found[: legal + 1] == places[: legal + 1], (bound, prompt, reply, drafts)
            if not length.masks(len(drafts)):
                assert all(place == EVERY for place in places[: legal + 1])
    assert followed > 20


def _kept(bound: ReplyBounds, prompt: Sequence[int], reply: Sequence[int]) -> bool:
    return all(t in naive(bound, prompt, reply[:n]) for n, t in enumerate(reply))


def test_the_budget_ends_a_thought_by_the_models_own_token() -> None:
    length = LengthGuide(bounds(thinking=2), (), [CHANNEL, WORD])
    assert allowed(length, [WORD, WORD]) == [EVERY, {CHANNEL_END}, {CHANNEL_END}]
    length.push([WORD])
    assert allowed(length) == [{CHANNEL_END}]
    length.push([CHANNEL_END])
    assert allowed(length) == [EVERY - {CHANNEL}]


def test_a_channel_of_the_prompts_is_bounded_too() -> None:
    assert allowed(LengthGuide(bounds(thinking=0), [CHANNEL])) == [{CHANNEL_END}]
    assert allowed(LengthGuide(bounds(thinking=0), [CHANNEL, CHANNEL_END])) == [EVERY - {CHANNEL}]


@pytest.mark.parametrize(
    ("reply", "depth", "follows"),
    [([], 3, False), ([], 4, True), ([CHANNEL], 2, False), ([CHANNEL], 3, True), ([], 0, False)],
)
def test_drafts_are_read_only_where_the_budget_may_run_out(
    reply: list[int], depth: int, follows: bool
) -> None:
    length = LengthGuide(bounds(thinking=3), (), reply)
    assert length.follows(depth) == follows == length.masks(depth)


def test_a_call_in_a_thought_is_not_cut() -> None:
    length = LengthGuide(bounds(thinking=1), (), [CHANNEL, WORD])
    assert allowed(length) == [{CHANNEL_END}]
    length = LengthGuide(bounds(thinking=1), (), [CHANNEL, CALL, WORD, WORD])
    assert allowed(length, [CALL_END, WORD]) == [EVERY, EVERY, {CHANNEL_END}]


def test_both_a_constraint_and_a_budget() -> None:
    held = schema('{"type":"integer"}', thinks=True)
    guide, length = Guide(held, ()), LengthGuide(bounds(thinking=1), ())
    first = allowed(length, [], guide)[0]
    assert CHANNEL in first and WORD not in first
    path = [CHANNEL, WORD, CHANNEL_END]
    places = allowed(length, path, guide)
    assert places[2] == {CHANNEL_END} and WORD in places[1]
    assert places[3] == set(encode("-0123456789")), "the constraint's, and no other thought"
