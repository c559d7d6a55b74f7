"""What generation_config.json says: where a turn ends, and what unset sampling fields mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sapwood.model.checkpoint.config_file import check_special_ids, token_ids
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused, shown
from sapwood.scheduler.sampling import SamplingDefaults


def eos_ids(
    directory: ModelDirectory,
    generation: Mapping[str, Any],
    fallback: tuple[int, ...],
    vocabulary: int,
) -> frozenset[int]:
    """What ends a turn: these ids and `fallback`, which are config.json's.

    Raises ModelRefused where there is none, or one of these is not in [0, vocabulary).
    """
    place = f"{directory.path / 'generation_config.json'}: "
    check_special_ids(generation, place, vocabulary)
    where = f"{place}eos_token_id"
    value = generation.get("eos_token_id")
    ids = (*fallback, *(() if value is None else token_ids(value, where)))
    if not ids:
        raise ModelRefused(f"{where} is missing, and config.json has none")
    return frozenset(ids)


def sampling_defaults(directory: ModelDirectory, generation: Mapping[str, Any]) -> SamplingDefaults:
    """Without `do_sample` the model is greedy; the filters stay for a client that samples."""
    where = str(directory.path / "generation_config.json")

    def number(key: str, absent: float, low: float, high: float) -> float:
        value = generation.get(key)
        value = absent if value is None else value
        if type(value) not in (int, float) or not low <= value <= high:
            raise ModelRefused(f"{where}: {key} is {shown(value)}, not a number in [{low}, {high}]")
        return float(value)

    sampled = generation.get("do_sample")
    if sampled is not None and type(sampled) is not bool:
        raise ModelRefused(f"{where}: do_sample is {shown(sampled)}, not true or false")
    largest = math.nextafter(math.inf, 0.0)
    temperature = number("temperature", 1.0, 0.0, largest)
    top_k = number("top_k", 0.0, 0.0, 1 << 24)
    if not top_k.is_integer():
        raise ModelRefused(f"{where}: top_k is {top_k}, not a whole number")
    return SamplingDefaults(
        temperature=temperature if sampled else 0.0,
        top_k=int(top_k),
        top_p=number("top_p", 1.0, math.ulp(0.0), 1.0),
        min_p=number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1.0, math.ulp(0.0), largest),
    )
