"""Constraints for the pairs that the system is proven on, and what another matcher allows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from sapwood.model.constraints.compiler import ConstraintCompiler, _grammar_of
from sapwood.model.constraints.constraint import Constraint
from sapwood.model.constraints.spec import ConstraintKind, ConstraintSpec
from sapwood.model.constraints.vocabulary import Vocabulary
from sapwood.model.pair import Pair
from tests.model.reference import Array
from tests.system.pairs import pair


@cache
def vocabulary(name: str) -> Vocabulary:
    return vocabulary_of(pair(name))


def vocabulary_of(loaded: Pair) -> Vocabulary:
    tokenizer = loaded.tokenizer
    return Vocabulary(
        tokenizer.token_bytes,
        tokenizer.control_ids,
        tokenizer.eos_token_ids,
        tokenizer.control_tokens,
        tokenizer.encode_plain,
    )


@cache
def compiler(name: str) -> ConstraintCompiler:
    return ConstraintCompiler(vocabulary(name), 10.0, 512 << 20, 5.0, takes_lark=True)


def held(name: str, text: str, kind: ConstraintKind = "json_schema") -> Constraint:
    """Built without a trial in another process."""
    spec = ConstraintSpec(kind, text)
    return compiler(name)._built(_grammar_of(spec, vocabulary(name)), spec)


def best_tokens(
    name: str, text: str, prompt: Sequence[int], reply: Sequence[int]
) -> list[tuple[int, float]]:
    """For each place of a greedy reply: the best allowed token, and how far the reply's lies below.

    One plain forward of mlx-lm, and a matcher that is fed token by token.
    """
    loaded, known = pair(name), vocabulary(name)
    logits: Array = np.array(loaded.target(mx.array([[*prompt, *reply[:-1]]]))[0])[-len(reply) :]
    grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
    matcher = LLMatcher(known.trie, grammar)
    found = []
    for token, row in zip(reply, logits, strict=True):
        mask = allocate_token_bitmask(1, known.size)
        fill_next_token_bitmask(matcher, mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: known.size]
        kept = np.where(bits > 0, row, -np.inf)
        found.append((int(kept.argmax()), float(kept.max() - kept[token])))
        matcher.consume_token(token)
    return found
