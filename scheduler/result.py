"""What the device answers to a step plan.

- Answers come in plan order, one per DecodeRow, PrefillSlice and Capture.
- Payloads are fresh, evaluated, and owned by the receiver.
- A `failure` ends its sequence and nobody else's: what it drew counts nowhere.
- `forced`: how many tokens a constraint forces behind what was drawn, as far as a round can have
  them for drafts. The device keeps which they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.cache.prefix.snapshot import Payload


class StepLost(Exception):
    """The device had no memory for a step: nothing of it happened, and every slot is gone."""


class DeviceExhausted(Exception):
    """Step after step was lost, however much was given up for the next."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How probable an emitted token was by the model alone: without bias, penalty or filter.

    alternatives: (token id, log probability) of the most probable tokens there, best first.
    """

    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a round committed: the accepted drafts, then the new bonus token (never empty)."""

    tokens: tuple[int, ...]
    drafted: int
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each token, where the sequence asked
    failure: str = ""  # why its constraint cannot be kept any further; for its client
    forced: int = 0

    @property
    def accepted(self) -> int:
        """Drafts among the tokens: all but the bonus."""
        return len(self.tokens) - 1


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What became of a prompt slice."""

    token: int | None  # the first drawn token, where the slice drew one
    payload: Payload | None  # owned by the receiver
    logprobs: tuple[TokenLogprobs, ...] = ()  # the token's, where the sequence asked
    failure: str = ""  # as in Decoded
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the slice's `scored`
    forced: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    """Answers in plan order; payload arrays are evaluated.

    kept: the logits of the round of the plan's kept_slot, for whoever replays it.
    """

    decoded: tuple[Decoded, ...] = ()
    prefilled: tuple[Prefilled, ...] = ()
    captured: tuple[Payload | None, ...] = ()
    kept: object | None = None
