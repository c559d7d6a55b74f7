"""What a GenerateRequest may ask for: fields by name, values by range.

- Unset fields mean the model's defaults; a value out of range is refused, never clipped.
- What the contract names but the daemon does not do yet is refused by field name, never ignored.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import Sampling, SamplingDefaults
from sapwood.v1 import generation_pb2 as pb


def checked_sampling(
    given: pb.Sampling, defaults: SamplingDefaults, vocabulary: int, limits: Limits
) -> Sampling:
    """One request's sampler: unset fields from the defaults, values out of range BAD_SAMPLING.

    A top_k that keeps the whole vocabulary is off.
    """
    temperature = given.temperature if given.HasField("temperature") else defaults.temperature
    top_k = given.top_k if given.HasField("top_k") else defaults.top_k
    top_p = given.top_p if given.HasField("top_p") else defaults.top_p
    min_p = given.min_p if given.HasField("min_p") else defaults.min_p
    repetition = defaults.repetition_penalty
    if given.HasField("repetition_penalty"):
        repetition = given.repetition_penalty
    presence, frequency, most = given.presence_penalty, given.frequency_penalty, limits.penalty_max
    # Comparisons with NaN are false, so every bound is written as what must hold.
    checks = (
        ("temperature", math.isfinite(temperature) and temperature >= 0, "finite and at least 0"),
        ("top_p", 0 < top_p <= 1, "in (0, 1]"),
        ("min_p", 0 <= min_p <= 1, "in [0, 1]"),
        (
            "repetition_penalty",
            math.isfinite(repetition) and repetition > 0,
            "finite and more than 0",
        ),
        ("presence_penalty", -most <= presence <= most, f"in [-{most:g}, {most:g}]"),
        ("frequency_penalty", -most <= frequency <= most, f"in [-{most:g}, {most:g}]"),
    )
    for name, holds, rule in checks:
        if not holds:
            raise Refused(Reason.BAD_SAMPLING, f"{name} must be {rule}", field=f"sampling.{name}")
    seeded = given.HasField("seed")
    noise_key = given.seed if seeded else int.from_bytes(os.urandom(8))
    return Sampling(
        temperature=temperature,
        top_k=top_k if top_k < vocabulary else 0,
        top_p=top_p,
        min_p=min_p,
        seeded=seeded,
        noise_key=noise_key,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=_checked_bias(given.logit_bias, vocabulary, limits),
    )


def _checked_bias(
    given: Mapping[int, float], vocabulary: int, limits: Limits
) -> tuple[tuple[int, float], ...]:
    """By id; what adds nothing is left out."""
    field, most = "sampling.logit_bias", limits.logit_bias_max
    if len(given) > limits.logit_bias_tokens_max:
        problem = f"logit_bias names at most {limits.logit_bias_tokens_max} tokens"
        raise Refused(Reason.BAD_SAMPLING, problem, field=field)
    if given and max(given) >= vocabulary:
        problem = f"token ids are below {vocabulary}, the vocabulary's size"
        raise Refused(Reason.BAD_TOKEN_ID, problem, field=field)
    if not all(-most <= bias <= most for bias in given.values()):
        problem = f"every logit_bias must be in [-{most:g}, {most:g}]"
        raise Refused(Reason.BAD_SAMPLING, problem, field=field)
    return tuple(sorted((id, bias) for id, bias in given.items() if bias))


def check_supported(request: pb.GenerateRequest) -> None:
    """Refuse what is in the contract but not built yet, by the field's name."""
    if request.priority not in pb.Priority.values():
        raise Refused(Reason.BAD_REQUEST, "there is no such priority", field="priority")
    unsupported = {
        "session": bool(request.session),
        "cache.mark": request.cache.mark,
        "priority": request.priority != pb.PRIORITY_UNSPECIFIED,
        "candidates": request.candidates > 1,
        request.WhichOneof("constraint") or "": request.WhichOneof("constraint") is not None,
    }
    for field, is_set in unsupported.items():
        if is_set:
            raise unsupported_field(field)


def unsupported_field(field: str) -> Refused:
    return Refused(Reason.UNSUPPORTED, f"{field} is not supported yet", field=field)
