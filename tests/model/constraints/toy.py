"""A small vocabulary with control tokens, and texts that follow masks of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from sapwood.model.constraints.compiler import ConstraintCompiler
from sapwood.model.constraints.constraint import Constraint
from sapwood.model.constraints.guide import Guide
from sapwood.model.constraints.spec import ConstraintSpec
from sapwood.model.constraints.step_masks import StepMasks
from sapwood.model.constraints.vocabulary import Vocabulary
from sapwood.scheduler.control_tokens import ControlTokens

NAMES = {
    **{"<pad>": 0, "<eos>": 1, "<bos>": 2, "<|turn>": 3, "<turn|>": 4},
    **{"<|channel>": 5, "<channel|>": 6, "<|tool_call>": 7, "<tool_call|>": 8, '<|"|>': 9},
}
PAD, EOS, BOS, TURN, TURN_END, CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE = range(10)
WORDS = [b"<b>", b'{"', b'":', b"true", b"thought", b"call:", b'","', b"<unused7>", b"</td>"]
TOKEN_BYTES = [b""] * 10 + [bytes([b]) for b in range(256)] + WORDS
CONTROL = ControlTokens(TURN, CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE)
ENDS = {EOS, TURN_END}


def encode(text: str) -> list[int]:
    """Byte by byte."""
    return [10 + byte for byte in text.encode()]


def decode(ids: Sequence[int]) -> str:
    return b"".join(TOKEN_BYTES[id] for id in ids).decode()


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(TOKEN_BYTES, NAMES, ENDS, CONTROL, encode)


@cache
def compiler() -> ConstraintCompiler:
    """Its builders end with the process of the tests."""
    return ConstraintCompiler(vocabulary(), 5.0, 256 << 20, 5.0, takes_lark=True)


def built(spec: ConstraintSpec) -> Constraint:
    """Without a trial in another process."""
    from sapwood.model.constraints.compiler import _grammar_of

    return compiler()._built(_grammar_of(spec, vocabulary()), spec)


def schema(text: str, thinks: bool = False) -> Constraint:
    return built(ConstraintSpec("json_schema", text, thinks=thinks))


def allowed(guide: Guide, masks: StepMasks, path: Sequence[int] = ()) -> list[set[int]]:
    """The tokens of each place of a path."""
    found = masks.of([guide], [list(path)])
    bits = np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row[: len(TOKEN_BYTES)]).tolist()) for row in bits]


def follow(constraint: Constraint, seed: int, tokens_max: int = 400) -> list[int] | None:
    """A reply drawn under the masks, ends first; None where it does not end."""
    rng, masks, guide = np.random.default_rng(seed), StepMasks(len(TOKEN_BYTES), 5.0), None
    guide = Guide(constraint, ())
    reply: list[int] = []
    while len(reply) < tokens_max:
        (choices,) = allowed(guide, masks)
        if ends := choices & ENDS:
            return [*reply, min(ends)]
        token = int(rng.choice(sorted(choices)))
        reply.append(token)
        guide.push([token])
        assert not guide.failure
    return None
