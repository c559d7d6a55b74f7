"""safetensors headers, checked by us before mlx reads a byte of them.

- A header is at most 16 MiB, names at most 100,000 tensors, each with an allowed dtype.
- The tensors tile the rest of the file: contiguous from 0 to its end, no gap, no overlap, each
  exactly as long as its shape says.
- A sharded model is its index: every shard is a plain name in the directory and holds exactly
  the tensors that the index gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapwood.model.checkpoint.files import (
    ModelDirectory,
    ModelRefused,
    is_plain_name,
    parse_object,
    shown,
)

HEADER_BYTES_MAX = 16 << 20
TENSORS_MAX = 100_000
_NAME_CHARS_MAX = 200
_DIMENSIONS_MAX = 8
_SIZE_MAX = (1 << 31) - 1  # mlx counts in 32 bits
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "U8": 1}
_LENGTH_BYTES = 8
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a header. The data lie in [start, end) after it."""

    file: str  # with its directory, as messages name it
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A checked file. `header` is its raw first bytes, for a fingerprint."""

    name: str
    path: Path
    where: str  # with its directory, as messages name it: no blob of a cache
    size: int
    header: bytes
    tensors: tuple[TensorEntry, ...]


def weight_files(directory: ModelDirectory) -> tuple[WeightFile, ...]:
    """Every weight file of a model, headers checked. Raises ModelRefused."""
    if not directory.has(INDEX):
        return (read_header(directory, SINGLE),)
    where = directory.path / INDEX
    placed = directory.json(INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelRefused(f"{where}: weight_map is {shown(placed)}, expected tensors and files")
    for name, file in placed.items():
        if not is_plain_name(file):
            raise ModelRefused(
                f"{where}: puts {shown(name)} in {shown(file)}, which is not a plain file name"
            )
    files = tuple(read_header(directory, name) for name in sorted(set(placed.values())))
    _check_placement(str(where), placed, files)
    return files


def _check_placement(where: str, placed: dict[str, str], files: Iterable[WeightFile]) -> None:
    found: dict[str, str] = {}
    for file in files:
        for tensor in file.tensors:
            first = found.setdefault(tensor.name, file.name)
            if first != file.name:
                raise ModelRefused(
                    f"{where}: {tensor.name} is in {first} and in {file.name}, expected one"
                )
    for name in sorted(found.keys() | placed.keys()):
        if found.get(name) != placed.get(name):
            raise ModelRefused(
                f"{where}: expected {shown(name)} in {placed.get(name, 'no file')}, "
                f"found it in {found.get(name, 'none')}"
            )


def read_header(directory: ModelDirectory, name: str) -> WeightFile:
    """Check one file's header against its size. Raises ModelRefused."""
    where = str(directory.path / name)
    with directory.open(name) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size < _LENGTH_BYTES:
            raise ModelRefused(f"{where}: has {size} bytes, too few for a safetensors header")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        data_bytes = size - _LENGTH_BYTES - length
        if length > HEADER_BYTES_MAX or data_bytes < 0:
            raise ModelRefused(
                f"{where}: the header claims {length} bytes, allowed are {HEADER_BYTES_MAX} "
                f"and the file has {size}"
            )
        header = file.read(length)
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        raise ModelRefused(f"{where}: the header is not UTF-8") from None
    document = parse_object(text, f"{where} (header)")
    metadata = document.pop("__metadata__", None) or {}  # mlx writes null where it has none
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelRefused(f"{where}: __metadata__ is {shown(metadata)}, not an object of strings")
    if len(document) > TENSORS_MAX:
        raise ModelRefused(f"{where}: {len(document)} tensors, more than {TENSORS_MAX}")
    tensors = tuple(_entry(where, key, value) for key, value in document.items())
    _check_tiling(where, tensors, data_bytes)
    return WeightFile(name, directory.file(name), where, size, header, tensors)


def _entry(file: str, name: str, value: Any) -> TensorEntry:
    if not name.isprintable() or not 0 < len(name) <= _NAME_CHARS_MAX:
        raise ModelRefused(f"{file}: {shown(name)} is not a tensor's name")
    where = f"{file}: {name}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelRefused(f"{where}: expected dtype, shape and data_offsets, found {shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ModelRefused(
            f"{where}: dtype is {shown(dtype)}, allowed are {', '.join(_ITEM_BYTES)}"
        )
    if not _sizes(shape, _SIZE_MAX) or len(shape) > _DIMENSIONS_MAX:
        raise ModelRefused(
            f"{where}: shape is {shown(shape)}, expected up to {_DIMENSIONS_MAX} integers in "
            f"0..{_SIZE_MAX}"
        )
    if not _sizes(offsets, 1 << 62) or len(offsets) != 2:
        raise ModelRefused(f"{where}: data_offsets is {shown(offsets)}, expected [start, end]")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise ModelRefused(
            f"{where}: {dtype} of shape {shape} takes {expected} bytes, "
            f"its data_offsets hold {offsets[1] - offsets[0]}"
        )
    return TensorEntry(file, name, dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any, most: int) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= most for v in value)


def _check_tiling(where: str, tensors: Iterable[TensorEntry], data_bytes: int) -> None:
    position = 0
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start != position:
            raise ModelRefused(
                f"{where}: {tensor.name}: expected to start at byte {position}, where the tensor "
                f"before it ends, found {tensor.start}"
            )
        position = tensor.end
    if position != data_bytes:
        raise ModelRefused(
            f"{where}: expected {position} bytes of tensors, found {data_bytes} after the header"
        )
