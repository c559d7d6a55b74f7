"""What a request may ask for: one table of rules per message, read from the top.

- A rule says what must hold, of which field, and what is said where it does not. Bounds are those
  of the limits and the loaded model; the first rule that does not hold refuses the request.
- A value out of range is refused, never clipped. Comparisons with NaN are false, so every rule is
  written as what must hold.
- Rules cost no more than a look at what has already been received.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from google.protobuf import duration_pb2

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import Sampling, SamplingDefaults
from sapwood.v1 import cache_pb2, session_pb2
from sapwood.v1 import generation_pb2 as pb

_M = TypeVar("_M")
_Default = Literal["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]


class Bounds(NamedTuple):
    """What rules compare with."""

    limits: Limits
    facts: ModelFacts
    media_token_ids: frozenset[int] = frozenset()

    def known(self, ids: Sequence[int]) -> bool:
        """Whether all ids are of the model's vocabulary."""
        return not ids or max(ids) < self.facts.vocabulary


@dataclass(frozen=True, slots=True)
class Rule(Generic[_M]):
    """`field` and `problem` are format strings over {limits.…}, {facts.…} and {message.…}."""

    field: str
    reason: Reason
    holds: Callable[[_M, Bounds], bool]
    problem: str

    def refusal(self, message: _M, bounds: Bounds) -> Refused:
        """What a message that breaks the rule is told; made, not raised."""
        values = {"limits": bounds.limits, "facts": bounds.facts, "message": message}
        problem, field = self.problem.format(**values), self.field.format(**values)
        return Refused(self.reason, problem, field=field)


def check(message: _M, rules: Sequence[Rule[_M]], bounds: Bounds) -> None:
    """Raises Refused for the first rule that does not hold."""
    for rule in rules:
        if not rule.holds(message, bounds):
            raise rule.refusal(message, bounds)


def unsupported(field: str) -> Refused:
    """The refusal of a field that the loaded model cannot serve."""
    return Refused(Reason.UNSUPPORTED, f"{field} is not supported by what is loaded", field=field)


_UNKNOWN_ID = "token ids are below {facts.vocabulary}, the vocabulary's size"


GENERATE_RULES: tuple[Rule[pb.GenerateRequest], ...] = (
    Rule(
        "priority",
        Reason.BAD_REQUEST,
        lambda r, _: r.priority in pb.Priority.values(),
        "there is no such priority",
    ),
    Rule(
        "deadline_policy",
        Reason.BAD_REQUEST,
        lambda r, _: r.deadline_policy in pb.DeadlinePolicy.values(),
        "there is no such deadline_policy",
    ),
    Rule(
        "candidates",
        Reason.BAD_REQUEST,
        lambda r, _: r.candidates <= 1 or not r.session,
        "a session goes on with one reply",
    ),
    Rule(
        "cache.bypass",
        Reason.BAD_REQUEST,
        lambda r, _: not (r.session and r.cache.bypass),
        "a session lives in the cache",
    ),
    Rule(
        "cache.store_reply",
        Reason.BAD_REQUEST,
        lambda r, _: not (r.session and _forgets_reply(r.cache)),
        "a session keeps its replies",
    ),
    Rule(
        "cache.mark",
        Reason.BAD_REQUEST,
        lambda r, _: not (r.cache.bypass and r.cache.mark),
        "what bypasses the cache leaves nothing in it",
    ),
    Rule(
        "candidates",
        Reason.BAD_REQUEST,
        lambda r, b: r.candidates <= b.limits.candidates_max,
        "candidates is at most {limits.candidates_max}",
    ),
    Rule(
        "stop",
        Reason.BAD_REQUEST,
        lambda r, b: len(r.stop) <= b.limits.stop_strings_max,
        "at most {limits.stop_strings_max} stop strings",
    ),
    Rule(
        "stop",
        Reason.BAD_REQUEST,
        lambda r, b: all(
            1 <= len(stop.encode()) <= b.limits.stop_string_bytes_max for stop in r.stop
        ),
        "a stop string has 1 to {limits.stop_string_bytes_max} bytes",
    ),
    Rule(
        "stop_token_ids",
        Reason.BAD_REQUEST,
        lambda r, b: len(r.stop_token_ids) <= b.limits.stop_token_ids_max,
        "at most {limits.stop_token_ids_max} stop token ids",
    ),
    Rule(
        "stop_token_ids",
        Reason.BAD_TOKEN_ID,
        lambda r, b: b.known(r.stop_token_ids),
        _UNKNOWN_ID,
    ),
    Rule(
        "draft_tokens",
        Reason.BAD_SAMPLING,
        lambda r, b: r.draft_tokens <= b.limits.usual_depth_max,
        "draft_tokens is at most {limits.usual_depth_max}",
    ),
    Rule(
        "draft_tokens",
        Reason.NO_DRAFTER,
        lambda r, b: not r.draft_tokens or b.facts.has_drafter,
        "no drafter is loaded",
    ),
    Rule(
        "top_logprobs",
        Reason.BAD_REQUEST,
        lambda r, b: r.top_logprobs <= b.limits.top_logprobs_max,
        "top_logprobs is at most {limits.top_logprobs_max}",
    ),
    Rule(
        "prompt_logprobs",
        Reason.BAD_REQUEST,
        lambda r, b: r.prompt_logprobs <= b.limits.top_logprobs_max,
        "prompt_logprobs is at most {limits.top_logprobs_max}",
    ),
    Rule(
        "sampling.logit_bias",
        Reason.BAD_SAMPLING,
        lambda r, b: len(r.sampling.logit_bias) <= b.limits.logit_bias_tokens_max,
        "logit_bias names at most {limits.logit_bias_tokens_max} tokens",
    ),
    Rule(
        "sampling.logit_bias",
        Reason.BAD_TOKEN_ID,
        lambda r, b: b.known(list(r.sampling.logit_bias)),
        _UNKNOWN_ID,
    ),
    Rule(
        "sampling.logit_bias",
        Reason.BAD_SAMPLING,
        lambda r, b: all(
            -b.limits.logit_bias_max <= bias <= b.limits.logit_bias_max
            for bias in r.sampling.logit_bias.values()
        ),
        "every logit_bias must be in [-{limits.logit_bias_max:g}, {limits.logit_bias_max:g}]",
    ),
    Rule(
        "max_tokens",
        Reason.BAD_REQUEST,
        lambda r, _: r.max_tokens > 0 or not r.HasField("max_tokens"),
        "max_tokens must be at least 1",
    ),
    Rule(
        "min_tokens",
        Reason.BAD_REQUEST,
        lambda r, _: r.min_tokens <= r.max_tokens or not r.HasField("max_tokens"),
        "min_tokens is at most max_tokens",
    ),
    Rule(
        "thinking_tokens_max",
        Reason.UNSUPPORTED,
        lambda r, b: not r.HasField("thinking_tokens_max") or b.facts.control_tokens.thinks,
        "thinking_tokens_max: the model's vocabulary has no tokens for thoughts",
    ),
)


RESUME_RULES: tuple[Rule[pb.GenerateRequest], ...] = (
    Rule(
        "resume",
        Reason.BAD_REQUEST,
        lambda r, _: len(r.ListFields()) == 1,
        "nothing stands beside resume: the reply is as it was asked for",
    ),
)


SESSION_RULES: tuple[Rule[session_pb2.CreateSessionRequest | session_pb2.ForkSessionRequest], ...]
SESSION_RULES = (
    Rule(
        "ttl",
        Reason.BAD_REQUEST,
        lambda r, b: not r.HasField("ttl") or _is_lasting(r.ttl, b.limits.session_s_max),
        "ttl must be more than 0 and less than {limits.session_s_max:.0f} seconds",
    ),
)


PIN_RULES: tuple[Rule[cache_pb2.PinPrefixRequest], ...] = (
    Rule(
        "ttl",
        Reason.BAD_REQUEST,
        lambda r, b: not r.HasField("ttl") or _is_lasting(r.ttl, b.limits.pin_s_max),
        "ttl must be more than 0 and less than {limits.pin_s_max:.0f} seconds",
    ),
)


def _forgets_reply(cache: pb.CacheOptions) -> bool:
    return cache.HasField("store_reply") and not cache.store_reply


def _is_lasting(ttl: duration_pb2.Duration, s_max: float) -> bool:
    """More than nothing; of the fractions that a Duration may have, which go one way."""
    return 0 <= ttl.nanos < 10**9 and 0 <= ttl.seconds < s_max and bool(ttl.seconds or ttl.nanos)


def _sampling(field: str, holds: Callable[[Sampling, Bounds], bool], rule: str) -> Rule[Sampling]:
    return Rule(f"sampling.{field}", Reason.BAD_SAMPLING, holds, f"{field} must be {rule}")


_PENALTY = "in [-{limits.penalty_max:g}, {limits.penalty_max:g}]"

# Of the sampler that the request comes to, the model's defaults filled in.
SAMPLING_RULES: tuple[Rule[Sampling], ...] = (
    _sampling(
        "temperature",
        lambda s, _: math.isfinite(s.temperature) and s.temperature >= 0,
        "finite and at least 0",
    ),
    _sampling("top_p", lambda s, _: 0 < s.top_p <= 1, "in (0, 1]"),
    _sampling("min_p", lambda s, _: 0 <= s.min_p <= 1, "in [0, 1]"),
    _sampling(
        "repetition_penalty",
        lambda s, _: math.isfinite(s.repetition_penalty) and s.repetition_penalty > 0,
        "finite and more than 0",
    ),
    _sampling(
        "presence_penalty",
        lambda s, b: -b.limits.penalty_max <= s.presence_penalty <= b.limits.penalty_max,
        _PENALTY,
    ),
    _sampling(
        "frequency_penalty",
        lambda s, b: -b.limits.penalty_max <= s.frequency_penalty <= b.limits.penalty_max,
        _PENALTY,
    ),
)


class PromptTokens(NamedTuple):
    """A prompt as ids, and by which field it came. `told`: how many, in the client's words."""

    field: str
    ids: Sequence[int]
    told: str


TOO_LONG: Rule[PromptTokens] = Rule(
    "prompt",
    Reason.CONTEXT_TOO_LONG,
    lambda p, b: len(p.ids) < b.facts.context_tokens_max,
    "the prompt has {message.told} tokens; with one token of reply at most "
    "{facts.context_tokens_max} fit",
)
KNOWN: Rule[PromptTokens] = Rule(
    "{message.field}", Reason.BAD_TOKEN_ID, lambda p, b: b.known(p.ids), _UNKNOWN_ID
)
# A client that gives ids, or writes a token out, means the token; a conversation has no images.
NO_MEDIA: Rule[PromptTokens] = Rule(
    "{message.field}",
    Reason.UNSUPPORTED,
    lambda p, b: p.field != "messages" or b.media_token_ids.isdisjoint(p.ids),
    "the model's template puts image, audio or video tokens here; only text is loaded",
)
PROMPT_RULES = (TOO_LONG, KNOWN, NO_MEDIA)


def sampler_of(given: pb.Sampling, defaults: SamplingDefaults, bounds: Bounds) -> Sampling:
    """One request's sampler, unset fields from the model's defaults. Raises Refused.

    A top_k that keeps the whole vocabulary is off; a bias that adds nothing is left out.
    """

    def chosen(name: _Default) -> float:
        return float(getattr(given if given.HasField(name) else defaults, name))

    top_k, seeded = int(chosen("top_k")), given.HasField("seed")
    sampling = Sampling(
        temperature=chosen("temperature"),
        top_k=top_k if top_k < bounds.facts.vocabulary else 0,
        top_p=chosen("top_p"),
        min_p=chosen("min_p"),
        seeded=seeded,
        noise_key=given.seed if seeded else int.from_bytes(os.urandom(8)),
        repetition_penalty=chosen("repetition_penalty"),
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logit_bias=tuple(sorted((id, bias) for id, bias in given.logit_bias.items() if bias)),
    )
    check(sampling, SAMPLING_RULES, bounds)
    return sampling
