"""A committed round, computed once more as plainly as there is: alone, from its tokens, undrafted.

- Nothing that is stored or live is read: the prompt is evaluated anew, in slices, into live caches
  of its own, and then the round, a token at a time. So a damaged prefix, a range that was joined to
  the wrong one, or a row that saw another's K/V all show.
- Judged are the target's own logits, before anything that a request asks of them: rounding moves
  them a little, `Rounding` says how much here, and nothing else may. So a sampler or a constraint
  makes no difference. A greedy row that asks for nothing must have emitted the largest besides.
- Where both differ by rounding and yet have another best token it is a near-tie: a greedy reply
  would have gone on otherwise.
- No number is equal to no number: what overflows on somebody's prompt does so in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch, Span, indices
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.speculation import begin_speculation
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.lost_step import attempted
from sapwood.model.one_text import ALL_ALONE, WAYS, OneText, Way
from sapwood.model.pair import Pair
from sapwood.model.plain_forward import below_maximum, near_tie
from sapwood.model.sampler import Sampler
from sapwood.model.sampling.distribution import DrawRows
from sapwood.scheduler.replay import Replay, Replayed, ReplayVerdict
from sapwood.scheduler.result import Decoded, StepLost

# What rounding did in a few ways is not the most that it ever does.
_MARGIN = 8.0
_SLOT = 0
# In one go against behind a prefix by reference, in company, in rounds: what lies furthest apart.
_PLAIN = Way("alone", ALL_ALONE.slices, (len(ALL_ALONE.rounds),))


@dataclass(frozen=True, slots=True)
class KeptRound:
    """logits: float32 [n, vocabulary], of the n places of the round. tokens: drawn there.

    best: whether these are the largest of them, by the rule of their row.
    """

    logits: np.ndarray
    tokens: tuple[int, ...]
    best: bool


def tolerance(pair: Pair) -> float:
    """How far two logits of one place may lie apart here, by what company does to them now.

    Evaluates a text of some hundred tokens twice. Never less than a near-tie in the pair's dtype.
    Raises ModelRefused for logits that are no numbers.
    """
    text = OneText(pair)
    apart = largest_difference(text.logits(_PLAIN), text.logits(WAYS[-1]))
    if not np.isfinite(apart):
        raise ModelRefused(f"the model gives logits that are no numbers in {pair.dtype_name}")
    return max(near_tie(pair), _MARGIN * apart)


class PlainReplay:
    """What replays rounds of one pair."""

    def __init__(self, pair: Pair, tolerance: float, slice_tokens: int) -> None:
        """slice_tokens: of a prompt that are evaluated at once."""
        config = pair.target_config
        self.tolerance, self._slice_tokens = tolerance, slice_tokens
        self._target = PackedGemma4(pair.target, config.placeholders, pair.kernels)
        self._window, self._dtype = config.text.window_tokens, pair.dtype
        self._kernels, self._suppression = pair.kernels, pair.suppression

    def run(self, replay: Replay) -> Replayed:
        """Between two steps, on the device's thread; all of it is freed again. Raises what MLX does
        but for a failed allocation."""
        try:
            logits = attempted(lambda: self._logits(replay), mx.clear_cache)
        except StepLost:
            return Replayed(ReplayVerdict.SKIPPED)
        return self._judged(replay, logits)

    def _judged(self, replay: Replay, found: np.ndarray) -> Replayed:
        kept = replay.kept
        assert isinstance(kept, KeptRound), "not of our runner"
        apart = largest_difference(kept.logits, found)
        own = kept.tokens
        if not apart <= self.tolerance or (kept.best and any(self._short(kept.logits, own))):
            return Replayed(ReplayVerdict.FAULT, apart)
        if not kept.best:
            own = tuple(np.array(self._allowed(kept.logits)).argmax(axis=-1).tolist())
        tie = any(self._short(found, own))
        return Replayed(ReplayVerdict.NEAR_TIE if tie else ReplayVerdict.SAME, apart)

    def _short(self, logits: np.ndarray, tokens: Sequence[int]) -> list[float]:
        """How far each token lies below the best that its place allows."""
        return below_maximum(self._allowed(logits), tokens)

    def _allowed(self, logits: np.ndarray) -> mx.array:
        # A round begins behind a reply's first token.
        return self._suppression.of_target(mx.array(logits), np.zeros(len(logits), np.bool_))

    def _logits(self, replay: Replay) -> np.ndarray:
        """float32 [rows, vocabulary]."""
        tokens = replay.tokens
        caches = LiveCaches(
            self._target.shapes, self._window, 1, self._dtype, kernels=self._kernels
        )
        caches.restore(_SLOT, (), 0, room=len(tokens))
        for start in range(0, replay.start, self._slice_tokens):
            end = min(replay.start, start + self._slice_tokens)
            self._step(caches, Batch([], [Span(_SLOT, start, end - start, draws=False)]), tokens)
        rows = [
            self._step(caches, Batch([Span(_SLOT, place, 1)]), tokens)
            for place in range(replay.start, len(tokens))
        ]
        return np.concatenate(rows)

    def _step(self, caches: LiveCaches, batch: Batch, tokens: Sequence[int]) -> np.ndarray:
        """One forward, committed: float32 [decode rows, vocabulary]."""
        (span,) = batch.spans
        caches.prepare(batch)
        layers, transaction = begin_speculation(caches, batch)
        fed = mx.array(list(tokens[span.start : span.end]), mx.int32)
        hidden = self._target.forward(fed, batch, layers).hidden
        # Of a slice nobody reads any output: no head over no rows.
        found = self._target.logits(hidden) if batch.decodes else hidden
        logits = found.astype(mx.float32)
        mx.eval(logits, caches.arrays)
        mx.synchronize()  # as a step's end: a failed command buffer raises here
        transaction.commit(_SLOT, span.length)
        return np.array(logits)


def kept_logits(logits: mx.array, rows: DrawRows, row: int) -> mx.array:
    """float32 [depth + 1, vocabulary] of one row that draws: a copy, that holds nothing else."""
    first = int(rows.starts[row])
    return logits[mx.array(indices(first, first + rows.depth[row] + 1))].astype(mx.float32)


def kept_round(
    kept: mx.array | None,
    slot: int | None,
    decoded: Mapping[int, Decoded],
    samplers: Mapping[int, Sampler],
) -> KeptRound | None:
    """Of what was kept of the slot's row what it committed; None where nothing was."""
    if kept is None or slot is None:
        return None
    tokens = decoded[slot].tokens
    return KeptRound(np.array(kept[: len(tokens)]), tokens, samplers[slot].takes_best)


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Between two logits of the same place; infinite where one of them alone is no number."""
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.abs(one - other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max())
