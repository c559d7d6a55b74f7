"""Where a turn ends, and what an unset sampling field means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from sapwood.scheduler.sampling import SamplingDefaults
from tests.model.reference import copied


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
