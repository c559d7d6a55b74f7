"""safetensors headers, checked by us before mlx reads a byte of them.

- A header is at most 16 MiB, names at most 100,000 tensors, each with an allowed dtype.
- The tensors tile the rest of the file: contiguous from 0 to its end, no gap, no overlap, each
  exactly as long as its shape says.
- A sharded model is its index: every shard is a plain name in the directory and holds exactly
  the tensors that the index gives it.
- An index of files that are not the model's is left aside, with a warning: where there is one whole
  file, as transformers does, or all shards of another count, as mlx-lm does. What is read instead
  is proven against the config like everything else.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
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
_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")

_log = logging.getLogger(__name__)


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
    where = str(directory.path / INDEX)
    placed = _index(directory)
    names = weight_names(directory)
    if placed and names.isdisjoint(placed.values()):
        _log.warning("%s: is not of the weights that are here, and not used", where)
        placed = {}
    files = tuple(read_header(directory, name) for name in sorted(names))
    _check_placement(where, placed, files)
    return files


def weight_names(directory: ModelDirectory) -> set[str]:
    """Of every weight file, whether it is there or not. Raises ModelRefused for a bad index."""
    indexed = set(_index(directory).values())
    if directory.has(SINGLE):
        return indexed if SINGLE in indexed else {SINGLE}
    shards = _whole_shards(directory)
    if shards and indexed.isdisjoint(shards):
        return shards
    return indexed or {SINGLE}


def _index(directory: ModelDirectory) -> dict[str, str]:
    """Files by the tensors in them; empty where there is no index. Raises ModelRefused."""
    if not directory.has(INDEX):
        return {}
    where = directory.path / INDEX
    placed = directory.json(INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelRefused(f"{where}: weight_map is {shown(placed)}, expected tensors and files")
    for name, file in placed.items():
        if not is_plain_name(file):
            raise ModelRefused(
                f"{where}: puts {shown(name)} in {shown(file)}, which is not a plain file name"
            )
    return placed


def _whole_shards(directory: ModelDirectory) -> set[str]:
    """All of `model-00001-of-0000N.safetensors` to N, if one N has them all."""
    counts: dict[int, set[str]] = {}
    listed: list[str] = []
    with suppress(OSError):  # a folder that cannot be listed: its files may still be read by name
        listed = os.listdir(directory.path)
    for name in listed:
        if (found := _SHARD.fullmatch(name)) and 0 < int(found[1]) <= int(found[2]):
            counts.setdefault(int(found[2]), set()).add(name)
    whole = [names for count, names in counts.items() if len(names) == count]
    return whole[0] if len(whole) == 1 else set()


def _check_placement(where: str, placed: dict[str, str], files: Iterable[WeightFile]) -> None:
    """No tensor is in two files, and each where the index puts it, if there is one."""
    found: dict[str, str] = {}
    for file in files:
        for tensor in file.tensors:
            first = found.setdefault(tensor.name, file.name)
            if first != file.name:
                raise ModelRefused(
                    f"{where}: {tensor.name} is in {first} and in {file.name}, expected one"
                )
    for name in sorted(found.keys() | placed.keys()) if placed else ():
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
