"""A conversion gives exactly what mlx-lm would make of the model, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model, quantize_model

from sapwood.model.checkpoint.bundle import check_digests
from sapwood.model.checkpoint.config import Quantization
from sapwood.model.checkpoint.files import TEMPLATES, ModelDirectory, ModelRefused
from sapwood.model.checkpoint.locate import find, locate
from sapwood.model.checkpoint.packing import parse_packing
from sapwood.model.convert.conversion_plan import Settings, Source
from sapwood.model.convert.convert import convert
from sapwood.model.convert.shards import write_shard
from sapwood.model.pair import load_pair
from tests.model.convert.bundles import bundle, contents
from tests.model.packs import Directories, packed
from tests.model.reference import NAMES, checkpoint, copied, edit, logits, parameters

IDS = np.array([2, 17, 40, 41, 99, 3, 128, 250, 7, 17, 40, 12])


@pytest.mark.parametrize("packing", ["4bit", "mxfp4", "mxfp8"])
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


def test_a_table_of_the_sources_is_left_nowhere(pair: Directories, tmp_path: Path) -> None:
    """It may stand inside of text_config, and would contradict the one that is written."""
    target, drafter = packed(pair, tmp_path / "packed", Quantization(4, 64, "affine"))
    path = target.path / "config.json"
    document = json.loads(path.read_text())
    moved = {key: document.pop(key) for key in list(document) if key.startswith("quantization")}
    document["text_config"] |= {"quantization_config": moved["quantization"]}
    path.write_text(json.dumps(document))
    bundle((target, drafter), tmp_path / "made", None, None)
    made = json.loads((tmp_path / "made/target/config.json").read_text())
    assert "quantization" in made
    assert not [key for key in made["text_config"] if key.startswith("quantization")]


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
    np.testing.assert_allclose(logits(theirs, IDS), logits(ours, IDS), rtol=0, atol=1e-4)


def test_a_last_layer_that_is_full_whatever_is_written_is_so_in_mlx_lm(tmp_path: Path) -> None:
    source = copied("31b-tiny", tmp_path, weights=True)
    kinds = json.loads((source.path / "config.json").read_text())["text_config"]["layer_types"]
    change = {"text_config.layer_types": [*kinds[:-1], "sliding_attention"]}
    edit(source, "config.json", change)
    convert(Source(source, "x", None), None, tmp_path / "made", Settings("test"), lambda *_: None)
    theirs, _ = load_model(tmp_path / "made" / "target")
    whole = load_pair(checkpoint("31b-tiny"), None, "float32").target
    np.testing.assert_allclose(logits(theirs, IDS), logits(whole, IDS), rtol=0, atol=1e-4)


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
    tensors = mx.load(str(one[0].path / "model.safetensors"))
    assert isinstance(tensors, dict)
    largest = max(tensor.nbytes for tensor in tensors.values())
    monkeypatch.setattr("sapwood.model.convert.shards.CHUNK_BYTES", 4096)
    peaks: list[int] = []

    def measured(*arguments: Any) -> Any:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        tracemalloc.start()
        losses = write_shard(*arguments)
        peaks.extend((mx.get_peak_memory() - before, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        return losses

    monkeypatch.setattr("sapwood.model.convert.convert.write_shard", measured)
    bundle(one, tmp_path / "chunks")
    assert max(peaks) < largest / 4
    assert contents(tmp_path / "whole") == contents(tmp_path / "chunks")


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
    before, after = (contents(tmp_path / name / "target") for name in ("packed", "again"))
    assert before["config.json"] == after["config.json"]


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


def test_further_templates_are_taken_over(one: Directories, tmp_path: Path) -> None:
    """Without them a bundle would render tools by another template than its source."""
    target = ModelDirectory(tmp_path / "source")
    shutil.copytree(one[0].path, target.path)
    (target.path / TEMPLATES).mkdir()
    for name in ("tool_use", "rag"):
        text = "{{ messages[0].content }} with {{ tools }}"
        (target.path / TEMPLATES / f"{name}.jinja").write_text(text)
    (target.path / TEMPLATES / "notes.txt").write_text("not read")
    convert(Source(target, "t"), None, tmp_path / "made", Settings("test"))
    found = find(str(tmp_path / "made"), None)
    names = {f"target/{TEMPLATES}/{name}.jinja" for name in ("tool_use", "rag")}
    assert found.manifest is not None and names < found.manifest.files.keys()
    check_digests(found.path, found.manifest, lambda count: None)
    pairs = [load_pair(directory, None) for directory in (target, found.target)]
    asked = [{"role": "user", "content": "x"}], [{"function": {"name": "f"}}]
    ids = [pair.tokenizer.encode_messages(*asked) for pair in pairs]
    assert ids[0] == ids[1] != pairs[0].tokenizer.encode_messages(asked[0])
    (found.target.path / TEMPLATES / "tool_use.jinja").write_text("x")
    with pytest.raises(ModelRefused, match=rf"{TEMPLATES}/tool_use\.jinja: expected are .* bytes"):
        find(str(tmp_path / "made"), None)
    shutil.rmtree(found.target.path / TEMPLATES)
    with pytest.raises(ModelRefused, match=rf"{TEMPLATES}/rag\.jinja: no such file"):
        find(str(tmp_path / "made"), None)
