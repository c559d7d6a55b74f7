"""Tokens that the model's own files ban: their scores are -inf before anything else looks at them.

- One table for a model, made at load and never changed: bans are no part of a request, and nothing
  that a request asks (bias, penalties, a seed) brings a token back.
- Of the target every place is masked, a reply's first with more; what is reported of the model
  (model/sampling/logprobs.py) is taken before. Of the drafter it is a matter of acceptance alone.
- A model that bans nothing costs nothing; another one pass over its logits.
"""

from __future__ import annotations

from collections.abc import Collection

import mlx.core as mx
import numpy as np

from sapwood.model.sampling.proposals import DraftLogits
from sapwood.scheduler.sampling import SuppressedTokens


class Suppression:
    """The bans of one model on the device: bool [V] each, None where there are none."""

    def __init__(self, tokens: SuppressedTokens, vocabulary: int) -> None:
        self._always = _table(tokens.always, vocabulary)
        self._first = _table(tokens.first | tokens.always, vocabulary) if tokens.first else None

    def of_target(self, logits: mx.array, first: np.ndarray) -> mx.array:
        """The target's logits [n, V], masked. first [n] bool: where a reply begins."""
        if self._first is not None and first.any():
            usual = mx.zeros_like(self._first) if self._always is None else self._always
            banned = mx.where(mx.array(first)[:, None], self._first, usual)
        elif self._always is not None:
            banned = self._always
        else:
            return logits
        return mx.where(banned, -mx.inf, logits)

    def of_drafter(self, drafted: DraftLogits) -> DraftLogits:
        """A drafter's, masked: no draft is a reply's first token."""
        if self._always is None:
            return drafted
        if drafted.ids is None:
            return DraftLogits(mx.where(self._always, -mx.inf, drafted.logits))
        banned = self._always[drafted.ids]
        # A row that scores nothing else keeps its scores: the target will not have its draft.
        banned = banned & mx.any(~banned, axis=-1, keepdims=True)
        return DraftLogits(mx.where(banned, -mx.inf, drafted.logits), drafted.ids)


def masked_bytes(tokens: SuppressedTokens, item_bytes: int) -> int:
    """What masking takes for each of a row's logits, of `item_bytes` each: a copy and a mask."""
    return item_bytes + 1 if tokens.always or tokens.first else 0


def _table(tokens: Collection[int], vocabulary: int) -> mx.array | None:
    if not tokens:
        return None
    table = np.zeros(vocabulary, np.bool_)
    table[sorted(tokens)] = True
    return mx.array(table)
