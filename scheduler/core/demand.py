"""What a slot asks of the device's memory."""

from __future__ import annotations

from typing import NamedTuple

from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts


class Demand(NamedTuple):
    """What a slot's bytes follow from: the tokens it may grow to, and how it draws.

    base: full layers hold as many of them by reference, in the tree.
    """

    tokens_max: int
    draw_bytes_per_row: int = 0
    base: int = 0

    @property
    def row_tokens(self) -> int:
        """What a row of a full layer may grow to."""
        return self.tokens_max - self.base

    @classmethod
    def of(cls, request: Request, facts: ModelFacts) -> Demand:
        """What a request may grow to, with the bytes that its sampler takes for each row."""
        return cls(request.tokens_max, facts.draw_bytes_per_row(request.sampling))


# A prompt of one token, a reply of one, greedy: no request asks for less.
DEMAND_MIN = Demand(tokens_max=2)


def alone_bytes(facts: ModelFacts, limits: Limits, demand: Demand) -> int:
    """L5: what a sequence needs beside the weights, were it alone: K/V and largest step."""
    return facts.live_bytes(demand.row_tokens) + workspace_bytes(facts, limits, [demand])


def workspace_bytes(facts: ModelFacts, limits: Limits, slots: list[Demand]) -> int:
    """Transient of the largest step with these slots, or of their pools' growing before it."""
    if not slots:
        return 0
    rows = 1 + (limits.draft_depth_max if facts.has_drafter else 0)
    rounds = sum(
        facts.round_bytes(rows, slot.tokens_max, slot.draw_bytes_per_row) for slot in slots
    )
    longest = max(slot.tokens_max for slot in slots)
    step = rounds + facts.prefill_bytes(limits.prefill_tokens_max, longest)
    step += facts.late_bytes(len(slots) * rows + limits.prefill_tokens_max)
    return max(step, sum(facts.moved_bytes(slot.row_tokens) for slot in slots))
