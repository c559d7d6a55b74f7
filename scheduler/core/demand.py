"""What a slot asks of the device's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts


class Demand(NamedTuple):
    """What a slot's bytes follow from: the tokens it has room for, and how it draws.

    base: full layers hold as many of them by reference, in the tree. expected: tokens that it will
    likely grow to. scored_bytes: of the log-probabilities of its prompt, if it asks for them.
    """

    tokens: int
    draw_bytes_per_row: int = 0
    base: int = 0
    expected: int = 0
    scored_bytes: int = 0

    @property
    def row_tokens(self) -> int:
        """What a row of a full layer has room for."""
        return self.tokens - self.base

    @classmethod
    def of(cls, request: Request, facts: ModelFacts) -> Demand:
        """All that a request may grow to, with the bytes that its sampler takes for each row."""
        scored = scored_bytes(request, facts)
        return cls(request.tokens_max, drawn_bytes(request, facts), scored_bytes=scored)


def drawn_bytes(request: Request, facts: ModelFacts) -> int:
    """What a request's draw takes for each row, beside the logits."""
    return facts.draw_bytes_per_row(request.sampling, request.masked)


def scored_bytes(request: Request, facts: ModelFacts) -> int:
    """What the log-probabilities of a request's prompt take in a step."""
    return facts.scoring_bytes if request.prompt_logprobs else 0


# A prompt of one token, a reply of one, greedy: no request asks for less.
DEMAND_MIN = Demand(tokens=2)


def slots_bytes(facts: ModelFacts, limits: Limits, slots: Sequence[Demand]) -> int:
    """What slots need beside the weights, were no others there: K/V and their largest step.

    L5: of a single one it is what it needs alone.
    """
    rows = sum(facts.row_bytes(slot.row_tokens) for slot in slots)
    rings = len(slots) * facts.ring_bytes
    live = rows + rings + len(slots) * facts.slot_bytes
    return live + workspace_bytes(facts, limits, slots, facts.moved_bytes(rows, rings))


def round_rows(facts: ModelFacts, limits: Limits, sequences: int = 1) -> int:
    """Most rows that a round verifies, the bonus token's included, where so many decode."""
    return 1 + (limits.depth_max(sequences) if facts.has_drafter else 0)


def workspace_bytes(
    facts: ModelFacts, limits: Limits, slots: Sequence[Demand], moved_bytes: int
) -> int:
    """Transient of the largest step with these slots, or of their pools' moving before it."""
    if not slots:
        return 0
    # Few of them may decode, then with more rows each: the few that take most.
    each = [facts.round_bytes(1, slot.tokens, slot.draw_bytes_per_row) for slot in slots]
    few = sorted(each, reverse=True)[: limits.deep_rows_max]
    usual = round_rows(facts, limits, limits.deep_rows_max + 1)
    more = round_rows(facts, limits) - usual
    longest = max(slot.tokens for slot in slots)
    step = usual * sum(each) + more * sum(few)
    step += facts.prefill_bytes(limits.prefill_tokens_max, longest)
    step += max(slot.scored_bytes for slot in slots)  # one slice's after another's
    rows = usual * len(each) + more * len(few)
    step += facts.late_bytes(rows + limits.prefill_tokens_max)
    return max(step, moved_bytes)
