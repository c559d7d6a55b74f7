"""The bytes behind every token id: text is what the bytes of the emitted ids decode to.

- Two kinds of vocabulary are known: byte-level BPE, and Gemma's own (a "▁" for a space, `<0xNN>`
  for a byte). Any other decoder is refused.
- Control tokens and ids without a token have no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sapwood.model.checkpoint.files import ModelRefused

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_GEMMA_DECODERS = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def byte_table(
    decoder: Any, vocabulary: Mapping[str, int], control_ids: set[int], size: int, where: str
) -> list[bytes]:
    """One entry per id in [0, size). `decoder` is tokenizer.json's. Raises ModelRefused."""
    spell = _spelling(decoder, where)
    table = [b""] * size
    for token, index in vocabulary.items():
        if index not in control_ids:
            table[index] = spell(token)
    return table


def _spelling(decoder: Any, where: str) -> Callable[[str], bytes]:
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "ByteLevel":
        return _byte_level
    if kind == "Sequence" and decoder.get("decoders") == _GEMMA_DECODERS:
        return _gemma
    raise ModelRefused(f"{where}: decoder {kind!r} is neither byte-level nor Gemma's own")


def _gemma(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _byte_level(token: str) -> bytes:
    # An added token that is not written in the byte alphabet stands for itself.
    spelled = [_BYTE_OF.get(character) for character in token]
    known = [byte for byte in spelled if byte is not None]
    return bytes(known) if len(known) == len(spelled) else token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, inverted."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
