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

from model.files import ModelDirectory, ModelRefused, parse_object

HEADER_BYTES_MAX = 16 << 20
TENSORS_MAX = 100_000
_DIMENSIONS_MAX = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U32": 4, "U8": 1}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a header. The data lie in [start, end) after it."""

    file: str
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
    size: int
    header: bytes
    tensors: tuple[TensorEntry, ...]


def weight_files(directory: ModelDirectory) -> tuple[WeightFile, ...]:
    """Every weight file of a model, headers checked. Raises ModelRefused."""
    if not directory.has(_INDEX):
        return (read_header(directory, _SINGLE),)
    where = directory.path / _INDEX
    placed = directory.json(_INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelRefused(f"{where}: weight_map is not an object with tensors")
    if not all(isinstance(name, str) for name in placed.values()):
        raise ModelRefused(f"{where}: weight_map holds something that is no file name")
    files = tuple(read_header(directory, name) for name in sorted(set(placed.values())))
    found = {t.name: t.file for file in files for t in file.tensors}
    if found != placed or len(found) != sum(len(f.tensors) for f in files):
        odd = min(k for k in found.keys() | placed.keys() if found.get(k) != placed.get(k))
        raise ModelRefused(
            f"{where}: puts {odd!r} in {placed.get(odd)}, the files hold it in {found.get(odd)}"
        )
    return files


def read_header(directory: ModelDirectory, name: str) -> WeightFile:
    """Check one file's header against its size. Raises ModelRefused."""
    where = str(directory.path / name)
    path = directory.file(name)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_BYTES_MAX, size - 8):
            raise ModelRefused(
                f"{where}: the header claims {length} bytes, allowed are {HEADER_BYTES_MAX} "
                f"and the file has {size}"
            )
        header = file.read(length)
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        raise ModelRefused(f"{where}: the header is not UTF-8") from None
    document = parse_object(text, where)
    document.pop("__metadata__", None)
    if len(document) > TENSORS_MAX:
        raise ModelRefused(f"{where}: {len(document)} tensors, more than {TENSORS_MAX}")
    tensors = tuple(_entry(where, name, key, value) for key, value in document.items())
    _check_tiling(where, tensors, size - 8 - length)
    return WeightFile(name, path, size, header, tensors)


def _entry(where: str, file: str, name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelRefused(f"{where}: {name[:200]!r} is not a tensor's entry")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ModelRefused(f"{where}: {name[:200]!r} has dtype {dtype!r}, which is not allowed")
    if not _sizes(shape) or len(shape) > _DIMENSIONS_MAX:
        raise ModelRefused(f"{where}: {name[:200]!r} has no proper shape")
    if not _sizes(offsets) or len(offsets) != 2:
        raise ModelRefused(f"{where}: {name[:200]!r} has no proper data_offsets")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise ModelRefused(
            f"{where}: {name[:200]!r} of shape {shape} and {dtype} takes {expected} bytes, "
            f"its offsets say {offsets[1] - offsets[0]}"
        )
    return TensorEntry(file, name, dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _check_tiling(where: str, tensors: Iterable[TensorEntry], data_bytes: int) -> None:
    position = 0
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start != position:
            raise ModelRefused(
                f"{where}: {tensor.name[:200]!r} starts at byte {tensor.start}, "
                f"the tensor before it ends at {position}"
            )
        position = tensor.end
    if position != data_bytes:
        raise ModelRefused(f"{where}: tensors end at byte {position}, the data at {data_bytes}")
