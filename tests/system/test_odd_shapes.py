"""Networks of unusual shape under load: the same text as plain decoding, and prefixes are reused.

What transformers computes for such configs: tests/model/test_odd_configs.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sapwood.model.pair import Pair, model_facts
from sapwood.scheduler.limits import Limits
from tests.model.reference import NAMES
from tests.quick import few_quick
from tests.system.oracle import Oracle
from tests.system.stack import Stack
from tests.system.test_other_checkpoint import VOCABULARY, crowd
from tests.system.tiny import random_pair

SLIDING, FULL = "sliding_attention", "full_attention"
CONTEXT = 256
SHAPES: dict[str, dict[str, Any]] = {
    "a window of 1": {"sizes": {"text_config.sliding_window": 1}},
    "all full": {"kinds": (FULL, FULL)},
    "ends in sliding": {"kinds": (SLIDING, FULL, SLIDING)},
    "one sliding layer": {"kinds": (SLIDING,)},
    "a window beyond the context": {
        "sizes": {
            "text_config.sliding_window": 1 << 20,
            "text_config.max_position_embeddings": CONTEXT,
        }
    },
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("base", few_quick(NAMES, "a4b-tiny"))
def test_greedy_text_is_that_of_plain_decoding(base: str, shape: str, tmp_path: Path) -> None:
    pair = random_pair(base, tmp_path, VOCABULARY, seed=3, **SHAPES[shape])
    stack = crowd(pair, shape, 10)
    stack.check(Oracle(pair))  # asserts that there is no fault
    assert sum(len(stream.tokens) for stream in stack.streams) > 100
    assert sum(s.finished.usage.draft_tokens for s in stack.streams) > 50
    stack.close()


@pytest.mark.parametrize("base", few_quick(NAMES, "a4b-tiny"))
def test_a_second_turn_computes_only_what_is_new(base: str, shape: str, tmp_path: Path) -> None:
    pair = random_pair(base, tmp_path, VOCABULARY, seed=3, **SHAPES[shape])
    stack = Stack(pair, Limits(slots_max=4, prefill_tokens_max=32))
    first = stack.generate(range(20, 90), 12, depth=3)
    prompt = (*first.request.prompt, *first.tokens, 7, 8)
    second, third = stack.submit(prompt, 12, depth=2), stack.submit(range(20, 60), 12, depth=4)
    stack.run()
    assert second.cached == len(prompt) - 3, "the last token of a reply is never computed"
    assert 0 <= third.cached < 40
    stack.check(Oracle(pair))
    stack.close()


def test_what_a_window_costs_ends_at_the_context(tmp_path: Path) -> None:
    def facts(shape: str) -> Any:
        return model_facts(_made(shape, tmp_path / shape.replace(" ", "-")), 8)

    large, full = facts("a window beyond the context"), facts("all full")
    assert large.window_tokens == CONTEXT
    assert large.ring_bytes == large.sliding_bytes_per_token * (CONTEXT + 9 + 1)
    assert (full.window_tokens, full.ring_bytes, full.tail_bytes) == (0, 0, 0)


def _made(shape: str, place: Path) -> Pair:
    return random_pair(NAMES[1], place, VOCABULARY, **SHAPES[shape])
