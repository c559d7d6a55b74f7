"""How many tokens a text has at least, for the price of counting its bytes.

- Exact arithmetic, never an estimate: a byte is in some token, which has at most as many bytes as
  the longest token with that byte, so it is at least that share of a token.
- Bytes are counted in pieces, so that nothing holds the GIL in proportion to a text.
- Only for tokenizers whose tokens spell the text byte for byte; for any other the floor is 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sapwood.model.prompt.pieces import GEMMA_NORMALIZER

_PIECE_CHARS = 64 * 1024
# Such pre-tokenizers cut a text and leave nothing out.
_CUTTING = ("Split", "ByteLevel", "Digits")


class TokenFloor:
    """For one tokenizer.json and its byte table. Safe to use from several threads."""

    def __init__(
        self,
        document: Mapping[str, Any],
        token_bytes: Sequence[bytes],
        control: Collection[str] = (),
    ) -> None:
        """`control`: the spellings of the control tokens, which have no bytes in the table."""
        self._is_gemma = document.get("normalizer") == GEMMA_NORMALIZER
        has_all_bytes = len({t for t in token_bytes if len(t) == 1}) == 256
        known = has_all_bytes and _spells_all(document)
        spelled = [*token_bytes, *(token.encode() for token in control)]
        self._shares = _shares(token_bytes) if known else np.zeros(256)
        self._uncut_shares = _shares(spelled) if known else np.zeros(256)

    def of(self, runs: Sequence[str]) -> int:
        """The runs, in which nothing is a control token, have this many tokens or more."""
        return self._at_least(runs, self._shares)

    def of_uncut(self, text: str) -> int:
        """The text, with the control tokens that it spells, has this many tokens or more."""
        return self._at_least([text], self._uncut_shares)

    def _at_least(self, runs: Sequence[str], shares: npt.NDArray[np.float64]) -> int:
        counts = np.zeros(256, np.int64)
        for piece in _pieces(runs):
            if self._is_gemma:
                piece = piece.replace("▁", " ")  # the normalizer makes them one
            counts += np.bincount(np.frombuffer(piece.encode(), np.uint8), minlength=256)
        return math.ceil(float(counts @ shares) - 1e-6)  # a sum of floats


def _shares(tokens: Sequence[bytes]) -> npt.NDArray[np.float64]:
    """By byte: what part of a token it is at least."""
    longest = np.ones(256)
    for token in sorted(set(tokens), key=len):
        longest[list(token)] = max(len(token), 1)
    return 1.0 / longest


def _pieces(runs: Sequence[str]) -> Iterator[str]:
    """All of the runs; short ones together, long ones in pieces."""
    waiting: list[str] = []
    chars = 0
    for run in runs:
        for start in range(0, len(run), _PIECE_CHARS):
            waiting.append(run[start : start + _PIECE_CHARS])
            chars += len(waiting[-1])
            if chars >= _PIECE_CHARS:
                yield "".join(waiting)
                waiting, chars = [], 0
    yield "".join(waiting)


def _spells_all(document: Mapping[str, Any]) -> bool:
    normalizer, model = document.get("normalizer"), document.get("model", {})
    byte_level = document["decoder"]["type"] == "ByteLevel"
    strips = any(t["lstrip"] or t["rstrip"] for t in document["added_tokens"])
    return (
        normalizer in (None, GEMMA_NORMALIZER)
        and (byte_level or model.get("byte_fallback") is True)  # else one <unk> may be all of it
        and not strips
        and _only_cuts(document.get("pre_tokenizer"))
    )


def _only_cuts(pre_tokenizer: Any) -> bool:
    if pre_tokenizer is None:
        return True
    if pre_tokenizer.get("type") == "Sequence":
        return all(_only_cuts(inner) for inner in pre_tokenizer.get("pretokenizers", ()))
    return pre_tokenizer.get("type") in _CUTTING and pre_tokenizer.get("behavior") != "Removed"
