"""Weight files as a conversion writes them: planned from headers alone, filled chunk by chunk.

- A shard's header is known before any weight is read, so that every chunk goes to its final place.
- Tensors lie by item size, largest first, then by name: each is aligned, and the bytes are the same
  in every run.
- A weight that is no finite number in the dtype it is written in is refused, and so is one that
  comes back from its packing as none.
- An nvfp4 weight is read twice: its scale comes before its groups' (checkpoint/tensor_scale).
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
from sapwood.model.checkpoint.packing import packed_rows
from sapwood.model.checkpoint.safetensors import SINGLE, TensorEntry
from sapwood.model.checkpoint.tensor_scale import LARGEST, TENSOR_SCALE, scale_exponent
from sapwood.model.checkpoint.weights import not_finite
from sapwood.model.convert.loss import PackingLoss, loss_of, total_loss

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
    code: of what lies there packed, as checkpoint.weights.coded has it.
    """

    name: str
    source: TensorEntry
    path: Path
    start: int
    half: int | None
    dtype: str
    packing: Quantization | None
    code: str | None = None

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
        """What is written for it, in the order of mx.quantize's results, then its own scale."""
        if self.packing is None:
            return (Tensor(self.name, self.dtype, self.shape),)
        *rows, size = self.shape
        stem, packing = self.name.removesuffix("weight"), self.packing
        groups = (*rows, size // packing.group_size)
        scales = Tensor(f"{stem}scales", self.dtype if packing.mode == "affine" else "U8", groups)
        weight = Tensor(self.name, "U32", (*rows, size * packing.bits // 32))
        if packing.mode == "affine":
            return weight, scales, Tensor(f"{stem}biases", self.dtype, groups)
        if packing.mode == "nvfp4":
            return weight, scales, Tensor(f"{stem}{TENSOR_SCALE}", "F32", tuple(rows[:-1]))
        return weight, scales


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


def write_shard(
    file: BinaryIO, shard: Shard, advance: Callable[[int], object]
) -> tuple[PackingLoss, ...]:
    """Fill an empty file. Returns the loss of each weight that is packed.

    advance(source bytes) after each chunk. Raises ModelRefused, OSError.
    """
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
    losses: list[PackingLoss] = []
    for piece in shard.pieces:
        losses += _write_piece(
            file, piece, [first + places[t.name] for t in piece.tensors], advance
        )
        mx.clear_cache()
    return tuple(losses)


def _write_piece(
    file: BinaryIO, piece: Piece, places: Sequence[int], advance: Callable[[int], object]
) -> list[PackingLoss]:
    """The piece's loss in a list, empty where it is not packed."""
    places, losses = list(places), list[PackingLoss]()

    def write(parts: Iterable[bytes], index: int = 0) -> None:
        for tensor, part in enumerate(parts, start=index):
            file.seek(places[tensor])
            places[tensor] += file.write(part)

    for matrix in _matrices(_view(piece)):
        exponent = _scale_exponent(piece, matrix)
        if exponent is not None:
            write([np.float32(LARGEST * 2.0**exponent).tobytes()], len(piece.tensors) - 1)
        for chunk in _chunks(matrix):
            parts, loss = _converted(piece, chunk, exponent)
            write(parts)
            losses += [loss] if loss else []
            advance(chunk.nbytes)
    return [total_loss(piece.name, losses)] if losses else []


def _view(piece: Piece) -> Rows:
    """The weight as it lies in its file, mapped and not read."""
    whole = np.memmap(piece.path, _STORED[piece.source.dtype], "r", piece.start, piece.source.shape)
    if piece.half is None:
        return whole
    experts, rows, size = piece.shape
    return whole.reshape(experts, 2, rows, size)[:, piece.half]


def _matrices(view: Rows) -> Iterator[Rows]:
    """What has a scale of its own, in order: an expert's weight, else all."""
    if view.ndim > 2:
        for inner in view:
            yield from _matrices(inner)
    else:
        yield view


def _chunks(matrix: Rows) -> Iterator[Rows]:
    """Whole rows, up to CHUNK_BYTES at a time, in order."""
    if matrix.ndim < 2 or matrix.nbytes <= CHUNK_BYTES:
        yield matrix
    else:
        rows = max(1, CHUNK_BYTES * len(matrix) // matrix.nbytes)
        for start in range(0, len(matrix), rows):
            yield matrix[start : start + rows]


def _scale_exponent(piece: Piece, matrix: Rows) -> int | None:
    """Of the scale of a whole matrix, as scale_exponent has it; None for all modes but nvfp4."""
    if piece.packing is None or piece.packing.mode != "nvfp4":
        return None
    chunks = (_cast(piece, _array(piece, chunk)) for chunk in _chunks(matrix))
    largest = (mx.abs(chunk).max().astype(mx.float32) for chunk in chunks)
    return scale_exponent(max(float(np.array(value)) for value in largest))


def _converted(
    piece: Piece, chunk: Rows, exponent: int | None
) -> tuple[list[bytes], PackingLoss | None]:
    """The bytes of the piece's tensors for these rows, and what packing took from them."""
    if piece.source.dtype not in _FLOATS:
        if piece.code and not_finite(mx.array(np.ascontiguousarray(chunk)), piece.code):
            raise _refused(piece, f"no finite number in {piece.code}")
        return [chunk.tobytes()], None
    source = _array(piece, chunk)
    array = _cast(piece, source)
    if piece.packing is None:
        return [_bytes(array)], None
    made, back = packed_rows(array, piece.packing, exponent)
    loss = loss_of(piece.name, source.astype(mx.float32), back, piece.packing.group_size)
    if not math.isfinite(loss.errors):
        raise _refused(piece, f"no finite number any more, packed as {piece.packing}")
    return [_bytes(part) for part in made], loss


def _array(piece: Piece, chunk: Rows) -> mx.array:
    """Rows of floats as they are in the source."""
    array = mx.array(np.ascontiguousarray(chunk))
    return array.view(mx.bfloat16) if piece.source.dtype == "BF16" else array


def _cast(piece: Piece, source: mx.array) -> mx.array:
    """In the dtype that is written. Raises ModelRefused."""
    array = source.astype(_FLOATS[piece.dtype])
    if not mx.all(mx.isfinite(array)):
        raise _refused(piece, f"no finite number in {piece.dtype}")
    return array


def _refused(piece: Piece, what: str) -> ModelRefused:
    return ModelRefused(f"{piece.source.file}: {piece.source.name[:200]} holds what is {what}")


def _bytes(array: mx.array) -> bytes:
    return np.array(array.reshape(-1).view(mx.uint8)).tobytes()
