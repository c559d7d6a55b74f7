"""Where a turn ends, what an unset field means, what is never generated, which keys are known."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.prompt.generation_config import HARMLESS, HONOURED, REFUSED
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from sapwood.scheduler.sampling import SamplingDefaults, SuppressedTokens
from tests.model.reference import copied, edit


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
        {"suppress_tokens": [1024]},
        {"suppress_tokens": [-1]},
        {"suppress_tokens": "541"},
        {"suppress_tokens": [[541]]},
        {"suppress_tokens": list(range(1024))},
        {"suppress_tokens": list(range(512)), "begin_suppress_tokens": list(range(512, 1024))},
        {"begin_suppress_tokens": [1024]},
        {"begin_suppress_tokens": [True]},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": "all"},
        {"max_length": 0},
        {"max_length": 10**400},
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
        ({"max_new_tokens": 7, "max_length": None}, SamplingDefaults(max_tokens=7)),
        ({"max_length": 10**30}, SamplingDefaults(total_tokens=int(1e30))),
    ],
)
def test_unset_sampling_fields_mean_what_the_model_says(
    generation: dict[str, Any], expected: SamplingDefaults, tmp_path: Path
) -> None:
    directory = copied("e2b-tiny", tmp_path)
    text = json.dumps({"eos_token_id": 1} | generation)
    (directory.path / "generation_config.json").write_text(text)
    assert load_tokenizer(directory, 1024).defaults == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, SuppressedTokens()),
        ({"suppress_tokens": None, "begin_suppress_tokens": []}, SuppressedTokens()),
        ({"suppress_tokens": [541, 565, 541]}, SuppressedTokens(frozenset({541, 565}))),
        (
            {"suppress_tokens": [3], "begin_suppress_tokens": [3, 4]},
            SuppressedTokens(frozenset({3}), frozenset({4})),
        ),
    ],
)
def test_what_is_never_generated(
    generation: dict[str, Any], expected: SuppressedTokens, tmp_path: Path
) -> None:
    directory = copied("e2b-tiny", tmp_path)
    (directory.path / "generation_config.json").write_text(json.dumps(generation))
    assert load_tokenizer(directory, 1024).suppressed == expected


def test_every_key_of_transformers_is_in_one_table() -> None:
    """One that a newer version adds shows here, and has to be thought of."""
    known = [*HONOURED, *HARMLESS, *REFUSED]
    assert len(known) == len(set(known))
    public = {key for key in vars(GenerationConfig()) if not key.startswith("_")}
    assert len(public) > 60 and public <= set(known)


# One value of each that transformers takes and that changes what it generates.
_CHANGES = {
    "assistant_ensemble_weight": 0.5,
    "bad_words_ids": [[541]],
    "constraints": [{}],
    "dola_layers": "high",
    "forced_decoder_ids": [[1, 541]],
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "exponential_decay_length_penalty": [5, 1.1],
    "force_words_ids": [[541]],
    "forced_bos_token_id": 2,
    "forced_eos_token_id": 1,
    "guidance_scale": 1.5,
    "max_time": 3.0,
    "min_length": 10,
    "min_new_tokens": 10,
    "no_repeat_ngram_size": 3,
    "num_beam_groups": 2,
    "num_beams": 4,
    "num_return_sequences": 2,
    "penalty_alpha": 0.6,
    "sequence_bias": [[[541], -10.0]],
    "stop_strings": ["x"],
    "token_healing": True,
    "top_h": 0.4,
    "typical_p": 0.9,
    "watermarking_config": {"bias": 2.5},
}
_NEUTRAL = {
    "bad_words_ids": [],
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0,
    "sequence_bias": {},
    "stop_strings": [],
    "token_healing": False,
    "typical_p": 1.0,
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_changes_replies_is_refused_by_name(key: str, tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    edit(directory, "generation_config.json", {key: _CHANGES[key]})
    problem = rf"/generation_config\.json: {key} is .*, which changes replies and is not supported$"
    with pytest.raises(ModelRefused, match=problem):
        load_tokenizer(directory, 1024)
    for neutral in (None, _NEUTRAL.get(key)):
        edit(directory, "generation_config.json", {key: neutral})
        load_tokenizer(directory, 1024)


def test_unknown_keys_are_warned_of_by_name_and_known_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = copied("e2b-tiny", tmp_path)
    harmless = dict.fromkeys(HARMLESS, "anything") | {"pad_token_id": 0}
    edit(directory, "generation_config.json", harmless | _NEUTRAL)
    with caplog.at_level(logging.WARNING):
        load_tokenizer(directory, 1024)
        assert not caplog.messages
        edit(directory, "generation_config.json", {"presence_penalty": 1.0, "a\x1b[31m": None})
        load_tokenizer(directory, 1024)
        edit(directory, "generation_config.json", {f"zz{i}": 1 for i in range(20)})
        load_tokenizer(directory, 1024)
    where = directory.path / "generation_config.json"
    named = f"{where}: unknown keys have no effect: 'a\\x1b[31m', 'presence_penalty'"
    assert caplog.messages[0] == named
    assert caplog.messages[1].startswith(named) and caplog.messages[1].endswith("and 14 more")
