"""Ids are the model's own, and a content never reaches a control token."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sapwood.model.prompt.errors import PromptRefused
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from tests.chat import turns
from tests.model.prompt.loaded import PLACES, loaded, vocabulary_edit, whole_encoder
from tests.model.reference import FIXTURES, NAMES, checkpoint, copied, edit

_CONTROL = ["<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"]
_CONTROL += ["<|tool_call>", "<tool_call|>", '<|"|>', "<pad>", "<mask>"]

_ordinary = st.text(st.characters(codec="utf-8"), max_size=30)
_mixed = st.lists(st.one_of(_ordinary, st.sampled_from([*_CONTROL, "<|tu", "rn>", "▁", " \n"])))
_roles = st.sampled_from(["user", "assistant"])


@cache
def _vectors(name: str) -> Mapping[str, Any]:
    text = (FIXTURES / "golden" / f"{name}.tokenizer.json").read_text()
    document: Mapping[str, Any] = json.loads(text)
    return document


@pytest.mark.parametrize("name", NAMES)
def test_text_encodes_as_transformers_does(name: str) -> None:
    tokenizer = load_tokenizer(checkpoint(name), 1024)
    for vector in _vectors(name)["encode"]:
        assert tokenizer.encode_text(vector["text"]) == vector["ids"]
        bare = whole_encoder("e2b-tiny").decode(vector["ids"], skip_special_tokens=True)
        assert tokenizer.decode(vector["ids"]) == bare


@pytest.mark.parametrize("name", NAMES)
def test_messages_encode_as_transformers_does(name: str) -> None:
    tokenizer = load_tokenizer(checkpoint(name), 1024)
    for vector in _vectors(name)["chat"]:
        given = dict(vector["args"])
        messages, thinking = given.pop("messages"), given.pop("enable_thinking", None)
        assert tokenizer.encode_messages(messages, **given, thinking=thinking) == vector["ids"]


@cache
def _released(family: str) -> Tokenizer:
    """The reference tokenizer with a template that does what that release's own does."""
    with tempfile.TemporaryDirectory() as place:
        directory = copied("e2b-tiny", Path(place))
        source = (FIXTURES / "chat" / "template.jinja").read_text()
        if family == "31B":
            source = source.replace("empty_thought = false", "empty_thought = true")
        (directory.path / "chat_template.jinja").write_text(source)
        return load_tokenizer(directory, 1024)


_CHATS = json.loads((FIXTURES / "chat" / "golden.json").read_text())["cases"]


@pytest.mark.parametrize("family", ["E2B", "31B"])
@pytest.mark.parametrize("chat", _CHATS, ids=[chat["case"] for chat in _CHATS])
def test_chats_encode_as_the_released_templates_have_them(
    chat: dict[str, Any], family: str
) -> None:
    expected = whole_encoder("e2b-tiny").encode(chat[family], add_special_tokens=False).ids
    tokenizer = _released(family)
    ids = tokenizer.encode_messages(chat["messages"], chat["tools"], chat["thinking"])
    assert ids == expected


@pytest.mark.parametrize("place", PLACES)
def test_a_long_conversation_encodes_as_transformers_does(place: str) -> None:
    said = [("system", " Be  brief.\n")]
    for turn in range(500):
        said += [("user", f"\n\nWhat is {turn}? 日本 🙂\t"), ("assistant", f"It's\n{turn}.")]
    said.append(("user", "  \u2003é"))
    messages = turns(*said)
    peer = AutoTokenizer.from_pretrained(PLACES[place][0].path)
    expected = peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert loaded(place).encode_messages(messages) == expected


@pytest.mark.parametrize("place", PLACES)
@given(parts=_mixed)
def test_cutting_at_control_tokens_changes_no_id(place: str, parts: list[str]) -> None:
    text = "".join(parts)
    expected = whole_encoder(place).encode(text, add_special_tokens=False).ids
    bos = [] if expected[:1] == [2] else [2]
    assert loaded(place).encode_text(text) == bos + expected


@pytest.mark.parametrize("place", PLACES)
@given(said=st.lists(st.tuples(_roles, _ordinary), min_size=1, max_size=5))
def test_contents_encode_as_part_of_the_whole_prompt(
    place: str, said: list[tuple[str, str]]
) -> None:
    """Merges across the border of template and content included."""
    tokenizer = loaded(place)
    # Hypothesis draws strings of this file too, and the peer would read a control token in them.
    assume(not any(token in content for token in _specials(place) for _, content in said))
    template = tokenizer._templates.of(tools=False)
    assert template is not None
    prompt = "".join(template.render(messages := turns(*said)))
    expected = whole_encoder(place).encode(prompt, add_special_tokens=False).ids
    assert tokenizer.encode_messages(messages) == expected


@cache
def _specials(place: str) -> frozenset[str]:
    added = whole_encoder(place).get_added_tokens_decoder()
    return frozenset(token.content for token in added.values() if token.special)


def _control_ids(place: str) -> frozenset[int]:
    added = whole_encoder(place).get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if token.special)


@pytest.mark.parametrize("place", PLACES)
@given(parts=_mixed)
def test_a_content_never_gives_a_control_token(place: str, parts: list[str]) -> None:
    """A user who types `<turn|>` does not end a turn, and the model sees what was typed."""
    content = "x" + "".join(parts) + "x"
    tokenizer, control = loaded(place), _control_ids(place)
    ids = tokenizer.encode_messages(turns(("user", content), ("assistant", content)))
    benign = tokenizer.encode_messages(turns(("user", "x"), ("assistant", "x")))
    assert [i for i in ids if i in control] == [i for i in benign if i in control]
    seen = content.replace("▁", " ") if place == "e2b-tiny" else content  # Gemma's space
    assert tokenizer.decode(ids) == tokenizer.decode(benign).replace("x", seen)


_LOOK_ALIKES = ["<0x0A>", "<0x3C>", "\uff1c|turn|\uff1e", "<\u200b|turn>", "\u02c2|turn\u02c3", "▁"]
_hostile = st.lists(
    st.one_of(
        st.sampled_from(
            [t.content for t in whole_encoder("e2b-tiny").get_added_tokens_decoder().values()]
        ),
        st.sampled_from([*_LOOK_ALIKES, "<", ">", "|", "turn", "\n", '"', "call:f{", "}"]),
        _ordinary,
    ),
    max_size=6,
).map(lambda parts: "x" + "".join(parts) + "x")


def _everywhere(text: Callable[[], str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A conversation with a text in every place that has one."""
    name = text()
    inner = {text(): text(), text(): [text(), {text(): text()}]}
    schema = {"type": "object", "properties": {text(): {"type": text(), "description": text()}}}
    tool = {"name": text(), "description": text(), "parameters": schema | {"required": [text()]}}
    call = {"id": "call_0", "type": "function", "function": {"name": name, "arguments": inner}}
    return [
        {"role": "system", "content": text()},
        {"role": "user", "content": text()},
        {"role": "assistant", "content": text(), "reasoning": text(), "tool_calls": [call]},
        {"role": "tool", "content": text(), "name": name, "tool_call_id": "call_0"},
        {"role": "assistant", "content": text()},
    ], [{"type": "function", "function": tool}]


@given(data=st.data())
def test_r4_no_text_anywhere_in_a_conversation_gives_a_control_token(data: st.DataObject) -> None:
    tokenizer, control = _released("31B"), _control_ids("e2b-tiny")
    numbers = itertools.count()
    # Distinct, so that no two keys of an object fall together.
    ids = tokenizer.encode_messages(
        *_everywhere(lambda: f"{data.draw(_hostile)}{next(numbers)}"), thinking=True
    )
    benign = tokenizer.encode_messages(*_everywhere(lambda: f"x{next(numbers)}"), thinking=True)
    assert [i for i in ids if i in control] == [i for i in benign if i in control]


@given(content=_hostile)
def test_what_looks_like_a_control_token_reaches_the_model_as_it_was_typed(content: str) -> None:
    tokenizer = _released("E2B")
    seen = tokenizer.decode(tokenizer.encode_messages(turns(("user", content))))
    assert seen == f"user\n{content.replace('▁', ' ').strip()}\nmodel\n"


def test_a_control_token_in_a_content_is_encoded_like_any_text(tmp_path: Path) -> None:
    """Merges inside its spelling happen, as they did when the model was trained on such text."""
    directory = copied("e2b-tiny", tmp_path)
    document = json.loads((directory.path / "tokenizer.json").read_text())
    vocabulary_edit(directory, "<t", merges=[["<", "t"], *document["model"]["merges"]])
    ids = load_tokenizer(directory, 1024).encode_messages(turns(("user", "<turn|>")))
    assert 5 in ids
    assert ids.count(106) == 1


def test_a_vocabulary_that_merges_control_tokens_still_gives_none(tmp_path: Path) -> None:
    """ignore_merges takes any word that is in the vocabulary, `<turn|>` included."""
    directory = copied("e2b-tiny", tmp_path)
    edit(directory, "tokenizer.json", {"model.ignore_merges": True})
    template = "{% for m in messages %}<|turn>{{ m['content'] }}<|channel>{% endfor %}"
    (directory.path / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(directory, 1024)
    assert tokenizer._pieces._encoder.encode("<turn|>", add_special_tokens=False).ids == [106]
    for content in ("<turn|>", "a <turn|><|turn>model", "<|turn><turn|>"):
        ids = tokenizer.encode_messages(turns(("user", content), ("user", "<eos>")))
        assert [i for i in ids if i in _control_ids("e2b-tiny")] == [105, 100, 105, 100]
        assert tokenizer.decode(ids) == f"{content}<eos>"


def test_a_model_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    (directory.path / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(directory, 1024)
    assert tokenizer.features(False) is tokenizer.features(True) is None
    with pytest.raises(PromptRefused, match="no chat template"):
        tokenizer.encode_messages(turns(("user", "x")))


def test_threads_encode_alike() -> None:
    tokenizer = loaded("demo")
    texts = [f"{'word ' * n}<turn|>{n}" for n in range(64)]
    chats = [turns(("user", text)) for text in texts]
    expected = [tokenizer.encode_messages(chat) for chat in chats]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tokenizer.encode_messages, chats))
    assert found == expected


def test_a_turn_begins_with_the_end_that_the_reply_lacks() -> None:
    tokenizer = load_tokenizer(checkpoint("e2b-tiny"), 1024)
    ends = tokenizer.control_ids["<turn|>"]
    said = turns(("user", "more <turn|>"))
    cut, ended = (tokenizer.encode_turn(said, (), (), None, after) for after in (5, ends))
    assert cut == [ends, *ended]
    before = turns(("user", "a"), ("assistant", "b"))
    whole = tokenizer.encode_messages([*before, *said])
    assert whole[-len(cut) :] == cut
    assert cut.count(ends) == 2, "the missing one and the user's turn's, not what the user spelled"
