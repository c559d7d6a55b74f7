"""What generation_config.json says: ends of a turn, defaults of requests, tokens never generated.

- Every key that transformers has is in one of three closed tables: honoured, harmless (it changes
  no token of a reply), or refused by name unless its value is the one that does nothing.
- A key in none of them is warned of by name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused, shown
from sapwood.model.checkpoint.special_ids import check_special_ids, token_ids
from sapwood.scheduler.sampling import SamplingDefaults, SuppressedTokens

_log = logging.getLogger(__name__)

FILE = "generation_config.json"
HONOURED = frozenset(
    {
        *("bos_token_id", "eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
        *("max_new_tokens", "max_length"),
    }
)
# What is not used here, or how something is computed, kept and returned.
HARMLESS = frozenset(
    {
        *("transformers_version", "_from_model_config", "_commit_hash", "pad_token_id"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len"),
        *("return_legacy_cache", "return_dict_in_generate", "output_attentions"),
        *("output_hidden_states", "output_scores", "output_logits"),
        *("compile_config", "disable_compile", "low_memory", "prefill_chunk_size"),
        *("continuous_batching_config", "remove_invalid_values", "renormalize_logits"),
        # Of drafting, which changes no reply here.
        *("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        "speculation_type",
        # Of searches over beams, which `num_beams` asks for, and of encoders with decoders.
        *("early_stopping", "length_penalty", "diversity_penalty", "decoder_start_token_id"),
    }
)
# Each with the values that change nothing; null never does.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "assistant_ensemble_weight": (),
    "bad_words_ids": ([],),
    "constraints": ([],),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_decoder_ids": ([],),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}
_NAMED_MAX = 8  # unknown keys that one warning names


@dataclass(frozen=True, slots=True)
class Generation:
    """The file, read. bos_ids, eos_ids: () where it names none."""

    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    defaults: SamplingDefaults
    suppressed: SuppressedTokens


def read_generation(
    directory: ModelDirectory, generation: Mapping[str, Any], vocabulary: int
) -> Generation:
    """Raises ModelRefused; warns of keys that nobody knows. vocabulary: the width of the logits."""
    where = str(directory.path / FILE)
    check_special_ids(generation, f"{where}: ", vocabulary)
    _check_keys(generation, where)
    return Generation(
        bos_ids=_ids(generation, "bos_token_id", where),
        eos_ids=_ids(generation, "eos_token_id", where),
        defaults=_sampling_defaults(generation, where),
        suppressed=_suppressed(generation, where, vocabulary),
    )


def _check_keys(generation: Mapping[str, Any], where: str) -> None:
    for key, neutral in REFUSED.items():
        value = generation.get(key)
        if value is not None and value not in neutral:
            raise ModelRefused(
                f"{where}: {key} is {shown(value)}, which changes replies and is not supported"
            )
    unknown = sorted(generation.keys() - HONOURED - HARMLESS - REFUSED.keys())
    if unknown:
        named = ", ".join(map(shown, unknown[:_NAMED_MAX]))
        more = f" and {len(unknown) - _NAMED_MAX} more" if len(unknown) > _NAMED_MAX else ""
        _log.warning("%s: unknown keys have no effect: %s%s", where, named, more)


def _ids(generation: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    value = generation.get(key)
    return () if value is None else token_ids(value, f"{where}: {key}")


def _suppressed(generation: Mapping[str, Any], where: str, vocabulary: int) -> SuppressedTokens:
    def listed(key: str) -> frozenset[int]:
        if generation.get(key) == []:
            return frozenset()
        ids = _ids(generation, key, where)
        if max(ids, default=-1) >= vocabulary:
            raise ModelRefused(
                f"{where}: {key} has {max(ids)}, the logits reach only {vocabulary - 1}"
            )
        return frozenset(ids)

    always, first = listed("suppress_tokens"), listed("begin_suppress_tokens")
    if len(always | first) == vocabulary:
        raise ModelRefused(f"{where}: suppress_tokens and begin_suppress_tokens leave no token")
    return SuppressedTokens(always, first - always)


def _sampling_defaults(generation: Mapping[str, Any], where: str) -> SamplingDefaults:
    """Without `do_sample` the model is greedy; the filters stay for a client that samples."""

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

    def whole(key: str, low: float, high: float) -> int:
        value = number(key, low, low, high)
        if not value.is_integer():
            raise ModelRefused(f"{where}: {key} is {value}, not a whole number")
        return int(value)

    def tokens(key: str) -> int | None:
        return None if generation.get(key) is None else whole(key, 1.0, largest)

    temperature = number("temperature", 1.0, 0.0, largest)
    return SamplingDefaults(
        temperature=temperature if sampled else 0.0,
        top_k=whole("top_k", 0.0, 1 << 24),
        top_p=number("top_p", 1.0, math.ulp(0.0), 1.0),
        min_p=number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1.0, math.ulp(0.0), largest),
        max_tokens=tokens("max_new_tokens"),
        total_tokens=tokens("max_length"),
    )
