"""The bench of prefixes on disk: its replay finds what it should, its 8 bits are no others."""

from __future__ import annotations

import pytest

from bench.eight_bits import compared
from bench.on_disk import figure_of, tiered_trace
from bench.replay.kinds import TRACE_KINDS
from tests.system.pairs import pair


def test_a_disk_finds_what_a_quarter_of_the_memory_lost() -> None:
    found = tiered_trace(TRACE_KINDS["edits"](0, 0.5))
    assert found.computed < found.without and found.tiered < found.without
    assert found.tiered <= 1.1 * found.computed
    figure = figure_of("edits", [found])
    assert figure.met and figure.details["read"] > 0 and figure.details["disk_share"] > 0


@pytest.mark.parametrize("name", ["e2b-tiny", "a4b-tiny"])
def test_8_bits_move_logits_a_little(name: str) -> None:
    told = compared(pair(name), [20 + 7 * n % 700 for n in range(60)], reply_tokens=4)
    assert 0 < told.mean < told.most < told.spread
    assert told.bfloat16_mean > 0
