"""What a client counts for itself, and how its second turn continues the first."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood import Message
from sapwood.daemon.demo.dialogue import Counts, Prompts, follow_up_messages, messages, prompts
from sapwood.daemon.demo.report import shared_tokens
from sapwood.daemon.demo.script import CAST, PINNED_DEPTH, SHARED_TOKENS_MIN
from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.checkpoint.locate import DEMO
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from tests.chat import turns
from tests.daemon.demo.told import told, usage

FOX, BOAT = CAST[1], CAST[4]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(ModelDirectory(Path(DEMO, "target")), vocabulary=2048)


def encoded(tokenizer: Tokenizer, dialogue: list[Message]) -> list[int]:
    return tokenizer.encode_messages(turns(*((m.role, m.content) for m in dialogue)))


def test_the_cast_is_the_one_that_the_demo_promises() -> None:
    assert len(CAST) == len({part.id for part in CAST}) == 8
    assert len({part.question for part in CAST}) == 8
    assert sum(bool(part.joins_at) for part in CAST) == 2
    assert sum(bool(part.follow_up) for part in CAST) == 2
    (cancelled,) = [part for part in CAST if part.cancels_at]
    assert all(part.joins_at < cancelled.cancels_at for part in CAST)


def test_the_shared_prompt_has_at_least_500_tokens(tokenizer: Tokenizer) -> None:
    firsts = [encoded(tokenizer, messages(part)) for part in CAST]
    assert shared_tokens(firsts) >= SHARED_TOKENS_MIN >= 500


def test_a_second_turn_is_the_conversation_that_the_template_would_write(
    tokenizer: Tokenizer,
) -> None:
    first = encoded(tokenizer, messages(FOX))
    both = encoded(tokenizer, follow_up_messages(FOX))
    said = "Once there was a fox called Tina."
    whole = [*messages(FOX), Message("assistant", said), Message("user", FOX.follow_up)]
    written = prompts(first, both, sorted(tokenizer.eos_token_ids))
    reply = [*tokenizer.encode_text(said)[1:], written.turn_end]  # text gets a BOS
    assert list(written.second(reply, stopped=True)) == encoded(tokenizer, whole)


@pytest.mark.parametrize(
    ("reply", "stopped"),
    [
        pytest.param((40, 41, 6), True, id="ended its turn"),
        pytest.param((40, 41, 1), True, id="ended with another of the model's end tokens"),
        pytest.param((40, 41), False, id="cut by its length"),
    ],
)
def test_a_second_prompt_extends_prompt_and_reply(reply: tuple[int, ...], stopped: bool) -> None:
    second = Prompts((2, 7, 6, 8), 6, (9, 10)).second(reply, stopped)
    assert second == (2, 7, 6, 8, 40, 41, 6, 9, 10)


def test_a_finished_turn_counts_its_own_tokens_and_takes_drafts_from_usage() -> None:
    dialogue = told(FOX, [[30], [31, 32, 6]], [[33, 6]], cached=(3, 7))
    assert dialogue.counts == Counts(
        prompt_tokens=4 + 10,
        cached_tokens=3 + 7,
        completion_tokens=4 + 2,
        draft_tokens=8,
        accepted_tokens=8,
        rounds=4,
    )


def test_tokens_are_what_arrived_whatever_usage_says() -> None:
    dialogue = told(FOX, [[30], [31, 6]], reported=usage(99, 99, 99))
    assert dialogue.counts.completion_tokens == 3
    assert dialogue.counts.prompt_tokens == 4


@pytest.mark.parametrize(
    ("sizes", "rounds"),
    [
        pytest.param([1, 5, 3], 2, id="one round each"),
        pytest.param([1, 14], 2, id="two rounds in one message"),
        pytest.param([3, 5], 2, id="the first token came with a round"),
        pytest.param([1], 0, id="only the prompt's own token"),
    ],
)
def test_a_cancelled_client_counts_the_rounds_that_its_messages_prove(
    sizes: list[int], rounds: int
) -> None:
    counts = told(BOAT, [[30] * size for size in sizes]).counts
    assert counts.rounds == rounds
    assert counts.draft_tokens == rounds * PINNED_DEPTH
    assert counts.completion_tokens == sum(sizes) == 1 + rounds + counts.accepted_tokens


def test_without_a_drafter_a_cancelled_client_counts_no_rounds() -> None:
    dialogue = told(BOAT, [[30], [31], [32]])
    dialogue.depth = 0
    assert dialogue.counts == Counts(prompt_tokens=4, completion_tokens=3)


def test_the_pace_leaves_out_the_wait_for_the_first_token() -> None:
    dialogue = told(FOX, [[30], [31, 32], [33, 6]])
    assert dialogue.tokens_per_s(now=100.0) == 4 / 2.0


def test_the_pace_is_that_of_all_turns() -> None:
    """A short second turn may come in one step, in no time."""
    dialogue = told(FOX, [[30], [31, 32], [33, 6]], [[40, 41, 42, 43, 6]], cached=(0, 8))
    assert dialogue.tokens_per_s(now=100.0) == (4 + 4) / 2.0
