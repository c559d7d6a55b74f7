"""Reports of a mixed, ragged step against NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.logprobs import logprobs_report
from sapwood.scheduler.sampling import Sampling


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), min_size=1, max_size=5),
    st.sampled_from([mx.float32, mx.bfloat16]),
)
def test_a_report_is_the_log_softmax_of_the_raw_logits(
    seed: int, kinds: list[tuple[int, int]], dtype: mx.Dtype
) -> None:
    """Every row that asks, at every place, with ties going to the lower id."""
    depth, asked = (tuple(values) for values in zip(*kinds, strict=True))
    rng = np.random.default_rng(seed)
    rows = DrawRows((Sampling(),) * len(kinds), depth, (0,) * len(kinds))
    logits = mx.array(np.round(rng.normal(0, 3, (len(rows.owners), 50)))).astype(dtype)
    drawn = rng.integers(0, 50, (len(kinds), max(depth) + 2))
    made = logprobs_report(logits, rows, mx.array(drawn), asked)
    if not any(asked):
        assert made is None
        return
    assert made is not None
    told = made.read()
    assert set(told) == {row for row, count in enumerate(asked) if count}
    distributions = log_softmax(np.array(logits.astype(mx.float32)).astype(np.float64), axis=-1)
    for row, places in told.items():
        assert len(places) == depth[row] + 1
        for offset, place in enumerate(places):
            distribution = distributions[rows.starts[row] + offset]
            best = np.lexsort((np.arange(50), -distribution))[: asked[row]]
            assert [id for id, _ in place.alternatives] == best.tolist()
            np.testing.assert_allclose(
                [p for _, p in place.alternatives], distribution[best], atol=1e-5
            )
            assert abs(place.logprob - distribution[drawn[row, offset]]) < 1e-5
