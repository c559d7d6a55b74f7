"""What packing takes from weights: little of small ones too, told as it is, never a number less."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.locate import locate
from sapwood.model.checkpoint.packing import SPELLINGS, parse_packing
from sapwood.model.convert.conversion_plan import Settings, Source
from sapwood.model.convert.convert import convert
from sapwood.model.convert.loss import PackingLoss, loss_of, total_loss
from sapwood.model.pair import load_pair, try_out
from tests.model.convert.bundles import bundle
from tests.model.packs import Directories, dequantised, unpacked
from tests.model.reference import Array, logits

IDS = np.array([2, 17, 40, 41, 99, 3, 128, 250, 7, 17, 40, 12])
SMALL = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


def tensors_of(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in folder.glob("*.safetensors"):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        found |= loaded
    return found


def changed(directory: ModelDirectory, place: Path, change: Mapping[str, Any]) -> ModelDirectory:
    """A copy, with `change` (a function of the array) applied to tensors whose names end so."""
    made = ModelDirectory(shutil.copytree(directory.path, place / directory.path.name))
    tensors = {
        name: next((f(array) for end, f in change.items() if name.endswith(end)), array)
        for name, array in tensors_of(made.path).items()
    }
    mx.save_safetensors(str(made.path / "model.safetensors"), tensors, {"format": "pt"})
    return made


def stored_floats(folder: Path) -> dict[str, Array]:
    """Every packed weight of a part of a bundle as mlx dequantises it, in float64."""
    table, tensors = json.loads((folder / "config.json").read_text())["quantization"], {}
    # mlx dequantises affine weights in the dtype of their scales.
    stored = {
        name: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in tensors_of(folder).items()
    }
    for name in [n for n in stored if n.endswith(".scales")]:
        path = name.removesuffix(".scales")
        parts = [stored.get(f"{path}.{kind}") for kind in ("weight", "scales", "biases")]
        back = dequantised(parts, table.get(path, table), stored.get(f"{path}.global_scale"))
        tensors[f"{path}.weight"] = np.array(back, np.float64)
    return tensors


def source_floats(directory: ModelDirectory) -> dict[str, Array]:
    """A Hugging Face target's weights by the names of the bundle, in float64."""
    found: dict[str, Array] = {}
    for name, array in tensors_of(directory.path).items():
        target = name.replace("model.language_model.", "language_model.model.")
        wide = np.array(array.astype(mx.float32), np.float64)
        if name.endswith("gate_up_proj"):
            stem = target.removesuffix("gate_up_proj")
            for half, part in zip(("gate", "up"), np.split(wide, 2, axis=1), strict=True):
                found[f"{stem}switch_glu.{half}_proj.weight"] = part
        elif name.endswith("experts.down_proj"):
            found[target.replace("down_proj", "switch_glu.down_proj.weight")] = wide
        else:
            found[target] = wide
    return found


@pytest.mark.parametrize("factor", [1.0, 0.002, 1e-9, 1e5])
def test_nvfp4_keeps_weights_of_any_size(factor: float, pair: Directories, tmp_path: Path) -> None:
    """Each as well as the mode does it: without a scale of their own small ones are zeros."""
    target = changed(pair[0], tmp_path, {end: lambda a: a * factor for end in SMALL})
    bundle((target, pair[1]), tmp_path / "made", "nvfp4", "nvfp4")
    before, after = source_floats(target), stored_floats(tmp_path / "made" / "target")
    assert sum(name.endswith(SMALL) for name in after) >= 5
    for name, packed in after.items():
        off = np.sqrt(((packed - before[name]) ** 2).mean() / (before[name] ** 2).mean())
        assert off < 0.12, name
        assert not ((packed == 0) & (np.abs(before[name]) > np.abs(before[name]).mean())).any()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("how", ["4bit", "mxfp4", "nvfp4"])
def test_half_precision_is_packed_as_well(
    how: str, dtype: mx.Dtype, one: Directories, tmp_path: Path
) -> None:
    """What is lost is told against what lay in the file."""
    target = changed(one[0], tmp_path, {"": lambda a: a.astype(dtype) * 0.01})
    told = losses_of((target, one[1]), tmp_path / "made", how)
    before, after = source_floats(target), stored_floats(tmp_path / "made" / "target")
    for name, packed in after.items():
        off = np.sqrt(((packed - before[name]) ** 2).mean() / (before[name] ** 2).mean())
        assert off < 0.14 and told[name].share == pytest.approx(off, rel=1e-3)
    pair = load_pair(*locate(str(tmp_path / "made"), None))
    try_out(pair)


def test_nvfp4_is_what_mlx_makes_of_a_global_scale(pair: Directories, tmp_path: Path) -> None:
    bundle(pair, tmp_path / "made", "nvfp4")
    before, stored = source_floats(pair[0]), tensors_of(tmp_path / "made" / "target")
    scales = [name for name in stored if name.endswith(".global_scale")]
    assert len(scales) > 10
    for name in scales:
        path = name.removesuffix(".global_scale")
        each = mx.array(before[f"{path}.weight"].astype(np.float32)).reshape(
            -1, *before[f"{path}.weight"].shape[-2:]
        )
        wanted = [
            mx.quantize(matrix, 16, 4, "nvfp4", global_scale=scale)
            for matrix, scale in zip(each, stored[name].reshape(-1), strict=True)
        ]
        for kind, parts in zip(("weight", "scales"), zip(*wanted, strict=True), strict=True):
            found = stored[f"{path}.{kind}"]
            assert mx.array_equal(found, mx.stack(list(parts)).reshape(found.shape)), path


@pytest.mark.parametrize("factor", [1.0, 0.002])
def test_an_nvfp4_bundle_is_served_as_what_it_stands_for(
    factor: float, pair: Directories, tmp_path: Path
) -> None:
    target = changed(pair[0], tmp_path, {end: lambda a: a * factor for end in SMALL})
    bundle((target, pair[1]), tmp_path / "made", "nvfp4", "nvfp4")
    made, drafter = locate(str(tmp_path / "made"), None)
    loaded = load_pair(made, drafter, "float32")
    assert loaded.quantization.startswith("4-bit nvfp4, group 16")
    assert "drafter 4-bit nvfp4, group 16" in loaded.quantization
    try_out(loaded)
    joined_shards = ModelDirectory(tmp_path / "total_loss")
    joined_shards.path.mkdir()
    for file in made.path.glob("[!m]*"):
        shutil.copy(file, joined_shards.path)
    mx.save_safetensors(str(joined_shards.path / "model.safetensors"), tensors_of(made.path))
    twin = load_pair(unpacked(joined_shards, tmp_path), None, "float32")
    np.testing.assert_allclose(logits(loaded.target, IDS), logits(twin.target, IDS), atol=1e-4)


def losses_of(pair: Directories, place: Path, how: str, **settings: Any) -> dict[str, PackingLoss]:
    made = convert(
        Source(pair[0], "t", parse_packing(how, None)),
        Source(pair[1], "d"),
        place,
        Settings("test", **settings),
    )
    assert made.losses["assistant"] == ()
    return {loss.name: loss for loss in made.losses["target"]}


@pytest.mark.parametrize("how", SPELLINGS)
def test_what_was_lost_is_told_of_each_weight(how: str, one: Directories, tmp_path: Path) -> None:
    """In every mode, against NumPy over what lies in the files; some rows are nearly nothing."""

    def uneven(array: mx.array) -> mx.array:
        return array * mx.where(mx.arange(array.shape[0])[:, None] % 8 == 0, 1e-7, 1)

    target = changed(one[0], tmp_path, {"mlp.up_proj.weight": uneven})
    losses = losses_of((target, one[1]), tmp_path / "made", how, shard_bytes_max=100_000)
    before, after = source_floats(target), stored_floats(tmp_path / "made" / "target")
    assert losses.keys() == after.keys()
    group = parse_packing(how, None).group_size
    zeroed = 0
    for name, packed in after.items():
        off = ((packed - before[name]) ** 2).sum() / (before[name] ** 2).sum()
        assert losses[name].share == pytest.approx(off**0.5, rel=1e-4)
        if name.endswith("router.proj.weight"):
            continue
        gone = (packed.reshape(-1, group) == 0).all(axis=1, keepdims=True)
        due = (gone & (before[name].reshape(-1, group) != 0)).sum()
        assert losses[name].zeroed == due
        zeroed += due
    # mlx's affine scales are at least 1e-7; those of the mx modes are any power of two.
    assert (zeroed > 0) == (not how.startswith("mx"))


def test_a_conversion_that_goes_on_tells_all_of_it(one: Directories, tmp_path: Path) -> None:
    seen: list[str] = []

    def report(name: str, done: int, total: int) -> None:
        seen.append(name)
        if len(set(seen)) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle(one, tmp_path / "made", report=report)
    straight = losses_of(one, tmp_path / "straight", "4bit", shard_bytes_max=100_000)
    target = Source(one[0], one[0].path.name, parse_packing("4bit", None))
    drafter = Source(one[1], one[1].path.name)
    made = convert(target, drafter, tmp_path / "made", Settings("test", None, 100_000))
    assert {loss.name: loss for loss in made.losses["target"]} == straight


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_never_becomes_a_number(
    bad: float, how: str, one: Directories, tmp_path: Path
) -> None:
    def damaged(array: mx.array) -> mx.array:
        array[3, 5] = bad
        return array

    target = changed(one[0], tmp_path, {"layers.0.mlp.up_proj.weight": damaged})
    with pytest.raises(ModelRefused, match=r"mlp\.up_proj\.weight holds what is no finite number"):
        bundle((target, one[1]), tmp_path / "made", how)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("how", "kind", "code", "name"),
    [
        ("nvfp4", "scales", 0x7F, "e4m3"),
        ("mxfp4", "scales", 0xFF, "e8m0"),
        ("mxfp8", "scales", 0xFF, "e8m0"),
        ("mxfp8", "weight", 0xFF, "e4m3"),
    ],
)
def test_nor_is_one_that_was_packed_already_carried_on(
    how: str, kind: str, code: int, name: str, one: Directories, tmp_path: Path
) -> None:
    bundle(one, tmp_path / "packed", how, shard_bytes_max=1 << 30)
    target, drafter = locate(str(tmp_path / "packed"), None)
    assert drafter is not None
    tensors, wrong = tensors_of(target.path), f"layers.0.mlp.up_proj.{kind}"
    full = next(tensor for tensor in tensors if tensor.endswith(wrong))
    stored = np.array(tensors[full])
    stored.view(np.uint8).reshape(-1)[7] = code
    tensors[full] = mx.array(stored)
    mx.save_safetensors(str(target.path / "model.safetensors"), tensors, {"format": "mlx"})
    with pytest.raises(ModelRefused, match=rf"up_proj\.{kind} holds what is no finite .* {name}"):
        bundle((target, drafter), tmp_path / "made", None)


def test_weights_that_come_back_as_no_numbers_are_refused(one: Directories, tmp_path: Path) -> None:
    """From -3e38 to 3e38 a group is wider than float32 has scales for."""
    target = changed(one[0], tmp_path, {"layers.0.mlp.up_proj.weight": lambda a: mx.sign(a) * 3e38})
    with pytest.raises(ModelRefused, match=r"up_proj\.weight holds what is no finite number any"):
        bundle((target, one[1]), tmp_path / "made", "4bit")


@pytest.mark.parametrize("how", ["mxfp4", "mxfp8"])
def test_next_to_nothing_becomes_nothing_and_not_the_largest_number(
    how: str, one: Directories, tmp_path: Path
) -> None:
    """mlx alone gives 1e38 and infinity for rows of 1e-40 to 1e-36."""

    def tiny(array: mx.array) -> mx.array:
        powers = mx.array(10.0 ** -np.arange(30, 46, dtype=np.float64).repeat(8))
        return mx.where(mx.arange(array.shape[0])[:, None] < 128, powers[:, None], array)

    target = changed(one[0], tmp_path, {"layers.0.mlp.up_proj.weight": tiny})
    losses = losses_of((target, one[1]), tmp_path / "made", how)
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    before = source_floats(target)[name]
    after = stored_floats(tmp_path / "made" / "target")[name]
    assert (np.abs(after) <= 1.5 * np.abs(before)).all() and (after[:16] > 0).all()
    assert losses[name].zeroed == ((after == 0) & (before != 0)).sum() > 0


def test_losses_add_up() -> None:
    before = mx.array([[3.0, 0, 0, 0], [1e-30, 0, 0, 4]])
    after = mx.array([[3.0, 1, 0, 0], [0, 0, 0, 4]])
    loss = loss_of("a", before, after, 2)
    assert [loss.squares, loss.errors, loss.zeroed] == pytest.approx([25, 1, 1])
    both = total_loss("b", [loss, PackingLoss("c", 75, 3, 4)])
    assert (both.name, both.zeroed) == ("b", 5)
    assert both.share == pytest.approx(0.2)
    assert PackingLoss("nothing").share == total_loss("of nothing", []).share == 0
