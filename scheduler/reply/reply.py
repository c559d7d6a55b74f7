"""One reply: its tokens, where it ends, and the counts that its usage is made of.

- Every token of a round passes push_round() in order and stops counting where the reply ends:
  nothing after an EOS, stop id, stop string or max_tokens is emitted, drafts or not.
- The token that ends a reply is emitted. Text holds neither the stop sequence nor that token's
  bytes where its id ended the reply.
- Below min_tokens no stop string is looked for; that no token ends it there is the device's matter.
- A reply whose text was cut at a stop string says so, whatever its last token was: what was held
  back (half a call, half a character) may hold the stop string when the reply ends otherwise.
- completion_tokens == 1 + decode_steps + accepted_tokens, less 1 where a stop cut the bonus.
"""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.scheduler.events import Request
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import FinishReason
from sapwood.scheduler.reply.parts import ReplyParts
from sapwood.scheduler.reply_bounds import ReplyBounds
from sapwood.scheduler.result import Decoded


class GeneratedReply:
    """What one sequence has emitted. `reason` is None while the reply goes on."""

    __slots__ = (
        "_max_tokens",
        "_stops",
        "accepted_tokens",
        "bounds",
        "decode_steps",
        "draft_tokens",
        "parts",
        "reason",
        "rounds",
        "tokens",
    )

    def __init__(self, request: Request, facts: ModelFacts, token_bytes: Sequence[bytes]) -> None:
        eos = frozenset[int]() if request.ignore_eos else facts.eos_token_ids
        self.bounds = ReplyBounds(
            eos | request.stop_token_ids,
            request.min_tokens,
            request.thinking_tokens_max,
            facts.control_tokens,
        )
        self._max_tokens = request.max_tokens
        self._stops = request.stop
        self.parts = ReplyParts(token_bytes, (), facts.control_tokens, request.prompt)
        self.tokens: list[int] = []
        self.reason: FinishReason | None = None
        self.decode_steps = 0
        self.rounds = 0
        self.draft_tokens = 0
        self.accepted_tokens = 0

    @property
    def remaining(self) -> int:
        """Tokens that `max_tokens` leaves."""
        return self._max_tokens - len(self.tokens)

    @property
    def stop_sequence(self) -> str:
        """The stop string that ended the reply, "" where something else did or nothing yet."""
        return self.parts.stopped_by

    def push_first(self, token: int) -> None:
        """The token that the prefill drew."""
        assert not self.tokens, f"the prefill drew after {len(self.tokens)} tokens"
        self._push(token)

    def push_again(self, tokens: Sequence[int]) -> None:
        """What was emitted of the same reply before: only its text is of interest."""
        for token in tokens:
            self._push(token)

    def push_round(self, decoded: Decoded) -> int:
        """One target forward: accepted drafts, then the bonus. Returns how many were emitted."""
        assert self.tokens, "a round before the first token"
        assert 0 <= decoded.accepted <= decoded.drafted, f"{decoded} accepts more than it drafted"
        emitted = 0
        for token in decoded.tokens:
            self._push(token)
            emitted += 1
            if self.reason:
                break
        self.decode_steps += 1
        self.rounds += decoded.drafted > 0
        self.draft_tokens += decoded.drafted
        self.accepted_tokens += min(emitted, decoded.accepted)
        return emitted

    def _push(self, token: int) -> None:
        assert not self.reason, f"token {token} after the reply ended by {self.reason}"
        if len(self.tokens) == self.bounds.min_tokens:
            self.parts.look_for(self._stops)
        self.tokens.append(token)
        if token in self.bounds.ending_ids:
            self._end(FinishReason.STOP)
        elif self.parts.push(token):
            self._end(FinishReason.STOP_SEQUENCE)
        elif len(self.tokens) == self._max_tokens:
            self._end(FinishReason.LENGTH)

    def _end(self, reason: FinishReason) -> None:
        self.parts.finish()
        self.reason = FinishReason.STOP_SEQUENCE if self.parts.stopped_by else reason
