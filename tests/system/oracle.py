"""What a request must give, from one plain mlx-lm forward over its prompt and its reply.

- Nothing of ours runs in that forward: no packing, no cache, no drafter. If every token is what the
  distribution draws after the tokens before it, the reply is the one that plain decoding gives.
- Greedy: the maximum. Seeded: the shared noise of the token's index added to the plain one.
- Bias and penalties are applied in NumPy, each place with the prompt and the reply up to there, and
  after them the model's own bans.
- Text and end are computed the naive way, every beginning of the reply afresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from sapwood.model.pair import Pair
from sapwood.model.sampling.acceptance import verify
from sapwood.model.sampling.distribution import DrawRows
from sapwood.scheduler.events import Request
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import Array
from tests.model.sampling.markov import adjusted_logits
from tests.scheduler.reference import first_stop, whole_characters

NEAR_TIE = 1e-3
NOT_ADJUSTED: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": (),
}


@dataclass(frozen=True)
class Verdict:
    """Places of a reply where another token was due. A near tie lies within 1e-3 of the maximum."""

    faults: tuple[int, ...] = ()
    near_ties: tuple[int, ...] = ()


class Oracle:
    """Judges replies of one model; remembers what it has judged already."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._known: dict[tuple[Sequence[int], Sampling], list[int]] = {}

    def judge(self, prompt: Sequence[int], reply: Sequence[int], sampling: Sampling) -> Verdict:
        """The verdict on a greedy or seeded reply of any length."""
        assert sampling.greedy or sampling.seeded, (
            "what an unseeded sampler draws is not determined"
        )
        due = self._due(tuple(prompt), list(reply), sampling)
        wrong = [i for i, (a, b) in enumerate(zip(reply, due, strict=False)) if a != b]
        if not wrong:
            return Verdict()
        logits = self._adjusted(tuple(prompt), list(reply), sampling)
        gaps = {i: float(logits[i].max() - logits[i, reply[i]]) for i in wrong}
        near = tuple(i for i in wrong if sampling.greedy and gaps[i] < NEAR_TIE)
        return Verdict(tuple(i for i in wrong if i not in near), near)

    def logits(self, tokens: Sequence[int]) -> Array:
        """[L, V] of mlx-lm's own forward, in one chunk."""
        fed = self._pair.target_config.placeholders.fed(tokens)
        return np.array(self._pair.target(mx.array(fed)[None])[0])

    def _due(self, prompt: tuple[int, ...], reply: list[int], sampling: Sampling) -> list[int]:
        """The token that belongs at each place of the reply, given the reply up to there."""
        known = self._known.get((prompt, sampling), [])
        if reply == known[: len(reply)]:
            return known
        count, logits = len(reply), self._adjusted(prompt, reply, sampling)
        plain = replace(sampling, **NOT_ADJUSTED)
        rows = DrawRows((plain,) * count, (0,) * count, tuple(range(count)))
        due: list[int] = np.array(verify(mx.array(logits), rows))[:, 0].tolist()
        if due == reply:
            self._known[prompt, sampling] = reply
        return due

    def _adjusted(self, prompt: tuple[int, ...], reply: list[int], sampling: Sampling) -> Array:
        """[len(reply), V]: the logits that each token of a reply was drawn from."""
        rows = self.logits([*prompt, *reply[:-1]])[len(prompt) - 1 :].copy()
        if sampling.adjusted:
            for i, row in enumerate(rows):
                rows[i] = adjusted_logits(row, sampling, prompt, reply[:i])
        banned = self._pair.tokenizer.suppressed
        rows[:, list(banned.always)] = -np.inf
        rows[:1, list(banned.first)] = -np.inf
        return rows


@dataclass(frozen=True)
class End:
    text: str
    reason: str
    stop_sequence: str


class Usage(Protocol):
    """The counts that scheduler.events and sapwood both call so."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def decode_steps(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def draft_tokens(self) -> int: ...
    @property
    def accepted_tokens(self) -> int: ...


def end_of(
    request: Request, reply: Sequence[int], token_bytes: Sequence[bytes], eos: frozenset[int]
) -> End | None:
    """How `reply` ends the request with its last token. None: it goes on, or ended before."""
    raw = b""
    for index, token in enumerate(reply):
        ended = None
        if token in request.stop_token_ids or (token in eos and not request.ignore_eos):
            ended = _ended(raw, "stop", request.stop)
        else:
            raw += token_bytes[token]
            if cut := first_stop(whole_characters(raw), request.stop):
                ended = End(cut[0], "stop_sequence", cut[1])
            elif index + 1 == request.max_tokens:
                ended = _ended(raw, "length", request.stop)
        if ended:
            return ended if index + 1 == len(reply) else None
    return None


def _ended(raw: bytes, reason: str, stops: tuple[str, ...]) -> End:
    """Half a character at the end is U+FFFD, which may complete a stop string."""
    text = raw.decode(errors="replace")
    cut = first_stop(text, stops)
    return End(cut[0], "stop_sequence", cut[1]) if cut else End(text, reason, "")


def check_usage(request: Request, usage: Usage, tokens: int, cached: int, reason: str) -> None:
    """api.md's arithmetic: a stop may cut the bonus, a length never does."""
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(request.prompt), tokens)
    assert usage.cached_tokens == cached < usage.prompt_tokens
    cut = 1 + usage.decode_steps + usage.accepted_tokens - tokens
    assert cut in ((0,) if reason == "length" else (0, 1)), usage
    assert 0 <= usage.accepted_tokens <= usage.draft_tokens, f"S3: {usage}"
    assert usage.rounds <= min(usage.decode_steps, usage.draft_tokens)
    if request.depth is not None:
        assert usage.draft_tokens <= request.depth * usage.rounds
        assert usage.rounds > 0 or not request.depth or tokens < 3, "a pinned depth is kept"
