"""The pairs that the system is proven on, each loaded once for all tests of a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import mlx.core as mx
from mlx_lm.generate import generate_step

from sapwood.daemon.demo.script import CAST, SYSTEM
from sapwood.model.checkpoint.locate import locate
from sapwood.model.pair import Pair, load_pair
from tests.chat import turns
from tests.model.reference import NAMES, PROMPTS, checkpoint, golden
from tests.quick import few_quick
from tests.system.oracle import Oracle

DEMO = "demo"
ALL = (*NAMES, DEMO)
# For what takes seconds a pair: one is quick. e2b-tiny and the bundled one are of one family.
QUICK_E2B, QUICK_A4B = few_quick(ALL, "e2b-tiny"), few_quick(ALL, "a4b-tiny")
REPLY = 64  # tokens of a golden continuation


@cache
def pair(name: str, drafter: bool = True) -> Pair:
    """A committed reference pair or the bundled one, in float32."""
    if not drafter:
        return replace(pair(name), assistant=None)
    if name == DEMO:
        return load_pair(*locate(None, None), "float32")
    return load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")


@cache
def oracle(name: str) -> Oracle:
    return Oracle(pair(name))


@cache
def prompts(name: str) -> tuple[tuple[int, ...], ...]:
    """Six prompts: the reference's, or questions to the demo pair; [3] outgrows the window."""
    if name != DEMO:
        return tuple(tuple(golden(name)[f"p{i}_ids"].tolist()) for i in PROMPTS)
    systems = ("", "", "", SYSTEM[:900], SYSTEM[:300], "")
    return tuple(
        tuple(
            pair(name).tokenizer.encode_messages(
                turns(*[("system", system), ("user", part.question)][not system :])
            )
        )
        for system, part in zip(systems, CAST, strict=False)
    )


@cache
def replies(name: str) -> tuple[tuple[int, ...], ...]:
    """Their greedy continuations past any EOS: transformers' own, or mlx-lm's own generation."""
    if name != DEMO:
        return tuple(tuple(golden(name)[f"p{i}_greedy"].tolist()) for i in PROMPTS)
    return tuple(mlx_lm_greedy(pair(name), prompt, REPLY) for prompt in prompts(name))


def mlx_lm_greedy(loaded: Pair, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """What mlx-lm generates by itself, token by token over its own caches."""
    steps = generate_step(mx.array(list(prompt)), loaded.target, max_tokens=count)
    return tuple(int(token) for token, _ in steps)
