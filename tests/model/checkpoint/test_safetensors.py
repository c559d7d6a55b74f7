"""A weight file is believed only after its header was checked against its size."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import read_header, weight_files

_GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}


def _write(path: Path, header: Any, data: int = 24, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(text) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + text + bytes(data))


def _shards(place: Path, weight_map: Any) -> ModelDirectory:
    _write(place / "one.safetensors", {"a": _GOOD["a"]}, 16)
    b = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}
    _write(place / "two.safetensors", {"b": b}, 8)
    index = json.dumps({"weight_map": weight_map})
    (place / "model.safetensors.index.json").write_text(index)
    return ModelDirectory(place)


def test_a_proper_header_is_read_in_full(tmp_path: Path) -> None:
    _write(tmp_path / "model.safetensors", _GOOD)
    (file,) = weight_files(ModelDirectory(tmp_path))
    assert [(t.name, t.shape, t.start, t.end) for t in file.tensors] == [
        ("a", (2, 2), 0, 16),
        ("b", (4,), 16, 24),
    ]
    assert file.size == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("tensor", "change", "data"),
    [
        ("b", {"data_offsets": [8, 16]}, 24),  # overlaps
        ("b", {"data_offsets": [24, 32]}, 32),  # leaves a gap
        ("b", {}, 25),  # bytes that nobody owns
        ("b", {}, 23),  # beyond the end
        ("b", {"shape": [5]}, 24),  # shape and bytes disagree
        ("b", {"shape": [-4], "data_offsets": [16, 8]}, 24),
        ("b", {"shape": [1 << 62, 4]}, 24),
        ("b", {"shape": [True, 4]}, 24),
        ("b", {"shape": [1] * 9 + [4]}, 24),
        ("b", {"shape": 4}, 24),
        ("b", {"dtype": "F8_E4M3"}, 24),
        ("b", {"dtype": ["BF16"]}, 24),
        ("b", {"data_offsets": [16, 24, 32]}, 24),
        ("b", {"data_offsets": [16.0, 24.0]}, 24),
        ("b", {"path": "/etc/passwd"}, 24),
    ],
)
def test_a_header_that_lies_is_refused(
    tensor: str, change: dict[str, Any], data: int, tmp_path: Path
) -> None:
    _write(tmp_path / "model.safetensors", _GOOD | {tensor: _GOOD[tensor] | change}, data)
    with pytest.raises(ModelRefused, match=r"model\.safetensors"):
        weight_files(ModelDirectory(tmp_path))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 1 << 63),
        (b"{}", 3),
        (b"{}" + b" " * 100, 1 << 40),
        (b"{", None),
        (b"[]", None),
        (b'{"a": 1}', None),
        (b"\xff{}", None),
        (b'{"a": {}, "a": {}}', None),
        (b"[" * 100_000, None),
    ],
)
def test_a_broken_header_is_refused(header: bytes, length: int | None, tmp_path: Path) -> None:
    _write(tmp_path / "model.safetensors", header, 0, length)
    with pytest.raises(ModelRefused, match=r"model\.safetensors"):
        weight_files(ModelDirectory(tmp_path))


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_its_length_field_is_refused(size: int, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    with pytest.raises(ModelRefused):
        weight_files(ModelDirectory(tmp_path))


@given(position=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 30))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    position: int, byte: int, cut: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        _write(path, _GOOD)
        content = bytearray(path.read_bytes())
        content[min(position, len(content) - 1)] = byte
        path.write_bytes(content[: len(content) - cut])
        try:
            file = read_header(ModelDirectory(Path(place)), "model.safetensors")
        except ModelRefused:
            return
        assert sum(t.end - t.start for t in file.tensors) == 24 - cut


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    directory = _shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert [t.name for file in weight_files(directory) for t in file.tensors] == ["a", "b"]


_STALE = {"a": "model-00001-of-00009.safetensors", "b": "model-00007-of-00009.safetensors"}


@pytest.mark.parametrize("index", [None, _STALE, {"a": "gone.safetensors"}])
@pytest.mark.parametrize("others", [(), ("model-00001-of-00009.safetensors",), ("model.bin",)])
def test_whole_shards_are_read_whatever_index_of_others_lies_beside(
    index: dict[str, str] | None,
    others: tuple[str, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As mlx-lm does, for what was sharded anew beside an index of before."""
    directory = _shards(tmp_path, index)
    for number, name in enumerate(("one", "two"), start=1):
        shard = tmp_path / f"model-0000{number}-of-00002.safetensors"
        (tmp_path / f"{name}.safetensors").rename(shard)
    for name in others:
        (tmp_path / name).write_bytes(b"torn")
    if index is None:
        (tmp_path / "model.safetensors.index.json").unlink()
    assert [t.name for file in weight_files(directory) for t in file.tensors] == ["a", "b"]
    assert caplog.messages == (
        [] if index is None else [f"{tmp_path}/model.safetensors.index.json: {_UNUSED}"]
    )


_UNUSED = "is not of the weights that are here, and not used"


def test_one_whole_file_is_read_whatever_index_of_shards_lies_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers and mlx-lm do."""
    directory = _shards(tmp_path, {"a": "one.safetensors", "b": "gone.safetensors"})
    _write(tmp_path / "model.safetensors", _GOOD)
    (file,) = weight_files(directory)
    assert file.name == "model.safetensors"
    assert caplog.messages == [f"{tmp_path}/model.safetensors.index.json: {_UNUSED}"]


def test_shards_that_are_not_all_there_are_no_model(tmp_path: Path) -> None:
    """Nor are two sets of them, of which nobody knows the right one."""
    directory = _shards(tmp_path, _STALE)
    (tmp_path / "one.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelRefused, match="of-00009"):
        weight_files(directory)
    (tmp_path / "two.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")
    _write(tmp_path / "model-00001-of-00001.safetensors", _GOOD)
    with pytest.raises(ModelRefused, match="of-00009"):
        weight_files(directory)


def test_a_tensor_in_two_shards_without_an_index_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        _write(tmp_path / f"model-0000{number}-of-00002.safetensors", _GOOD)
    with pytest.raises(ModelRefused, match=r"a is in .*00001.* and in .*00002.*, expected one"):
        weight_files(ModelDirectory(tmp_path))


@pytest.mark.parametrize(
    "weight_map",
    [
        {"b": "one.safetensors"},
        {"a": "one.safetensors", "b": "one.safetensors"},
        {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"},
        {"a": "two.safetensors", "b": "one.safetensors"},
        {"a": "one.safetensors", "b": "three.safetensors"},
        {"a": "one.safetensors", "b": ["two.safetensors"]},
        {},
        [],
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(
    weight_map: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelRefused):
        weight_files(_shards(tmp_path, weight_map))


@pytest.mark.parametrize(
    "name", ["../two.safetensors", "/etc/passwd", "sub/two.safetensors", "..", ".", "", "a\0b"]
)
def test_a_shard_is_a_plain_name_in_the_directory(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    directory = _shards(inside, {"a": "one.safetensors", "b": name})
    for place in (tmp_path, inside / "sub"):
        shutil.copy(inside / "two.safetensors", place)
    with pytest.raises(ModelRefused, match="not a plain file name"):
        weight_files(directory)


def test_a_symlink_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    outside, inside = tmp_path / "secret", tmp_path / "inside"
    inside.mkdir()
    _write(outside, _GOOD)
    (inside / "model.safetensors").symlink_to(outside)
    with pytest.raises(ModelRefused, match="leads out of its directory"):
        weight_files(ModelDirectory(inside))


@pytest.mark.parametrize("part", ["", "target"])
def test_a_snapshot_of_the_hub_cache_links_to_the_caches_blobs(part: str, tmp_path: Path) -> None:
    """Its repository's own, which are links too where repositories share a file."""
    repository = tmp_path / "models--a--b"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123" / part
    shared = tmp_path / "blobs" / "ab"
    for place in (blobs, snapshot, shared):
        place.mkdir(parents=True)
    _write(shared / "abcd", _GOOD)
    (blobs / "abcd").symlink_to(shared / "abcd")
    (snapshot / "model.safetensors").symlink_to(blobs / "abcd")
    (file,) = weight_files(ModelDirectory(snapshot))
    assert file.name == "model.safetensors"
    (snapshot / "model.safetensors").unlink()
    _write(tmp_path / "models--other", _GOOD)
    (snapshot / "model.safetensors").symlink_to(tmp_path / "models--other")
    with pytest.raises(ModelRefused, match="leads out of its directory"):
        weight_files(ModelDirectory(snapshot))


def test_a_fifo_or_directory_is_no_weight_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelRefused, match="not a regular file"):
        weight_files(ModelDirectory(tmp_path))
