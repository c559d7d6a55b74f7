"""How many tokens a text has at least, for the price of counting its bytes.

- Exact arithmetic, never an estimate: a byte is in some token, which has at most as many bytes as
  the longest token with that byte, so it is at least that share of a token.
- Only for tokenizers whose tokens spell the text byte for byte; for any other the floor is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_GEMMA_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# Such pre-tokenizers cut a text and leave nothing out.
_CUTTING = ("Split", "ByteLevel", "Digits")


class TokenFloor:
    """For one tokenizer.json and its byte table. Safe to use from several threads."""

    def __init__(self, document: Mapping[str, Any], token_bytes: Sequence[bytes]) -> None:
        self._is_gemma = document.get("normalizer") == _GEMMA_NORMALIZER
        longest = np.ones(256)
        for token in sorted(set(token_bytes), key=len):
            longest[list(token)] = max(len(token), 1)
        has_all_bytes = len({t for t in token_bytes if len(t) == 1}) == 256
        self._shares = 1.0 / longest if has_all_bytes and _spells_all(document) else np.zeros(256)

    def of(self, runs: Sequence[str]) -> int:
        """The runs have this many tokens or more."""
        text = "".join(runs)
        if self._is_gemma:
            text = text.replace("▁", " ")  # the normalizer makes them one
        counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
        return math.ceil(float(counts @ self._shares) - 1e-6)  # a sum of floats


def _spells_all(document: Mapping[str, Any]) -> bool:
    normalizer, model = document.get("normalizer"), document.get("model", {})
    byte_level = document["decoder"]["type"] == "ByteLevel"
    strips = any(t["lstrip"] or t["rstrip"] for t in document["added_tokens"])
    return (
        normalizer in (None, _GEMMA_NORMALIZER)
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
