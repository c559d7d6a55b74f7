"""What of a reply counts as thought."""

from __future__ import annotations

import pytest

from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.thinking import Thinking

TURN, CHANNEL, END, CALL, CALL_END, WORD = range(6)
CONTROL = ControlTokens(TURN, CHANNEL, END, CALL, CALL_END)


@pytest.mark.parametrize(
    ("prompt", "reply", "tokens", "thinks"),
    [
        ((), (WORD, WORD), 0, False),
        ((), (CHANNEL, WORD, WORD, END, WORD), 2, False),
        ((), (CHANNEL, WORD, CHANNEL, WORD), 2, True),
        ((CHANNEL, WORD), (WORD, END), 1, False),
        ((CHANNEL, WORD, END), (WORD,), 0, False),
        ((CHANNEL, TURN), (WORD,), 0, False),
        ((), (CHANNEL, CALL, WORD, END, CALL_END, WORD), 1, True),
        ((), (CALL, CHANNEL, CALL_END, WORD), 0, False),
        ((), (CHANNEL, CALL, WORD), 0, False),
    ],
)
def test_what_stands_in_a_channel_is_thought_but_for_calls(
    prompt: tuple[int, ...], reply: tuple[int, ...], tokens: int, thinks: bool
) -> None:
    thinking = Thinking(CONTROL, prompt)
    for token in reply:
        before = thinking.copy()
        before.push(token)
        thinking.push(token)
        assert (before.tokens, before.thinks) == (thinking.tokens, thinking.thinks)
    assert (thinking.tokens, thinking.thinks) == (tokens, thinks)


def test_a_model_without_channels_never_thinks() -> None:
    thinking = Thinking(ControlTokens(), (CHANNEL,))
    thinking.push(CHANNEL)
    thinking.push(WORD)
    assert not thinking.tokens and not thinking.thinks
