"""A drafter does not draft what would end a reply too early."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.proposals import DraftLogits, draft, without_ends
from sapwood.scheduler.reply_bounds import ReplyBounds
from sapwood.scheduler.sampling import Sampling

ENDS = ReplyBounds(frozenset({1, 3}), min_tokens=5)
FAR = ReplyBounds(frozenset({0}), min_tokens=2)
# Of the second row the bound is over, the third has none.
ROWS = DrawRows((Sampling(),) * 3, (2,) * 3, (3, 3, 3), bounds=(ENDS, FAR, None))
LOGITS = np.array([[1.0, 9.0, 2.0, 8.0], [9.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 9.0]], np.float32)


def drafted(logits: DraftLogits, j: int) -> list[int]:
    tokens, _ = draft(without_ends(logits, ROWS, (0, 1, 2), j), ROWS, (0, 1, 2), j, [])
    return [int(token) for token in np.array(tokens)]


def test_of_the_whole_vocabulary() -> None:
    logits = DraftLogits(mx.array(LOGITS))
    assert drafted(logits, 0) == drafted(logits, 1) == [2, 0, 3]
    assert drafted(logits, 2) == [1, 0, 3], "index 5 may end"
    assert np.array_equal(np.array(logits.logits), LOGITS), "what was given stays as it is"


def test_of_the_tokens_that_the_drafter_scores() -> None:
    ids = mx.array([[3, 1, 0], [0, 1, 2], [3, 1, 0]], mx.int32)
    logits = DraftLogits(mx.array(LOGITS[:, :3]), ids)
    assert drafted(logits, 0) == [0, 0, 0]
    assert drafted(logits, 2)[0] == 1


def test_a_row_that_scores_nothing_else_keeps_its_scores() -> None:
    ids = mx.array([[3, 1], [0, 1], [3, 1]], mx.int32)
    assert drafted(DraftLogits(mx.array(LOGITS[:, :2]), ids), 0) == [1, 0, 1]
