"""What a draw takes of the device's memory is what the ledger is told, for every sampler."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.pair import MASKED_DRAW_BYTES, WHOLE_DRAW_BYTES, WIDE_DRAW_BYTES
from sapwood.model.sampling.acceptance import verify
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.penalties import Tally
from sapwood.model.sampling.proposals import DraftDistribution
from sapwood.model.sampling.suppression import Suppression, masked_bytes
from sapwood.scheduler.sampling import CANDIDATES_MAX, Sampling, SuppressedTokens
from tests.quick import few_quick

VOCABULARY, DEPTH = 1 << 17, 8
# By row and token of the vocabulary, above the logits: the softcap's copy and float32's, which
# all rows are reserved.
LOGITS_BYTES = {mx.float32: 8, mx.bfloat16: 6}
PENALISED = Sampling(repetition_penalty=1.1, frequency_penalty=0.5, logit_bias=((5, 1.0),))
SAMPLINGS = {
    "greedy": Sampling(),
    "top_k": Sampling(1.0, top_k=64, top_p=0.95),
    "penalties": PENALISED,
    "large top_k": Sampling(1.0, top_k=CANDIDATES_MAX),
    "large top_k with penalties": replace(PENALISED, temperature=1.0, top_k=CANDIDATES_MAX),
    "all": Sampling(1.0),
    "top_p": Sampling(1.0, top_p=0.9),
    "larger top_k": Sampling(1.0, top_k=CANDIDATES_MAX + 1),
    "seeded": Sampling(1.0, seeded=True),
    "seeded top_p": Sampling(1.0, top_p=0.9, seeded=True),
    "top_p with penalties": replace(PENALISED, temperature=1.0, top_p=0.9),
}


BANS = {
    "none": SuppressedTokens(),
    "some": SuppressedTokens(frozenset(range(9))),
    "some, more at first": SuppressedTokens(frozenset(range(9)), frozenset({9})),
}


def _bytes_per_token(
    sampling: Sampling, dtype: mx.Dtype, bans: SuppressedTokens, held: bool = False
) -> float:
    """The peak of one verification, above its logits, which a report may still need."""
    tally = Tally(sampling, range(0, 4000, 2), VOCABULARY) if sampling.adjusted else None
    rows = DrawRows((sampling,), (DEPTH,), (0,), (tally,), (held,))
    masks = mx.full((DEPTH + 1, VOCABULARY // 8), 0x5A, mx.uint8)
    logits = mx.random.normal((DEPTH + 1, VOCABULARY), key=mx.random.key(1)).astype(dtype)
    drafts = mx.zeros((1, DEPTH), mx.int32)
    distribution = DraftDistribution(
        (0,), mx.arange(64, dtype=mx.int32)[None], mx.full((1, 64), -np.log(64))
    )
    suppression = Suppression(bans, VOCABULARY)
    mx.eval(logits, drafts, distribution.ids, distribution.log_probs)
    before = mx.get_active_memory()
    if held:
        mx.eval(masks)  # made for the step
    mx.reset_peak_memory()
    allowed = suppression.of_target(logits, rows.firsts)
    mx.eval(verify(allowed, rows, drafts, [distribution] * DEPTH, masks if held else None))
    return (mx.get_peak_memory() - before) / ((DEPTH + 1) * VOCABULARY)


@pytest.mark.parametrize("bans", BANS)
@pytest.mark.parametrize("dtype", few_quick([mx.float32, mx.bfloat16], mx.bfloat16), ids=str)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_m1_a_draw_takes_no_more_than_is_reserved(name: str, dtype: mx.Dtype, bans: str) -> None:
    sampling = SAMPLINGS[name]
    reserved = LOGITS_BYTES[dtype] + masked_bytes(BANS[bans], dtype.size)
    taken = _bytes_per_token(sampling, dtype, BANS[bans]) - reserved
    if sampling.whole:
        assert WHOLE_DRAW_BYTES / 3 < taken <= WHOLE_DRAW_BYTES
    else:
        assert taken <= (WIDE_DRAW_BYTES if sampling.wide else 0)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["greedy", "top_k", "penalties", "all"])
def test_m1_masks_take_no_more_than_is_reserved_beside_it(name: str, dtype: mx.Dtype) -> None:
    sampling, none = SAMPLINGS[name], BANS["none"]
    free = _bytes_per_token(sampling, dtype, none)
    more = _bytes_per_token(sampling, dtype, none, held=True) - free
    assert more <= MASKED_DRAW_BYTES
    if sampling.greedy and not sampling.adjusted:  # others have their peak behind the masks
        assert more > MASKED_DRAW_BYTES / 3
