"""BOS is what transformers puts before a text wherever it is spelled, and eos_token ends a turn."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sapwood.model.checkpoint.config_file import read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from tests.chat import turns
from tests.model.reference import copied, edit

SETTINGS, MAP = "tokenizer_config.json", "special_tokens_map.json"
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
HI = [547, 480, 464]


def changed(
    place: Path, settings: Mapping[str, Any] | None, special: Mapping[str, Any] | None = None
) -> ModelDirectory:
    """settings: keys of tokenizer_config.json to change, None: no such file; special: the map."""
    directory = copied("12b-tiny", place)
    if settings is None:
        (directory.path / SETTINGS).unlink()
    else:
        edit(directory, SETTINGS, settings)
    if special is not None:
        (directory.path / MAP).write_text(json.dumps(special))
    return directory


def read(directory: ModelDirectory) -> Tokenizer:
    config = read_target_config(directory)
    return load_tokenizer(directory, 1024, config.eos_token_ids, config.bos_token_ids)


@pytest.mark.parametrize(
    ("settings", "special"),
    [
        ({}, None),
        ({"bos_token": ...}, None),
        ({"bos_token": None}, None),
        ({"bos_token": ""}, None),
        (None, None),
        (None, {"bos_token": "<bos>"}),
        ({"bos_token": ...}, {"bos_token": "<bos>"}),
        ({"bos_token": ...}, {"bos_token": {"content": "<bos>", "lstrip": False}}),
        ({"bos_token": ...} | FAST, None),
        ({"bos_token": None} | FAST, None),
        ({"bos_token": ..., "add_bos_token": ...} | FAST, None),
        ({"bos_token": ...} | FAST, {"bos_token": "<bos>"}),
        ({"bos_token": ..., "tokenizer_class": ...}, None),
        ({"add_bos_token": False}, None),
        ({"bos_token": "<pad>"}, None),  # the post-processor says otherwise
    ],
)
def test_a_text_begins_as_in_transformers(
    settings: Mapping[str, Any] | None, special: Mapping[str, Any] | None, tmp_path: Path
) -> None:
    directory = changed(tmp_path, settings, special)
    expected = AutoTokenizer.from_pretrained(str(directory.path)).encode("hi there")
    assert expected == [2, *HI]
    tokenizer = read(directory)
    assert tokenizer.encode_text("hi there") == expected
    assert tokenizer.encode_text("<bos>hi there") == expected, "once is enough"


@pytest.mark.parametrize("settings", [{"bos_token": ...}, {"bos_token": None} | FAST, None])
def test_a_conversation_begins_with_it_where_nobody_spells_the_name(
    settings: Mapping[str, Any] | None, tmp_path: Path
) -> None:
    ids = read(changed(tmp_path, settings)).encode_messages(turns(("user", "x")))
    assert ids[:2] == [2, 105] and ids.count(2) == 1


def test_the_map_overrides_and_is_not_read_where_the_added_tokens_are_listed(
    tmp_path: Path,
) -> None:
    """As in transformers; it shows in the template, whose bos_token is the named one."""
    special = {"bos_token": "<mask>"}
    directory = changed(tmp_path, {}, special)
    assert read(directory).encode_messages(turns(("user", "x")))[0] == 4
    own = {"0": {"content": "<pad>", "special": True}}
    edit(directory, SETTINGS, {"added_tokens_decoder": own})
    assert read(directory).encode_messages(turns(("user", "x")))[0] == 2
    (directory.path / MAP).write_text("[]")
    read(directory)
    edit(directory, SETTINGS, {"added_tokens_decoder": ...})
    with pytest.raises(ModelRefused, match=r"special_tokens_map\.json: is not a JSON object"):
        read(directory)


@pytest.mark.parametrize(
    ("post_processor", "first"),
    [
        (None, 2),
        ({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}, 2),
        ({"type": "BertProcessing", "sep": ["<eos>", 1], "cls": ["<pad>", 0]}, 0),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": 7}]}, 2),
        (
            {
                "type": "Sequence",
                "processors": [
                    {"type": "ByteLevel"},
                    {"type": "RobertaProcessing", "sep": ["<eos>", 1], "cls": ["<mask>", 4]},
                ],
            },
            4,
        ),
        ({"type": "BertProcessing", "sep": ["<eos>", 1], "cls": ["[CLS]", 7]}, 2),  # no token
        ([1], 2),
    ],
)
def test_the_post_processor_comes_first_and_the_named_token_next(
    post_processor: Any, first: int, tmp_path: Path
) -> None:
    directory = copied("12b-tiny", tmp_path)
    edit(directory, "tokenizer.json", {"post_processor": post_processor})
    assert read(directory).encode_text("hi there") == [first, *HI]


def test_without_a_name_the_ids_of_the_config_files_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """generation_config.json before config.json; when nothing says it, that is said by name."""
    directory = changed(tmp_path, {"bos_token": ...} | FAST)
    edit(directory, "tokenizer.json", {"post_processor": None})
    with caplog.at_level(logging.WARNING):
        assert read(directory).encode_text("hi there") == [2, *HI]
        edit(directory, "generation_config.json", {"bos_token_id": 4})
        assert read(directory).encode_text("hi there") == [4, *HI]
        assert read(directory).encode_messages(turns(("user", "x")))[:2] == [4, 105]
        edit(directory, "generation_config.json", {"bos_token_id": 5})  # no added token
        assert read(directory).encode_text("hi there") == [5, *HI]
        edit(directory, "generation_config.json", {"bos_token_id": None})
        assert read(directory).encode_text("hi there") == [2, *HI]
        assert not caplog.messages
        assert load_tokenizer(directory, 1024).encode_text("hi there") == HI
    assert caplog.messages == [
        f"{directory.path}: no file names a BOS token, so texts begin without one"
    ]


@pytest.mark.parametrize("file", [SETTINGS, MAP])
def test_a_bos_that_is_no_token_is_refused(file: str, tmp_path: Path) -> None:
    directory = changed(tmp_path, {}, {"eos_token": "<eos>"})
    edit(directory, file, {"bos_token": "<start>"})
    problem = rf"{file}: bos_token is '<start>', which is not in the vocabulary"
    with pytest.raises(ModelRefused, match=problem):
        read(directory)


@pytest.mark.parametrize(
    ("settings", "special", "expected"),
    [
        ({"eos_token": "<turn|>"}, None, {106}),
        ({"eos_token": {"content": "<turn|>"}}, None, {106}),
        ({"eos_token": ...}, {"eos_token": "<turn|>"}, {106}),
        ({"eos_token": ...}, None, {1}),  # what Gemma's class has
        (None, {"eos_token": "<turn|>"}, {106}),
    ],
)
def test_eos_token_ends_a_turn(
    settings: Mapping[str, Any] | None,
    special: Mapping[str, Any] | None,
    expected: set[int],
    tmp_path: Path,
) -> None:
    """As in mlx-lm: beside the ids of the config files, and without any."""
    directory = changed(tmp_path, settings, special)
    assert load_tokenizer(directory, 1024, (50,)).eos_token_ids == expected | {1, 50, 106}
    (directory.path / "generation_config.json").unlink()
    assert load_tokenizer(directory, 1024).eos_token_ids == expected
    assert load_tokenizer(directory, 1024, (50,)).eos_token_ids == expected | {50}


def test_an_eos_that_is_no_token_is_warned_of_and_none_at_all_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = changed(tmp_path, {"eos_token": "</s>"})
    with caplog.at_level(logging.WARNING):
        assert load_tokenizer(directory, 1024).eos_token_ids == {1, 106}
    assert caplog.messages == [
        f"{directory.path}: eos_token is '</s>', which is not in the vocabulary, so it ends nothing"
    ]
    edit(directory, SETTINGS, {"eos_token": None})
    (directory.path / "generation_config.json").write_text("{}")
    with pytest.raises(ModelRefused, match=r"generation_config\.json: eos_token_id is missing"):
        load_tokenizer(directory, 1024)
