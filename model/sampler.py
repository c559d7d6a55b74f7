"""How one slot's tokens are drawn and reported, and what of it moves with what is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sapwood.model.constraints.constraint import Constraint
from sapwood.model.constraints.guide import Guide
from sapwood.model.constraints.length_guide import LengthGuide
from sapwood.model.sampling.penalties import Tally
from sapwood.scheduler.plan import Admit
from sapwood.scheduler.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Sampler:
    """tally: of rows with bias or penalties. guide: of rows that are held to a constraint.

    length: of rows whose length has bounds. prompt_logprobs: alternatives to its prompt's tokens.
    """

    sampling: Sampling
    tally: Tally | None
    top_logprobs: int
    guide: Guide | None = None
    length: LengthGuide | None = None
    prompt_logprobs: int = 0

    @classmethod
    def of(cls, admit: Admit, vocabulary: int) -> Sampler:
        """Of a sequence that is admitted, with what it said before it was parked."""
        sampling, tally, guide, length = admit.sampling, None, None, None
        if sampling.adjusted:
            tally = Tally(sampling, admit.prompt, vocabulary)
            tally.push(admit.reply)
        if admit.constraint is not None:
            guide = Guide(cast("Constraint", admit.constraint), admit.prompt, admit.reply)
        if admit.bounds is not None:
            length = LengthGuide(admit.bounds, admit.prompt, admit.reply)
        return cls(sampling, tally, admit.top_logprobs, guide, length, admit.prompt_logprobs)

    @property
    def takes_best(self) -> bool:
        """Whether it takes the target's largest logit, and nothing else has a say."""
        asks = self.tally is not None or self.guide is not None or self.length is not None
        return self.sampling.greedy and not asks

    def follows(self, depth: int) -> bool:
        """Whether the masks of a round of so many drafts depend on which they are."""
        bounded = self.length is not None and self.length.follows(depth)
        return bounded or (self.guide is not None and depth > 0)

    def masks(self, depth: int) -> bool:
        """Whether a round of so many drafts has masks."""
        return self.guide is not None or (self.length is not None and self.length.masks(depth))

    @property
    def forced(self) -> tuple[int, ...]:
        """Tokens that its constraint forces next, as Guide.forced."""
        return () if self.guide is None else self.guide.forced

    def push(self, tokens: Sequence[int]) -> str:
        """Tokens that were committed. Why the reply cannot go on, "" where it can."""
        if self.tally is not None:
            self.tally.push(tokens)
        if self.length is not None:
            self.length.push(tokens)
        if self.guide is None:
            return ""
        self.guide.push(tokens)
        return self.guide.failure
