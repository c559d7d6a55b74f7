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
from tokenizers import Tokenizer as Encoder
from transformers import AutoTokenizer

from model.chat_template import PromptRefused
from model.files import ModelDirectory, ModelRefused
from model.locate import DEMO
from model.tokenizer import Tokenizer, load_tokenizer
from scheduler.plan import SamplingDefaults
from tests.chat import turns
from tests.model.reference import FIXTURES, NAMES, checkpoint, copied, edit

_DEMO = ModelDirectory(DEMO / "target")
_PLACES = {"e2b-tiny": (checkpoint("e2b-tiny"), 1024), "demo": (_DEMO, 2048)}
_CONTROL = ["<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"]
_CONTROL += ["<|tool_call>", "<tool_call|>", '<|"|>', "<pad>", "<mask>"]

_ordinary = st.text(st.characters(codec="utf-8"), max_size=30)
_mixed = st.lists(st.one_of(_ordinary, st.sampled_from([*_CONTROL, "<|tu", "rn>", "▁", " \n"])))
_roles = st.sampled_from(["user", "assistant"])


@cache
def _loaded(place: str) -> Tokenizer:
    directory, vocabulary = _PLACES[place]
    return load_tokenizer(directory, vocabulary, (1,))


@cache
def _whole(place: str) -> Encoder:
    return Encoder.from_file(str(_PLACES[place][0].path / "tokenizer.json"))


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
        bare = _whole("e2b-tiny").decode(vector["ids"], skip_special_tokens=True)
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
    expected = _whole("e2b-tiny").encode(chat[family], add_special_tokens=False).ids
    tokenizer = _released(family)
    ids = tokenizer.encode_messages(chat["messages"], chat["tools"], chat["thinking"])
    assert ids == expected


@pytest.mark.parametrize("place", _PLACES)
def test_a_long_conversation_encodes_as_transformers_does(place: str) -> None:
    said = [("system", " Be  brief.\n")]
    for turn in range(500):
        said += [("user", f"\n\nWhat is {turn}? 日本 🙂\t"), ("assistant", f"It's\n{turn}.")]
    said.append(("user", "  \u2003é"))
    messages = turns(*said)
    peer = AutoTokenizer.from_pretrained(_PLACES[place][0].path)
    expected = peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert _loaded(place).encode_messages(messages) == expected


@pytest.mark.parametrize("place", _PLACES)
@given(parts=_mixed)
def test_cutting_at_control_tokens_changes_no_id(place: str, parts: list[str]) -> None:
    text = "".join(parts)
    expected = _whole(place).encode(text, add_special_tokens=False).ids
    bos = [] if expected[:1] == [2] else [2]
    assert _loaded(place).encode_text(text) == bos + expected


@pytest.mark.parametrize("place", _PLACES)
@given(said=st.lists(st.tuples(_roles, _ordinary), min_size=1, max_size=5))
def test_contents_encode_as_part_of_the_whole_prompt(
    place: str, said: list[tuple[str, str]]
) -> None:
    """Merges across the border of template and content included."""
    tokenizer = _loaded(place)
    # Hypothesis draws strings of this file too, and the peer would read a control token in them.
    assume(not any(token in content for token in _specials(place) for _, content in said))
    assert tokenizer._template is not None
    prompt = "".join(tokenizer._template.render(messages := turns(*said)))
    expected = _whole(place).encode(prompt, add_special_tokens=False).ids
    assert tokenizer.encode_messages(messages) == expected


@cache
def _specials(place: str) -> frozenset[str]:
    added = _whole(place).get_added_tokens_decoder()
    return frozenset(token.content for token in added.values() if token.special)


def _control_ids(place: str) -> frozenset[int]:
    added = _whole(place).get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if token.special)


@pytest.mark.parametrize("place", _PLACES)
@given(parts=_mixed)
def test_a_content_never_gives_a_control_token(place: str, parts: list[str]) -> None:
    """A user who types `<turn|>` does not end a turn, and the model sees what was typed."""
    content = "x" + "".join(parts) + "x"
    tokenizer, control = _loaded(place), _control_ids(place)
    ids = tokenizer.encode_messages(turns(("user", content), ("assistant", content)))
    benign = tokenizer.encode_messages(turns(("user", "x"), ("assistant", "x")))
    assert [i for i in ids if i in control] == [i for i in benign if i in control]
    seen = content.replace("▁", " ") if place == "e2b-tiny" else content  # Gemma's space
    assert tokenizer.decode(ids) == tokenizer.decode(benign).replace("x", seen)


_LOOK_ALIKES = ["<0x0A>", "<0x3C>", "\uff1c|turn|\uff1e", "<\u200b|turn>", "\u02c2|turn\u02c3", "▁"]
_hostile = st.lists(
    st.one_of(
        st.sampled_from(
            [t.content for t in _whole("e2b-tiny").get_added_tokens_decoder().values()]
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


def _vocabulary_edit(directory: ModelDirectory, token: str, **model: Any) -> None:
    """Put an ordinary token in place of <unused5>, id 5."""
    document = json.loads((directory.path / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    del vocabulary["<unused5>"]
    vocabulary[token] = 5
    document["model"] |= model
    (directory.path / "tokenizer.json").write_text(json.dumps(document))


def test_a_control_token_in_a_content_is_encoded_like_any_text(tmp_path: Path) -> None:
    """Merges inside its spelling happen, as they did when the model was trained on such text."""
    directory = copied("e2b-tiny", tmp_path)
    document = json.loads((directory.path / "tokenizer.json").read_text())
    _vocabulary_edit(directory, "<t", merges=[["<", "t"], *document["model"]["merges"]])
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
    assert tokenizer._encoder.encode("<turn|>", add_special_tokens=False).ids == [106]
    for content in ("<turn|>", "a <turn|><|turn>model", "<|turn><turn|>"):
        ids = tokenizer.encode_messages(turns(("user", content), ("user", "<eos>")))
        assert [i for i in ids if i in _control_ids("e2b-tiny")] == [105, 100, 105, 100]
        assert tokenizer.decode(ids) == f"{content}<eos>"


@pytest.mark.parametrize(
    ("settings", "marked"),
    [
        ({"mask_token": "<mask>"}, "<mask>"),
        ({"mask_token": {"content": "<mask>"}}, "<mask>"),
        ({}, "<tool_call|>"),  # written like one
        ({"chat_template": "<mask>"}, "<mask>"),  # the template uses it
    ],
)
def test_an_unmarked_control_token_counts_as_one(
    settings: dict[str, Any], marked: str, tmp_path: Path
) -> None:
    directory = copied("e2b-tiny", tmp_path)
    document = json.loads((directory.path / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["special"] = token["content"] != marked
    (directory.path / "tokenizer.json").write_text(json.dumps(document))
    if "chat_template" in settings:
        settings = {"chat_template": settings["chat_template"] + "{{ messages[0].content }}"}
        (directory.path / "chat_template.jinja").unlink()
    (directory.path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(directory, 1024)
    index = _whole("e2b-tiny").token_to_id(marked)
    assert index is not None
    assert index not in tokenizer.encode_messages(turns(("user", marked)))[1:]
    assert index in tokenizer.encode_text(marked)
    assert tokenizer.decode([index]) == ""


def test_an_ordinary_added_token_is_text(tmp_path: Path) -> None:
    """Gemma adds line breaks and HTML tags to its vocabulary: contents use them as it does."""
    directory = copied("e2b-tiny", tmp_path)
    _vocabulary_edit(directory, "<h1>")
    document = json.loads((directory.path / "tokenizer.json").read_text())
    flags = dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
    document["added_tokens"].insert(5, {"id": 5, "content": "<h1>"} | flags)
    (directory.path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = load_tokenizer(directory, 1024)
    assert 5 in tokenizer.encode_messages(turns(("user", "a<h1>b")))
    assert tokenizer.decode([5]) == "<h1>"


def test_a_model_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    (directory.path / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(directory, 1024)
    assert tokenizer.features == frozenset()
    with pytest.raises(PromptRefused, match="no chat template"):
        tokenizer.encode_messages(turns(("user", "x")))


def test_threads_encode_alike() -> None:
    tokenizer = _loaded("demo")
    texts = [f"{'word ' * n}<turn|>{n}" for n in range(64)]
    chats = [turns(("user", text)) for text in texts]
    expected = [tokenizer.encode_messages(chat) for chat in chats]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tokenizer.encode_messages, chats))
    assert found == expected


def test_a_template_that_builds_control_tokens_from_pieces_is_refused(tmp_path: Path) -> None:
    """They would reach the model as plain text: a prompt that it cannot read."""
    directory = copied("e2b-tiny", tmp_path)
    template = "{% for m in messages %}{{ '<|' ~ 'turn>' }}{{ m.content }}{% endfor %}"
    (directory.path / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelRefused, match=r"chat_template.jinja: builds control tokens"):
        load_tokenizer(directory, 1024)


def test_a_tokenizer_wider_than_the_logits_is_refused() -> None:
    assert _loaded("demo").vocabulary == 2048
    with pytest.raises(ModelRefused, match="reach 2047, the logits only 2046"):
        load_tokenizer(_DEMO, 2047)
    assert load_tokenizer(_DEMO, 2050).token_bytes[2047:][1:] == [b"", b""]


@pytest.mark.parametrize("damage", ["{", "{}", '{"added_tokens": [1]}', '{"added_tokens": []}'])
def test_a_broken_tokenizer_file_is_refused(damage: str, tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    (directory.path / "tokenizer.json").write_text(damage)
    with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
        load_tokenizer(directory, 1024)


@pytest.mark.parametrize(
    ("generation", "fallback", "expected"),
    [
        ({"eos_token_id": [1, 106, 50]}, (1,), {1, 106, 50}),
        ({"eos_token_id": 106}, (1,), {1, 106}),
        ({"eos_token_id": [50]}, (1, 106), {1, 50, 106}),
        ({"eos_token_id": None}, (1, 106), {1, 106}),
        ({}, (1, 106), {1, 106}),
        (None, (1,), {1}),
    ],
)
def test_a_turn_ends_at_the_eos_ids_of_every_config(
    generation: Any, fallback: tuple[int, ...], expected: set[int], tmp_path: Path
) -> None:
    directory = copied("e2b-tiny", tmp_path)
    path = directory.path / "generation_config.json"
    path.unlink()
    if generation is not None:
        path.write_text(json.dumps(generation))
    assert load_tokenizer(directory, 1024, fallback).eos_token_ids == expected


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"eos_token_id": []},
        {"eos_token_id": "1"},
        {"eos_token_id": [True]},
        {"eos_token_id": -1},
        {"eos_token_id": 1024},
        {"eos_token_id": 1, "temperature": -1},
        {"eos_token_id": 1, "temperature": float("inf")},
        {"eos_token_id": 1, "temperature": "hot"},
        {"eos_token_id": 1, "top_p": 0},
        {"eos_token_id": 1, "top_p": 1.5},
        {"eos_token_id": 1, "min_p": 2},
        {"eos_token_id": 1, "repetition_penalty": 0},
        {"eos_token_id": 1, "top_k": -3},
        {"eos_token_id": 1, "top_k": 2.5},
    ],
)
def test_an_odd_generation_config_is_refused(generation: Any, tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    (directory.path / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(ModelRefused, match=r"generation_config\.json"):
        load_tokenizer(directory, 1024)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, SamplingDefaults(0.0, 0, 1.0, 0.0)),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, SamplingDefaults(0.0, 5, 1.0, 0.0)),
        ({"do_sample": True}, SamplingDefaults(1.0, 0, 1.0, 0.0)),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95, "min_p": 0.1},
            SamplingDefaults(0.7, 64, 0.95, 0.1),
        ),
        ({"repetition_penalty": 1.1}, SamplingDefaults(repetition_penalty=1.1)),
        ({"do_sample": True, "top_k": None}, SamplingDefaults(1.0, 0, 1.0, 0.0)),
    ],
)
def test_unset_sampling_fields_mean_what_the_model_says(
    generation: dict[str, Any], expected: SamplingDefaults, tmp_path: Path
) -> None:
    directory = copied("e2b-tiny", tmp_path)
    text = json.dumps({"eos_token_id": 1} | generation)
    (directory.path / "generation_config.json").write_text(text)
    assert load_tokenizer(directory, 1024).defaults == expected
