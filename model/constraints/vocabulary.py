"""The model's tokens as the grammar library needs them, made once for a loaded model.

- Made of our own byte table, not of a tokenizer's file: the library takes every added token that is
  written `<…>` for a control token, so that no text could hold `<b>`, and guesses which token ends
  a reply.
- Control tokens have no bytes: no text in a string can be one. Ordinary added tokens have theirs.
- Takes about a second for 262,144 tokens, and holds the GIL for it: a matter of loading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer, TokenizerWrapper

from sapwood.scheduler.control_tokens import ControlTokens

Words = npt.NDArray[np.int32]  # 32 tokens a word, the lowest bit the first of them
ALL_ALLOWED = -1
_UNUSED = re.compile(rb"<unused\d+>")


class Vocabulary:
    """Which tokens there are, which of them control, and which end a reply. Immutable."""

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        control_ids: Mapping[str, int],
        end_ids: Collection[int],
        control: ControlTokens,
        encode: Callable[[str], Sequence[int]],
    ) -> None:
        """control_ids: by the tokens' names. encode: plain text to ids, where it is forced."""
        self.size = len(token_bytes)
        self.end_ids = frozenset(end_ids)
        self.control = control
        self.names = {id: name for name, id in control_ids.items()} | {
            id: spelled.decode()
            for id, spelled in enumerate(token_bytes)
            if _UNUSED.fullmatch(spelled)
        }
        self.trie = trie_of(token_bytes, self.names, sorted(self.end_ids), encode)
        self.thinking = self._thinking()

    @property
    def words(self) -> int:
        """Of one mask."""
        return -(-self.size // 32)

    def _thinking(self) -> Words:
        """What a thought may go on with: no control token but the one that ends it."""
        allowed = np.full(self.words, ALL_ALLOWED, np.int32)
        for id in {*self.names, *self.end_ids} - {self.control.channel_end}:
            allow(allowed, id, False)
        return allowed


def allow(mask: Words, id: int, allowed: bool = True) -> None:
    """Set one token's bit, in place."""
    bit = np.uint32(1 << id % 32)
    words = mask.view(np.uint32)
    if allowed:
        words[id // 32] |= bit
    else:
        words[id // 32] &= ~bit


def trie_of(
    token_bytes: Sequence[bytes],
    names: Mapping[int, str],
    end_ids: Sequence[int],
    encode: Callable[[str], Sequence[int]],
) -> LLTokenizer:
    """The library's own form of a vocabulary. names: of control tokens, by id."""
    wrapper = TokenizerWrapper(_Tokens(token_bytes, names, end_ids, encode))
    return LLTokenizer(wrapper, n_vocab=len(token_bytes), eos_token=list(end_ids))


class _Tokens:
    """What TokenizerWrapper asks of a tokenizer."""

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        names: Mapping[int, str],
        end_ids: Sequence[int],
        encode: Callable[[str], Sequence[int]],
    ) -> None:
        self.eos_token_id = end_ids[0]
        self.bos_token_id = None
        self.tokens = list(token_bytes)
        for id, name in names.items():
            self.tokens[id] = name.encode()
        self.special_token_ids = sorted(names)
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        """The wrapper tries bytes first, and takes what that raises for a no."""
        if not isinstance(text, str):
            raise TypeError("of text, not of bytes")
        return list(self._encode(text))
