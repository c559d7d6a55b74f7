"""One reply's place in its bounds: host state of a slot, advanced by what is committed.

- Below min_tokens no token that ends the reply is allowed; which places that are follows from the
  round's index alone.
- A thought that has used up its budget is closed: there the model's own token is the only one that
  is allowed. Whether a round's place is such a one depends on the drafts before it, so they are
  read where the budget may run out in the round, and in no other round.
- Where the budget is used up and no channel is open none is opened: else a model might do nothing
  but open and close them.
- Masks are laid over what a constraint has allowed. A closing token is legal wherever a channel is
  open, and no token that ends a reply is asked for where a constraint holds it (daemon/rpc).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sapwood.model.constraints.vocabulary import allow
from sapwood.scheduler.reply_bounds import ReplyBounds
from sapwood.scheduler.thinking import Thinking


class LengthGuide:
    """What one reply's bounds leave of the next places."""

    def __init__(
        self, bounds: ReplyBounds, prompt: Sequence[int], reply: Sequence[int] = ()
    ) -> None:
        """Where `reply` behind `prompt` has led: a sequence that was parked comes back with one."""
        self.bounds = bounds
        self._thinking = Thinking(bounds.control_tokens, prompt)
        self._emitted = 0
        self.push(reply)

    def push(self, tokens: Sequence[int]) -> None:
        """Tokens that were committed."""
        self._emitted += len(tokens)
        for token in tokens:
            self._thinking.push(token)

    def follows(self, depth: int) -> bool:
        """Whether what a round of so many drafts may say depends on which they are."""
        left = self._left(self._thinking)
        if left is None or not depth:
            return False
        # Outside of a channel the first draft of them all opens one.
        return left <= depth if self._thinking.channel_open else 0 < left < depth

    def masks(self, depth: int) -> bool:
        """Whether anything is ruled out in a round of so many drafts."""
        spent = self._left(self._thinking) == 0
        return spent or self.follows(depth) or not self.bounds.may_end(self._emitted)

    def apply(self, masks: npt.NDArray[np.int32], drafts: Sequence[int]) -> None:
        """Rule out what is not allowed at a round's places, masks [depth + 1, words], in place.

        drafts: the round's, or none of them where it does not follow them.
        """
        thinking = self._thinking.copy()
        for place, mask in enumerate(masks):
            if not self.bounds.may_end(self._emitted + place):
                for id in self.bounds.ending_ids:
                    allow(mask, id, False)
            if self._left(thinking) == 0:
                self._rule_out_thoughts(thinking, mask)
            if place < len(drafts):
                thinking.push(drafts[place])

    def _left(self, thinking: Thinking) -> int | None:
        """Tokens that may still be thought; None without a bound."""
        most = self.bounds.thinking_tokens_max
        return None if most is None else max(0, most - thinking.tokens)

    def _rule_out_thoughts(self, thinking: Thinking, mask: npt.NDArray[np.int32]) -> None:
        control_tokens = self.bounds.control_tokens
        start, end = control_tokens.channel_start, control_tokens.channel_end
        assert start is not None and end is not None, "a budget without channels"
        if thinking.thinks:
            mask[:] = 0
            allow(mask, end)
        elif not thinking.channel_open:
            allow(mask, start, False)
