"""What the demo pair is trained on: the same every time, and never what it is measured with."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from sapwood.daemon.demo.script import CAST
from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.checkpoint.locate import DEMO
from sapwood.model.demo.train.chats import Chat, any_chat, train_chat
from sapwood.model.demo.train.corpus import chat_parts, encode_chat, pack_rows
from sapwood.model.demo.train.draw import Draw, held_out
from sapwood.model.demo.train.measure import CHATS, held_out_chats, messages_of
from sapwood.model.demo.train.shape import ROW
from sapwood.model.demo.train.stories import Story, plots
from sapwood.model.demo.train.systems import Style, style
from sapwood.model.demo.train.things import all_things, lines
from sapwood.model.prompt.tokenizer_file import load_tokenizer

TURN_END = 6


@pytest.fixture(scope="module")
def chats() -> list[Chat]:
    draw = Draw("test")
    return [train_chat(draw) for _ in range(2000)]


@pytest.fixture(scope="module")
def encoder() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "target" / "tokenizer.json"))


def test_a_seed_gives_the_same_chats(chats: list[Chat]) -> None:
    draw, other = Draw("test"), Draw("another")
    assert [train_chat(draw) for _ in range(200)] == chats[:200]
    assert [train_chat(other) for _ in range(200)] != chats[:200]


def test_nothing_that_is_measured_is_ever_trained_on(chats: list[Chat]) -> None:
    """Whatever a held-out question's letter case or last mark."""
    measured = {turn[0] for held in held_out_chats(CHATS) for turn in held.turns[:1]}
    trained = {turn[0] for made in chats for turn in made.turns}
    assert all(held_out(question.upper().rstrip("?.!")) for question in measured)
    assert not any(held_out(question) for question in trained)
    draw = Draw("test")
    assert any(held_out(turn[0]) for _ in range(500) for turn in any_chat(draw).turns), (
        "none to avoid"
    )


def test_the_demo_s_own_questions_measure_nothing() -> None:
    measured = {turn[0] for held in held_out_chats(CHATS) for turn in held.turns}
    assert measured.isdisjoint({part.question for part in CAST})


def test_only_replies_are_learnt(chats: list[Chat], encoder: Tokenizer) -> None:
    for made in chats[:200]:
        ids, learn = encode_chat(encoder, made)
        learnt = [id for id, wanted in zip(ids, learn, strict=True) if wanted]
        text = encoder.decode(learnt, skip_special_tokens=False)
        assert text == "".join(f"{reply}<turn|>" for _, reply in made.turns)
        assert learnt.count(TURN_END) == len(made.turns)


def test_a_chat_is_written_as_the_daemon_writes_it(chats: list[Chat], encoder: Tokenizer) -> None:
    """Else the model would see at work what it never saw in training."""
    tokenizer = load_tokenizer(ModelDirectory(DEMO / "target"), 2048)
    for made in chats[:200]:
        *before, _, _ = chat_parts(made)
        ids = encoder.encode("".join(text for text, _ in before), add_special_tokens=False).ids
        assert ids == tokenizer.encode_messages(messages_of(made, len(made.turns)))


def test_packing_keeps_documents_whole_and_rows_full() -> None:
    draw = Draw("lengths")
    source = [([number], [True]) for number in range(4000)]
    source = [(ids * draw.number(1, 700), learn) for ids, learn in source]
    rows = list(pack_rows(iter(source), 500))
    sizes = [sum(len(ids) for ids, _ in row) for row in rows]
    packed = [ids[0] for row in rows for ids, _ in row]
    assert max(sizes) <= ROW
    assert sum(sizes) > 0.97 * ROW * len(rows)
    assert len(set(packed)) == len(packed)
    assert set(range(len(packed) // 2)) <= set(packed), "an old document still waits"


def test_the_table_says_five_things_of_everything_once() -> None:
    names = [thing.name for thing in all_things()]
    assert len(set(names)) == len(names) > 300
    for thing in all_things():
        for part in (thing.looks, thing.use, thing.more):
            assert part[0].isupper() and part[-1].isalnum(), (thing.name, part)
    assert {len(row) for row in lines("capitals.txt")} == {3}
    assert {len(row) for row in lines("facts.txt")} == {2}


def test_a_story_keeps_its_names_and_leaves_no_slot_open() -> None:
    draw = Draw("stories")
    for long in (False, True):
        for _ in range(100):
            story = Story(draw, "fox", long)
            assert "{" not in story.text
            assert story.name in story.text and story.other in story.text
            assert all(reply for _, reply in story.questions())
    assert all(plot.short[0] == 0 and len(plot.sentences) == 10 for plot in plots().values())


def test_a_system_prompt_shows_in_the_reply() -> None:
    kept = Style("", "Ada", opening="Ahoy!", closing="Cheers!", one_sentence=True)
    assert kept.dress("12. 7 plus 5 is 12.") == "Ahoy! 12. 7 plus 5 is 12. Cheers!"
    assert kept.dress("One. Two.") == "Ahoy! One. Cheers!"
    assert kept.dress("Red\nBlue") == "Ahoy!\nRed\nBlue\nCheers!"
    draw = Draw("styles")
    for made in (style(draw) for _ in range(500)):
        for asked in (made.name, made.opening, made.closing):
            assert asked in made.prompt
