"""One reply's place in its constraint: host state of a slot, advanced by what is committed.

- Where a reply is: before its text, where it may open a channel; in a thought; held by a matcher;
  or free, beside calls. Control tokens alone lead from one to another.
- The library counts end tokens in some states and not in others, so a matcher is never fed one: a
  mask says where the text may end, and behind an end token nothing is asked.
- A matcher that fails looks like one that is finished: it is asked after each step, and a guide
  whose matcher failed says so for good.
- A round's path is looked at without moving: masks belong to drafts that may be rejected.
- Where a text can go on in one way only its bytes are certain, and its tokens are not: a mask has
  every token that begins these bytes. So what is forced is drafted, and drawn as all else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from sapwood.model.constraints.constraint import Constraint
from sapwood.model.constraints.matching import problem_of

MaskRows = npt.NDArray[np.int32]  # [places, words]
_LOST = "the constraint cannot be followed any further"
# A round drafts a few tokens of them; made into tokens a long constant would cost a step's time.
FORCED_BYTES_MAX = 512


class Stage(Enum):
    """Where a reply is."""

    BEFORE = "before"  # its text, and may think first
    THINKING = "thinking"
    HELD = "held"
    FREE = "free"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Walk:
    """A matcher's part of a path: masks for [place, place + len(drafts)]; its state is put back.

    opens: a token that is allowed at `place` too, None for none.
    """

    matcher: LLMatcher
    place: int
    drafts: list[int]
    opens: int | None = None


class Guide:
    """What one reply may say next. `failure`: why nobody can tell any more, "" while one can."""

    def __init__(
        self, constraint: Constraint, prompt: Sequence[int], reply: Sequence[int] = ()
    ) -> None:
        """Where `reply` behind `prompt` has led: a sequence that was parked comes back with one."""
        self._constraint = constraint
        self._control = constraint.vocabulary.control
        self._matcher = constraint.matcher()
        self._taken: list[int] = []  # by the matcher
        self._stage = self._begin(prompt)
        self._forced: tuple[int, ...] | None = None  # not asked since the last push
        self.failure = ""
        self.push(reply)

    @property
    def forced(self) -> tuple[int, ...]:
        """The tokens that come next if what is certain to come is written as is usual."""
        if self._forced is None:
            self._forced = self._look_ahead()
        return self._forced

    def push(self, tokens: Sequence[int]) -> None:
        """Tokens that were committed. What stands behind one that ends the reply is nobody's."""
        at, self._forced = 0, None
        while at < len(tokens) and self._stage is not Stage.ENDED and not self.failure:
            if self._stage is Stage.BEFORE and tokens[at] != self._control.channel_start:
                self._stage = Stage.HELD
            if self._stage is Stage.HELD:
                at = self._take(tokens, at)
            else:
                self._stage, at = self._after(self._stage, tokens[at]), at + 1

    def path(self, drafts: Sequence[int], masks: MaskRows, first: int) -> list[Walk]:
        """Masks of a round's places, [first, first + len(drafts)], as far as no matcher is asked.

        What matchers are asked is returned, each of them once. `masks` comes with all allowed, and
        stays so where nothing is held and behind what ends the reply.
        """
        walks: list[Walk] = []
        stage, matcher, at = self._stage, self._matcher, 0
        while stage is not Stage.ENDED and at <= len(drafts) and not self.failure:
            opens = self._opens(stage, drafts[at : at + 1])
            if stage is Stage.HELD or opens is not None:
                until = self._held_until(drafts, at)
                closes = until > at and self._closes(drafts[until - 1])
                fed = list(drafts[at : until - closes])
                walks.append(Walk(matcher, first + at, fed, opens))
                if not closes:
                    break
                stage, matcher, at = Stage.FREE, self._constraint.matcher(), until
                continue
            if stage is not Stage.FREE:
                thinks = stage is Stage.THINKING
                constraint = self._constraint
                masks[first + at] = constraint.vocabulary.thinking if thinks else constraint.opening
            if at < len(drafts):
                stage = self._after(stage, drafts[at])
            at += 1
        return walks

    def renew(self) -> None:
        """The same state in another matcher: this one is in the hands of who is given up."""
        self._matcher = self._constraint.matcher()
        if self._matcher.try_consume_tokens(self._taken) < len(self._taken):
            self.failure = _LOST

    def check(self) -> None:
        """After masks were computed: whether the matcher still knows."""
        if not self.failure and problem_of(self._matcher):
            self.failure = _LOST

    def _look_ahead(self) -> tuple[int, ...]:
        if self._stage is not Stage.HELD or self.failure:
            return ()
        if len(self._matcher.compute_ff_bytes()) > FORCED_BYTES_MAX:
            return ()
        return tuple(self._matcher.compute_ff_tokens())

    def _begin(self, prompt: Sequence[int]) -> Stage:
        if self._constraint.talks:
            return Stage.FREE
        for token in reversed(prompt):
            if token in (self._control.channel_end, self._control.turn_start):
                break
            if token == self._control.channel_start:
                return Stage.THINKING
        return Stage.BEFORE if self._constraint.thinks else Stage.HELD

    def _opens(self, stage: Stage, following: Sequence[int]) -> int | None:
        """The token by which a thought may begin, where it is not what follows."""
        start = self._control.channel_start
        return start if stage is Stage.BEFORE and list(following) != [start] else None

    def _after(self, stage: Stage, token: int) -> Stage:
        """Where a token leads from a stage that no matcher holds."""
        if token in self._constraint.vocabulary.end_ids:
            return Stage.ENDED
        if stage is Stage.BEFORE:
            return Stage.THINKING
        control = self._control
        leaves = control.call_start if stage is Stage.FREE else control.channel_end
        return Stage.HELD if token == leaves else stage

    def _take(self, tokens: Sequence[int], at: int) -> int:
        """Feed the matcher from `at` on; returns where there is more for somebody."""
        until = self._held_until(tokens, at)
        run = list(tokens[at:until])
        if run and self._matcher.try_consume_tokens(run) < len(run):
            self.failure = _LOST
        self.check()
        self._taken += run
        if run and self._closes(run[-1]):
            self._stage, self._matcher, self._taken = Stage.FREE, self._constraint.matcher(), []
        elif until < len(tokens):
            self._stage = Stage.ENDED
        return until

    def _held_until(self, tokens: Sequence[int], at: int) -> int:
        """Where what a matcher is fed ends: behind a block of calls, before what ends the reply."""
        vocabulary = self._constraint.vocabulary
        for index in range(at, len(tokens)):
            if tokens[index] in vocabulary.end_ids:
                return index
            assert 0 <= tokens[index] < vocabulary.size, f"{tokens[index]} is no token"
            if self._closes(tokens[index]):
                return index + 1
        return len(tokens)

    def _closes(self, token: int) -> bool:
        """Whether it ends a block of calls, beside which all is free."""
        return self._constraint.talks and token == self._control.call_end
