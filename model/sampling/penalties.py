"""Logit bias and penalties: what a sequence's own history makes of its logits.

- Order: bias, repetition (CTRL), presence and frequency; temperature and filters come after.
- At a draft's place the history is what is committed and the drafts before it, for the drafter as
  for the target. A Tally is the committed part, host state of one slot; drafts stay on the device.
- Sparse: a row costs the distinct tokens that its history or bias names, not its vocabulary. Dense
  counts for each slot were rejected: 1 MB a slot at 262,144 ids, and eight passes over each row.
- A token's new score is a function of (score, bias, seen, count) alone, so where one id is worked
  twice, as history and as draft, both results have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.scheduler.sampling import Sampling

# Beyond these a score that is divided or multiplied would leave float32.
REPETITION_MIN, REPETITION_MAX = 1e-30, 1e30


class Tally:
    """The tokens that one sequence's bias and penalties touch, and what is known of each.

    ids: int32 [H], rising. columns: float32 [H, 3], a token's bias, whether prompt or reply hold
    it (1 or 0), and how often the reply does. reply_tokens: how many tokens were pushed.
    """

    __slots__ = ("columns", "ids", "reply_tokens", "sampling", "vocabulary")

    def __init__(self, sampling: Sampling, prompt: Iterable[int], vocabulary: int) -> None:
        """`prompt` is the whole prompt, restored tokens included; only repetition looks at it."""
        self.sampling = sampling
        self.vocabulary = vocabulary
        self.reply_tokens = 0
        biases = dict(sampling.logit_bias)
        seen = set(prompt) if sampling.repetition_penalty != 1 else set()
        ids = sorted(seen | biases.keys())
        self.ids = np.array(ids, np.int32)
        self.columns = np.zeros((len(ids), 3), np.float32)
        self.columns[:, 0] = [biases.get(id, 0.0) for id in ids]
        self.columns[:, 1] = [id in seen for id in ids]

    def push(self, tokens: Sequence[int]) -> None:
        """Tokens that were committed to the reply, in order."""
        self.reply_tokens += len(tokens)
        for token in tokens if self.sampling.penalised else ():
            place = int(np.searchsorted(self.ids, token))
            if place == len(self.ids) or self.ids[place] != token:
                self.ids = np.insert(self.ids, place, token)
                self.columns = np.insert(self.columns, place, 0, axis=0)
            self.columns[place, 1] = 1
            self.columns[place, 2] += 1


@dataclass(frozen=True, slots=True)
class Penalties:
    """The tallies of a step's rows on the device.

    keys: int32 [T + 1], rising: row * vocabulary + id of every tallied token, then a key of nobody.
    columns: float32 [T + 1, 3], as in Tally. listed: int32 [B, H], each row's ids; the first
    repeated to H, 0 where it has none. factors: float32 [B, 3], repetition, presence, frequency.
    """

    vocabulary: int
    keys: mx.array
    columns: mx.array
    listed: mx.array
    factors: mx.array

    @classmethod
    def of(cls, tallies: Sequence[Tally | None]) -> Penalties:
        """At least one row has a tally; a row without one is not to be asked for."""
        kept = [tally for tally in tallies if tally is not None]
        width, vocabulary = max(1, *(len(t.ids) for t in kept)), kept[0].vocabulary
        assert (len(tallies) + 1) * vocabulary < 2**31, "keys are int32"
        listed = np.zeros((len(tallies), width), np.int32)
        factors = np.ones((len(tallies), 3), np.float32)
        keys, columns = [], []
        for row, tally in enumerate(tallies):
            if tally is None:
                continue
            keys.append(row * vocabulary + tally.ids)
            columns.append(tally.columns)
            listed[row] = tally.ids[:1] if len(tally.ids) else 0
            listed[row, : len(tally.ids)] = tally.ids
            factors[row] = _factors(tally.sampling)
        keys.append(np.array([len(tallies) * vocabulary]))
        columns.append(np.zeros((1, 3), np.float32))
        return cls(
            vocabulary,
            mx.array(np.concatenate(keys).astype(np.int32)),
            mx.array(np.concatenate(columns)),
            mx.array(listed),
            mx.array(factors),
        )

    def everywhere(
        self, logits: mx.array, owners: np.ndarray, drafts: mx.array | None = None
    ) -> mx.array:
        """New scores of the vocabulary, float32 [n, V], for n places of rows `owners` [n].

        drafts: int32 [n, j], the drafts before each place; below 0 where there are fewer.
        """
        logits = logits.astype(mx.float32)
        ids = self.listed[mx.array(owners)]
        if drafts is not None:
            # In place of no draft any token does: its score comes out as without it.
            ids = mx.concatenate([ids, mx.maximum(drafts, 0)], axis=1)
        scores = self.among(mx.take_along_axis(logits, ids, axis=1), ids, owners, drafts)
        return mx.put_along_axis(logits, ids, scores, axis=1)

    def among(
        self, logits: mx.array, ids: mx.array, owners: np.ndarray, drafts: mx.array | None = None
    ) -> mx.array:
        """New scores, float32 [n, C], of tokens ids [n, C] alone; the rest as in `everywhere`."""
        rows = mx.array(owners.astype(np.int32))
        keys = rows[:, None] * self.vocabulary + ids
        places = mx.searchsorted(self.keys, keys)
        known = mx.where((self.keys[places] == keys)[..., None], self.columns[places], 0)
        bias, seen, count = (known[..., i] for i in range(3))
        if drafts is not None:
            count = count + (ids[:, :, None] == drafts[:, None, :]).sum(axis=-1)
        repetition, presence, frequency = (self.factors[rows, i : i + 1] for i in range(3))
        scores = logits.astype(mx.float32) + bias
        repeated = mx.where(scores > 0, scores / repetition, scores * repetition)
        scores = mx.where((seen > 0) | (count > 0), repeated, scores)
        return scores - (presence * (count > 0) + frequency * count)


def _factors(sampling: Sampling) -> tuple[float, float, float]:
    repetition = min(max(sampling.repetition_penalty, REPETITION_MIN), REPETITION_MAX)
    return repetition, sampling.presence_penalty, sampling.frequency_penalty
