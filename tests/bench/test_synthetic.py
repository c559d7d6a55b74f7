"""The synthetic pair is a real one: it loads as any other, and has the size that is promised."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from bench.synthetic import write_synthetic_pair
from sapwood.model.checkpoint.locate import locate
from sapwood.model.pair import load_pair
from tests.model.reference import parameters


def test_it_loads_through_the_daemons_own_door(tmp_path: Path) -> None:
    target, drafter = write_synthetic_pair(tmp_path)
    pair = load_pair(*locate(str(target), str(drafter)))
    assert pair.assistant is not None
    assert pair.dtype == mx.float32
    count = sum(array.size for array in parameters(pair.target).values())
    assert 45e6 < count < 55e6
    assert pair.target_config.text.window == 512
    logits = pair.target(mx.array([[200, 300]]))
    assert mx.isfinite(logits).all().item()
