"""A conversion gives exactly what mlx-lm would make of the model, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model, quantize_model

from model.convert import convert
from model.files import ModelDirectory, ModelRefused
from model.locate import locate
from model.packing import parse_packing
from model.pair import load_pair
from model.recipe import Settings, Source
from model.shards import write_shard
from model.workshop import Workshop, open_workshop
from tests.model.bundles import bundle, contents
from tests.model.packs import Directories, plain
from tests.model.reference import NAMES, checkpoint, copied, edit, logits, parameters

IDS = np.array([2, 17, 40, 41, 99, 3, 128, 250, 7, 17, 40, 12])


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return plain(request.param, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return plain("a4b-tiny", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("packing", ["4bit", "mxfp8", "nvfp4"])
def test_mlx_lm_loads_the_target_and_would_have_packed_it_alike(
    packing: str, pair: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle(pair, tmp_path / "made", packing)
    theirs, _ = load_model(tmp_path / "made" / "target")
    expected = load_pair(pair[0], None, "float32").target
    how = parse_packing(packing, None)
    quantize_model(expected, {}, how.group_size, how.bits, how.mode)
    capsys.readouterr()  # it prints
    wanted = {f"language_model.{k}": v for k, v in parameters(expected).items()}
    found = parameters(theirs)
    assert found.keys() == wanted.keys()
    assert [k for k in wanted if not mx.array_equal(found[k], wanted[k])] == []
    ours = load_pair(*locate(str(tmp_path / "made"), None), "float32")
    assert ours.quantization.startswith(str(how))
    if how.mode == "affine":  # mlx-lm computes with bfloat16 rows of the others
        np.testing.assert_array_equal(logits(ours.target, IDS), logits(theirs, IDS))


def test_a_router_and_an_ordered_heads_centroids_keep_8_bits(
    pair: Directories, tmp_path: Path
) -> None:
    bundle(pair, tmp_path / "made", "3bit", "nvfp4")
    table: dict[str, Any] = {}
    for part in ("target", "assistant"):
        document = json.loads((tmp_path / "made" / part / "config.json").read_text())
        assert document["quantization"] == document["quantization_config"]
        table |= {k: v for k, v in document["quantization"].items() if isinstance(v, dict)}
    assert table and all(
        v == {"group_size": 64, "bits": 8, "mode": "affine"} for v in table.values()
    )
    assert {name.rpartition("layers.")[2].lstrip("01.") for name in table} == (
        {"router.proj"} if pair[0].path.name == "a4b-tiny" else {"masked_embedding.centroids"}
    )


@pytest.mark.parametrize("name", NAMES)
def test_without_quantisation_every_weight_is_kept(name: str, tmp_path: Path) -> None:
    source = (checkpoint(name), checkpoint(f"{name}-assistant"))
    manifest = bundle(source, tmp_path / "made", None, None)
    ours, theirs = load_pair(*locate(str(tmp_path / "made"), None)), load_pair(*source)
    assert ours.assistant is not None and theirs.assistant is not None
    for one, other in ((ours.target, theirs.target), (ours.assistant, theirs.assistant)):
        first, second = parameters(one), parameters(other)
        assert first.keys() == second.keys()
        assert all(mx.array_equal(first[k], second[k]) for k in first)
    assert ours.tokenizer.defaults == theirs.tokenizer.defaults
    assert {part.dtype for part in manifest.parts.values()} == {"float32"}
    assert _tensors(tmp_path / "made" / "target").keys() == {
        f"language_model.{k}" for k in parameters(theirs.target)
    }


def test_what_stays_plain_is_cast_where_asked_for(one: Directories, tmp_path: Path) -> None:
    manifest = bundle(one, tmp_path / "made", "4bit", None, dtype="bfloat16")
    assert {part.dtype for part in manifest.parts.values()} == {"bfloat16"}
    made = locate(str(tmp_path / "made"), None)[0]
    expected = load_pair(one[0], None, "bfloat16").target
    norm = parameters(load_pair(made, None, "float32").target)["model.norm.weight"]
    assert mx.array_equal(norm, parameters(expected)["model.norm.weight"])


def test_a_model_that_transformers_saved_again_loads_in_mlx_lm(tmp_path: Path) -> None:
    """It keeps the full layers' shape where mlx-lm does not look."""
    saved = copied("a4b-tiny", tmp_path, weights=True)
    shutil.copy(saved.path / "config.saved-by-transformers.json", saved.path / "config.json")
    bundle((saved, checkpoint("a4b-tiny-assistant")), tmp_path / "made", None)
    theirs, _ = load_model(tmp_path / "made" / "target")
    ours = load_pair(checkpoint("a4b-tiny"), None, "float32").target
    np.testing.assert_array_equal(logits(theirs, IDS), logits(ours, IDS))


def test_towers_are_left_out_of_weights_and_config(one: Directories, tmp_path: Path) -> None:
    target = ModelDirectory(shutil.copytree(one[0].path, tmp_path / "seeing"))
    path = str(target.path / "model.safetensors")
    tensors = mx.load(path)
    assert isinstance(tensors, dict)
    mx.save_safetensors(path, tensors | {"model.vision_tower.patch.weight": mx.zeros((2, 2))})
    edit(target, "config.json", {"vision_config": {"hidden_size": 2}})
    bundle((target, one[1]), tmp_path / "seen")
    bundle(one, tmp_path / "plain")
    seen, unseen = (contents(tmp_path / name / "target") for name in ("seen", "plain"))
    assert seen == unseen


def test_memory_is_bounded_by_chunks_and_not_by_tensors(
    one: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(one, tmp_path / "whole")
    largest = max(t.nbytes for t in mx.load(str(one[0].path / "model.safetensors")).values())
    monkeypatch.setattr("model.shards.CHUNK_BYTES", 4096)
    peaks: list[int] = []

    def measured(*arguments: Any) -> None:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        tracemalloc.start()
        write_shard(*arguments)
        peaks.extend((mx.get_peak_memory() - before, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()

    monkeypatch.setattr("model.convert.write_shard", measured)
    bundle(one, tmp_path / "chunks")
    assert max(peaks) < largest / 4
    assert contents(tmp_path / "whole") == contents(tmp_path / "chunks")


_KILLED = """
import os, signal, sys
from pathlib import Path
from model.files import ModelDirectory
from tests.model.bundles import bundle

seen = []
def report(file, done, total):
    seen.append(file)
    if len(set(seen)) == 3 and seen.count(file) == 2:  # within the third file
        os.kill(os.getpid(), signal.SIGKILL)

bundle(tuple(ModelDirectory(Path(p)) for p in sys.argv[1:3]), Path(sys.argv[3]), report=report)
"""


def test_a_killed_conversion_goes_on_where_it_stopped(one: Directories, tmp_path: Path) -> None:
    """kill -9 within the third shard: two are kept untouched, the third is made again."""
    made = tmp_path / "made"
    paths = [str(directory.path) for directory in one]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *paths, str(made)], check=False)
    assert killed.returncode == -signal.SIGKILL
    work = tmp_path / "made.partial" / "bundle" / "target"
    finished = sorted(work.glob("[!.]*"))
    assert len(finished) == 2 and len(list(work.glob(".*"))) == 1
    assert not made.exists()
    with pytest.raises(ModelRefused, match="no such file"):
        load_pair(*locate(str(work.parent.parent), None))
    before = {path.name: path.stat().st_ino for path in finished}
    written: list[str] = []
    bundle(one, made, report=lambda file, done, total: written.append(file))
    assert {name: (made / "target" / name).stat().st_ino for name in before} == before
    assert not {f"target/{name}" for name in before} & set(written)
    assert not (tmp_path / "made.partial").exists()
    bundle(one, tmp_path / "straight")
    assert contents(made) == contents(tmp_path / "straight")


class _Stop(Exception):
    pass


def _stopped(pair: Directories, place: Path, file: str, **settings: Any) -> None:
    """A conversion that ends by an error when a file named so is begun."""

    def report(name: str, done: int, total: int) -> None:
        if name.startswith(file):
            raise _Stop

    with pytest.raises(_Stop):
        bundle(pair, place, report=report, **settings)


LAST = "assistant/"


def test_a_finished_file_that_was_damaged_since_is_made_again(
    one: Directories, tmp_path: Path
) -> None:
    _stopped(one, tmp_path / "made", LAST, shard_bytes_max=400_000)
    shard = sorted((tmp_path / "made.partial/bundle/target").glob("model-*"))[1]
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    bundle(one, tmp_path / "made", shard_bytes_max=400_000)
    bundle(one, tmp_path / "straight", shard_bytes_max=400_000)
    assert contents(tmp_path / "made") == contents(tmp_path / "straight")


def test_another_conversion_is_never_continued(one: Directories, tmp_path: Path) -> None:
    _stopped(one, tmp_path / "made", LAST)
    for other in ({"packing": "8bit"}, {"dtype": "float16"}, {"tool": "newer"}):
        with pytest.raises(ModelRefused, match="unfinished conversion of other sources"):
            bundle(one, tmp_path / "made", **other)
    assert not (tmp_path / "made").exists()
    touched = ModelDirectory(shutil.copytree(one[0].path, tmp_path / "copy"))
    _stopped((touched, one[1]), tmp_path / "other", LAST)
    os.utime(touched.path / "model.safetensors", (1, 1))
    with pytest.raises(ModelRefused, match="unfinished conversion of other sources"):
        bundle((touched, one[1]), tmp_path / "other")


def test_every_file_is_on_the_disk_before_the_bundle_appears(
    one: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    missing: list[Path] = []
    publish = Workshop.publish

    def watched(self: Workshop) -> None:
        files = [p for p in self.bundle.rglob("*") if p.is_file()]
        missing.extend(p for p in files if p.stat().st_ino not in synced)
        publish(self)

    monkeypatch.setattr("os.fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    monkeypatch.setattr(Workshop, "publish", watched)
    bundle(one, tmp_path / "made")
    assert missing == []
    folders = [
        tmp_path,
        tmp_path / "made",
        *(p for p in (tmp_path / "made").iterdir() if p.is_dir()),
    ]
    assert {p.stat().st_ino for p in folders} <= synced


def test_a_destination_that_exists_is_left_alone(one: Directories, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(ModelRefused, match="exists already"):
        bundle(one, tmp_path / "made")
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "mine").touch()
    with pytest.raises(ModelRefused, match="is in the way"):
        bundle(one, tmp_path / "other")
    assert (tmp_path / "other.partial" / "mine").exists()


def test_one_process_at_a_time(one: Directories, tmp_path: Path) -> None:
    with (
        open_workshop(tmp_path / "made", "mine"),
        pytest.raises(ModelRefused, match="another process"),
    ):
        bundle(one, tmp_path / "made")


@pytest.mark.parametrize("nth", [1, 40, 200])
def test_a_full_disk_leaves_no_half_bundle_and_the_rest_is_done_later(
    nth: int, one: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0

    def full(self: Workshop, name: str, fill: Any, *, journal: bool = False) -> Any:
        class Full:
            def __init__(self, file: Any) -> None:
                self._file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def write(self, data: bytes) -> Any:
                nonlocal writes
                writes += 1
                if writes == nth:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return self._file.write(data)

        return write(self, name, lambda file: fill(Full(file)), journal=journal)

    write = Workshop.write
    with monkeypatch.context() as patched:
        patched.setattr(Workshop, "write", full)
        with pytest.raises(OSError, match="No space left"):
            bundle(one, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    bundle(one, tmp_path / "made")
    load_pair(*locate(str(tmp_path / "made"), None))


def test_too_little_room_is_said_before_anything_is_written(
    one: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(ModelRefused, match=r"\d+ bytes are to be written, 1 are free"):
        bundle(one, tmp_path / "made")


def test_sources_are_refused_before_anything_is_written(pair: Directories, tmp_path: Path) -> None:
    bundle(pair, tmp_path / "packed")
    packed = locate(str(tmp_path / "packed"), None)[0]
    other = checkpoint("a4b-tiny-assistant")
    for target, drafter, packing, message in (
        (packed, pair[1], "8bit", r"is quantised already \(4-bit affine, group 64"),
        (pair[0], other, "4bit", "does not fit the target"),
        (pair[1], pair[1], "4bit", "model_type is"),
    ):
        with pytest.raises(ModelRefused, match=message):
            bundle((target, drafter or pair[1]), tmp_path / "made", packing)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["packed"]
    bundle((packed, pair[1]), tmp_path / "again", None)  # as it is: a drafter is added
    first, second = (_tensors(tmp_path / name / "target") for name in ("packed", "again"))
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[k], second[k]) for k in first)
    first, second = (contents(tmp_path / name / "target") for name in ("packed", "again"))
    assert first["config.json"] == second["config.json"]


def _tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for shard in folder.glob("*.safetensors"):
        loaded = mx.load(str(shard))
        assert isinstance(loaded, dict)
        found |= loaded
    return found


def test_weights_that_are_no_numbers_are_refused(one: Directories, tmp_path: Path) -> None:
    target = ModelDirectory(shutil.copytree(one[0].path, tmp_path / "odd"))
    path = str(target.path / "model.safetensors")
    tensors = mx.load(path)
    assert isinstance(tensors, dict)
    name = "model.language_model.norm.weight"
    mx.save_safetensors(path, tensors | {name: mx.full(tensors[name].shape, 1e6)})
    bundle((target, one[1]), tmp_path / "wide")
    with pytest.raises(ModelRefused, match=r"norm\.weight holds what is no finite number in F16"):
        bundle((target, one[1]), tmp_path / "narrow", dtype="float16")


def test_a_target_alone_is_a_bundle_too(one: Directories, tmp_path: Path) -> None:
    convert(Source(one[0], "t"), None, tmp_path / "made", Settings("test"))
    assert locate(str(tmp_path / "made"), None) == (ModelDirectory(tmp_path / "made/target"), None)
    load_pair(*locate(str(tmp_path / "made"), None))
