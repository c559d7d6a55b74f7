"""What a step's arrays say on the host, believed only where it can be true.

A kernel that failed may leave its output as the memory was, and nothing else tells of it. So every
id and count that a client or the tree would get is held against its range before anything is
committed. Log-probabilities are not: one that is no number is what a model computes that overflows
on somebody's prompt, and no reason to end everybody's replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from sapwood.model.drafting import Drafts
from sapwood.model.sampling.logprobs import LogprobsReport
from sapwood.model.scoring import PromptScores
from sapwood.scheduler.result import TokenLogprobs

RowValues = tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]


class DeviceFault(Exception):
    """The device gave what no computation gives. What it holds is not to be trusted any more."""


def read_rows(
    drawn: mx.array | None, report: LogprobsReport | None, depths: Sequence[int], vocabulary: int
) -> list[RowValues]:
    """What each row that draws commits, and the report on it; of evaluated arrays.

    drawn: int32 [B, K + 2] of verify, None where nobody draws. Raises DeviceFault.
    """
    if drawn is None:
        return []
    table = cast("list[list[int]]", drawn.tolist())
    for row, depth in zip(table, depths, strict=True):
        if not 0 <= row[-1] <= depth:
            raise DeviceFault("fewer than no drafts accepted, or more drafts than there were")
    told = {} if report is None else report.read()
    rows = []
    for index, row in enumerate(table):
        count = row[-1] + 1
        ids, logprobs = tuple(row[:count]), tuple(told.get(index, ())[:count])
        _require_ids(ids, vocabulary)
        _require_ids([id for place in logprobs for id, _ in place.alternatives], vocabulary)
        rows.append((ids, logprobs))
    return rows


def read_scores(
    scores: PromptScores | None, asked: Sequence[int], vocabulary: int
) -> list[tuple[TokenLogprobs, ...]]:
    """Of each slice what its slot asked for, so many alternatives. Raises DeviceFault."""
    if scores is None:
        return [()] * len(asked)
    told = [scores.read(index, alternatives) for index, alternatives in enumerate(asked)]
    _require_ids([id for row in told for p in row for id, _ in p.alternatives], vocabulary)
    return told


def read_drafts(drafts: Drafts, vocabulary: int) -> npt.NDArray[np.int32]:
    """[B, deepest] ids, anything past a row's own depth. Waits for the drafter.

    Raises DeviceFault.
    """
    table: npt.NDArray[np.int32] = np.array(drafts.tokens)[drafts.at]
    _require_ids(table.ravel().tolist(), vocabulary)
    return table


def _require_ids(ids: Sequence[int], vocabulary: int) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise DeviceFault("a token id outside of the vocabulary")
