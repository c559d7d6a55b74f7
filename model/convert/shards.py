"""Weight files as a conversion writes them: planned from headers alone, filled chunk by chunk.

- A shard's header is known before any weight is read, so that every chunk goes to its final place.
- Tensors lie by item size, largest first, then by name: each is aligned, and the bytes are the same
  in every run.
- A weight that is no finite number in the dtype it is written in is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from sapwood.model.checkpoint.config import Quantization
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.safetensors import SINGLE, TensorEntry

CHUNK_BYTES = 64 << 20
_STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}
_STORED |= {"I32": np.int32, "U32": np.uint32, "U8": np.uint8}
_FLOATS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
_ITEM_BYTES = {name: np.dtype(stored).itemsize for name, stored in _STORED.items()}

Rows = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a shard to be."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """As it lies in the shard."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Piece:
    """One weight: where it lies, and what it becomes.

    start: its first byte in the file at `path`. half: 0 or 1 of a pair that Hugging Face keeps in
    one tensor [experts, 2 * n, m]. dtype: of floats as they are written. packing None: as it is.
    """

    name: str
    source: TensorEntry
    path: Path
    start: int
    half: int | None
    dtype: str
    packing: Quantization | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight before it is packed; of one half, where `half` says so."""
        if self.half is None:
            return self.source.shape
        experts, both, size = self.source.shape
        return experts, both // 2, size

    @property
    def source_bytes(self) -> int:
        """What is read for it: progress is counted in these."""
        return math.prod(self.shape) * _ITEM_BYTES[self.source.dtype]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is written for it, in the order of mx.quantize's results."""
        if self.packing is None:
            return (Tensor(self.name, self.dtype, self.shape),)
        *rows, size = self.shape
        stem, packing = self.name.removesuffix("weight"), self.packing
        groups = (*rows, size // packing.group_size)
        scales = Tensor(f"{stem}scales", self.dtype if packing.mode == "affine" else "U8", groups)
        weight = Tensor(self.name, "U32", (*rows, size * packing.bits // 32))
        if packing.mode != "affine":
            return weight, scales
        return weight, scales, Tensor(f"{stem}biases", self.dtype, groups)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to be. pieces: in the order in which they are read."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of the file."""
        found = [tensor for piece in self.pieces for tensor in piece.tensors]
        return tuple(sorted(found, key=lambda t: (-_ITEM_BYTES[t.dtype], t.name)))

    @property
    def bytes(self) -> int:
        """Of its tensors; the header, some kilobytes, comes on top."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        """What is read for it: progress is counted in these."""
        return sum(piece.source_bytes for piece in self.pieces)


def lay_out(pieces: Iterable[Piece], bytes_max: int) -> tuple[Shard, ...]:
    """Pieces in order into shards of up to `bytes_max`; a larger one has a shard of its own."""
    groups: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        own = sum(tensor.bytes for tensor in piece.tensors)
        if not groups or size + own > bytes_max:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += own
    if len(groups) == 1:
        return (Shard(SINGLE, tuple(groups[0])),)
    return tuple(
        Shard(f"model-{index:05}-of-{len(groups):05}.safetensors", tuple(group))
        for index, group in enumerate(groups, start=1)
    )


def write_shard(file: BinaryIO, shard: Shard, advance: Callable[[int], object]) -> None:
    """Fill an empty file. advance(source bytes) after each chunk. Raises ModelRefused, OSError."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    places: dict[str, int] = {}
    position = 0
    for tensor in shard.tensors:
        end = position + tensor.bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [position, end],
        }
        places[tensor.name], position = position, end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    first = file.tell()
    file.truncate(first + position)
    for piece in shard.pieces:
        _write_piece(file, piece, [first + places[t.name] for t in piece.tensors], advance)
        mx.clear_cache()


def _write_piece(
    file: BinaryIO, piece: Piece, places: Sequence[int], advance: Callable[[int], object]
) -> None:
    places = list(places)
    for chunk in _chunks(_view(piece)):
        for index, part in enumerate(_converted(piece, chunk)):
            file.seek(places[index])
            places[index] += file.write(part)
        advance(chunk.nbytes)


def _view(piece: Piece) -> Rows:
    """The weight as it lies in its file, mapped and not read."""
    whole = np.memmap(piece.path, _STORED[piece.source.dtype], "r", piece.start, piece.source.shape)
    if piece.half is None:
        return whole
    experts, rows, size = piece.shape
    return whole.reshape(experts, 2, rows, size)[:, piece.half]


def _chunks(view: Rows) -> Iterator[Rows]:
    """Whole rows, up to CHUNK_BYTES at a time, in order."""
    if view.ndim > 2:
        for inner in view:
            yield from _chunks(inner)
    elif view.ndim < 2 or view.nbytes <= CHUNK_BYTES:
        yield view
    else:
        rows = max(1, CHUNK_BYTES * len(view) // view.nbytes)
        for start in range(0, len(view), rows):
            yield view[start : start + rows]


def _converted(piece: Piece, chunk: Rows) -> list[bytes]:
    """The bytes of the piece's tensors for these rows."""
    if piece.source.dtype not in _FLOATS:
        return [chunk.tobytes()]
    array = mx.array(np.ascontiguousarray(chunk))
    if piece.source.dtype == "BF16":
        array = array.view(mx.bfloat16)
    array = array.astype(_FLOATS[piece.dtype])
    if not mx.all(mx.isfinite(array)):
        raise ModelRefused(
            f"{piece.source.file}: {piece.source.name[:200]} holds what is no finite number "
            f"in {piece.dtype}"
        )
    if piece.packing is None:
        return [_bytes(array)]
    packing = piece.packing
    made = mx.quantize(array, packing.group_size, packing.bits, packing.mode)
    return [_bytes(part) for part in made]


def _bytes(array: mx.array) -> bytes:
    return np.array(array.reshape(-1).view(mx.uint8)).tobytes()
