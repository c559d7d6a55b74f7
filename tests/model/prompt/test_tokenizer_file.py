"""Reading a tokenizer: which tokens control, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from tests.chat import turns
from tests.model.prompt.loaded import DEMO_TARGET, loaded, vocabulary_edit, whole_encoder
from tests.model.reference import copied


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
    index = whole_encoder("e2b-tiny").token_to_id(marked)
    assert index is not None
    assert index not in tokenizer.encode_messages(turns(("user", marked)))[1:]
    assert index in tokenizer.encode_text(marked)
    assert tokenizer.decode([index]) == ""


def test_an_ordinary_added_token_is_text(tmp_path: Path) -> None:
    """Gemma adds line breaks and HTML tags to its vocabulary: contents use them as it does."""
    directory = copied("e2b-tiny", tmp_path)
    vocabulary_edit(directory, "<h1>")
    document = json.loads((directory.path / "tokenizer.json").read_text())
    flags = dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
    document["added_tokens"].insert(5, {"id": 5, "content": "<h1>"} | flags)
    (directory.path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = load_tokenizer(directory, 1024)
    assert 5 in tokenizer.encode_messages(turns(("user", "a<h1>b")))
    assert tokenizer.decode([5]) == "<h1>"


def test_a_template_that_builds_control_tokens_from_pieces_is_refused(tmp_path: Path) -> None:
    """They would reach the model as plain text: a prompt that it cannot read."""
    directory = copied("e2b-tiny", tmp_path)
    template = "{% for m in messages %}{{ '<|' ~ 'turn>' }}{{ m.content }}{% endfor %}"
    (directory.path / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelRefused, match=r"chat_template.jinja: builds control tokens"):
        load_tokenizer(directory, 1024)


def test_a_tokenizer_wider_than_the_logits_is_refused() -> None:
    assert len(loaded("demo").token_bytes) == 2048
    with pytest.raises(ModelRefused, match="reach 2047, the logits only 2046"):
        load_tokenizer(DEMO_TARGET, 2047)
    assert load_tokenizer(DEMO_TARGET, 2050).token_bytes[2047:][1:] == [b"", b""]


@pytest.mark.parametrize("damage", ["{", "{}", '{"added_tokens": [1]}', '{"added_tokens": []}'])
def test_a_broken_tokenizer_file_is_refused(damage: str, tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    (directory.path / "tokenizer.json").write_text(damage)
    with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
        load_tokenizer(directory, 1024)
