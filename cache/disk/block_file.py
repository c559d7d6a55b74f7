"""One file on disk: a block's K/V of one kind of layer, as safetensors.

- A head of HEAD_BYTES, then a tensor `kv`: [sum of 2 x kv_heads, block_tokens, D] as the tree
  holds it, layer by layer, keys then values. In 8 bits it is integers, and behind it comes a tensor
  `scales` of what one of them is worth, in groups of D.
- All of a head follows from what the file is to be and the sha256 of its K/V. So a file is whole
  exactly if its head is, byte for byte, what it would be written with: nothing of it is parsed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from sapwood.cache.prefix.blocks import BLOCK_FORMAT
from sapwood.cache.prefix.catalogue import HEAD_BYTES, DiskFile, Key

SUFFIX = ".safetensors"
_LENGTH_BYTES = 8


class FileTensor(NamedTuple):
    """One of a file's. dtype: as safetensors calls it."""

    name: str
    dtype: str
    item_bytes: int
    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Of its content."""
        return prod(self.shape) * self.item_bytes


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The tensors of a file, in order, each behind the one before."""

    tensors: tuple[FileTensor, ...]

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def headers(self) -> dict[str, Any]:
        """As safetensors says them."""
        found, start = dict[str, Any](), 0
        for tensor in self.tensors:
            end = start + tensor.nbytes
            found[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            start = end
        return found


def file_name(key: Key) -> str:
    """Where a block's K/V of one kind lies in the folder."""
    name, kind = key
    return f"{name.hex()}.{kind}{SUFFIX}"


def file_head(key: Key, layout: BlockLayout, kv: bytes | memoryview) -> bytes:
    """What comes before `kv`, all of its content, in its file."""
    name, kind = key
    metadata = {
        "sapwood": str(BLOCK_FORMAT),
        "name": name.hex(),
        "kind": kind,
        "sha256": hashlib.sha256(kv).hexdigest(),
    }
    head = {"__metadata__": metadata, **layout.headers()}
    text = json.dumps(head, separators=(",", ":")).encode()
    length = HEAD_BYTES - _LENGTH_BYTES
    assert len(text) <= length and len(kv) == layout.nbytes, f"{len(text)}, {len(kv)} bytes"
    return length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length)


def verified(file: DiskFile, layout: BlockLayout, data: bytes) -> memoryview | None:
    """The K/V of a file that was read whole; None where anything of it is not as it was written."""
    if len(data) != file.size or file.size != HEAD_BYTES + layout.nbytes:
        return None
    kv = memoryview(data)[HEAD_BYTES:]
    return kv if data[:HEAD_BYTES] == file_head(file.key, layout, kv) else None
