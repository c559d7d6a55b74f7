"""Scores of prompts: the numbers of a plain softmax, whatever the slices, in little memory."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.model.scoring import drawing_rows, score_prompts
from sapwood.scheduler.plan import PrefillSlice
from sapwood.scheduler.sampling import SCORED_ROWS

VOCABULARY, HIDDEN = 1 << 16, 8


def piece(slot: int, tokens: int, scored: int = 0, draws: bool = False) -> PrefillSlice:
    known = tuple((7 * n + slot) % VOCABULARY for n in range(tokens + 1))
    return PrefillSlice(slot, 0, known[:tokens], draws, False, scored=known[1 : 1 + scored])


def batch_of(decodes: int, *pieces: PrefillSlice) -> Batch:
    spans = [Span(p.slot, p.start, len(p.tokens), p.draws, bool(p.scored)) for p in pieces]
    return Batch([Span(90 + n, 5, 3) for n in range(decodes)], spans)


def test_each_slice_gets_the_scores_of_its_own_rows() -> None:
    pieces = piece(0, 20), piece(1, 40, 40), piece(2, 9, draws=True), piece(3, 17, 16, draws=True)
    batch = batch_of(2, *pieces)
    hidden = mx.random.normal((6 + 40 + 1 + 17, HIDDEN), key=mx.random.key(1))
    head = mx.random.normal((HIDDEN, 500), key=mx.random.key(2))
    scores = score_prompts(lambda rows: rows @ head, hidden, batch, pieces, (0, 3, 0, 5))
    assert scores is not None and len(batch.kept_host) == len(hidden)
    logits = np.array(hidden @ head, np.float64)
    plain = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for index, first, alternatives in ((1, 6, 3), (3, 47, 5)):
        found = scores.read(index, alternatives)
        assert len(found) == len(pieces[index].scored)
        for row, (place, token) in enumerate(zip(found, pieces[index].scored, strict=True), first):
            assert abs(place.logprob - plain[row, token]) < 1e-4
            best = np.argsort(-plain[row])[:alternatives]
            assert [id for id, _ in place.alternatives] == best.tolist()
    assert scores.read(0, 4) == scores.read(2, 4) == ()
    drawing = np.array(drawing_rows(hidden, batch))
    assert np.array_equal(drawing, np.array(hidden)[[0, 1, 2, 3, 4, 5, 46, 63]])


def test_nobody_asks_and_nothing_is_built() -> None:
    pieces = piece(0, 20), piece(1, 4, draws=True)
    batch, hidden = batch_of(1, *pieces), mx.zeros((4, HIDDEN))
    assert score_prompts(lambda rows: rows, hidden, batch, pieces, (0, 0)) is None
    assert drawing_rows(hidden, batch) is hidden


def test_a_long_slice_takes_the_memory_of_a_short_one() -> None:
    """Logits of some rows at a time: [T, vocabulary] is never there."""
    head = mx.random.normal((HIDDEN, VOCABULARY))
    peaks = []
    for tokens in (2 * SCORED_ROWS, 16 * SCORED_ROWS):
        only = piece(0, tokens, tokens)
        hidden = mx.random.normal((tokens, HIDDEN))
        mx.eval(head, hidden)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        scores = score_prompts(lambda r: r @ head, hidden, batch_of(0, only), (only,), (4,))
        assert scores is not None
        mx.eval(scores.arrays)
        peaks.append(mx.get_peak_memory() - before)
    row_bytes = VOCABULARY * 4
    assert peaks[1] < 5 * SCORED_ROWS * row_bytes, peaks
