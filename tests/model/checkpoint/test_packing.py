"""Packed weights load as what they stand for: every mode, bit width and group size of mlx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import quantize_model

from sapwood.model.checkpoint.config import PACKINGS, Quantization
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.packing import SPELLINGS, parse_packing
from sapwood.model.checkpoint.safetensors import weight_files
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.pair import Pair, load_pair, try_out
from tests.model.packs import Directories, packed, plain, unpacked
from tests.model.reference import NAMES, Array, edit, logits, parameters
from tests.quick import few_quick

EVERY = [
    Quantization(bits, group_size, mode)
    for mode, (widths, groups) in PACKINGS.items()
    for bits in widths
    for group_size in groups
]
# The one that most use, one of odd bits, and one of each other mode.
QUICK = (
    Quantization(4, 64, "affine"),
    Quantization(3, 32, "affine"),
    *(e for e in EVERY if e.mode != "affine"),
)
IDS = np.array([2, 17, 40, 41, 99, 3, 128, 250, 7, 17, 40, 12])


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return plain(request.param, tmp_path_factory.mktemp("plain"))


def _drafts(pair: Pair, hidden: mx.array) -> list[Array]:
    """Three steps' tokens, logits and states, on attention that gives the queries back."""
    assert pair.assistant is not None
    target, found = PackedGemma4(pair.target, pair.target_config.placeholders), []
    token, turns = mx.array([17]), pair.assistant.turns(mx.array([9]))
    for _ in range(3):
        said, hidden = pair.assistant.step(
            target.embed(token), hidden, turns, lambda _, queries: queries
        )
        best = mx.argmax(said.logits, axis=-1)
        token = best if said.ids is None else mx.take_along_axis(said.ids, best[:, None], 1)[:, 0]
        found += [np.array(a) for a in (token, mx.sort(said.logits), hidden)]
    return found


@pytest.mark.parametrize("packing", few_quick(EVERY, *QUICK), ids=str)
def test_packed_weights_give_the_logits_and_drafts_of_their_dequantised_ones(
    pair: Directories, packing: Quantization, tmp_path: Path
) -> None:
    made = packed(pair, tmp_path, packing)
    loaded = load_pair(*made, "float32")
    target, drafter = (unpacked(directory, tmp_path) for directory in made)
    twin = load_pair(target, drafter, "float32")
    assert loaded.quantization == f"{packing}, mixed; drafter {packing}, mixed"
    assert twin.quantization == ""
    rows = PackedGemma4(loaded.target, loaded.target_config.placeholders).embed(mx.array(IDS))
    assert rows.dtype == loaded.target(mx.array(IDS[None])).dtype == mx.float32
    np.testing.assert_allclose(logits(loaded.target, IDS), logits(twin.target, IDS), atol=1e-4)
    hidden = mx.array(np.random.default_rng(1).standard_normal((1, 128), np.float32))
    for one, other in zip(_drafts(loaded, hidden), _drafts(twin, hidden), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4, rtol=1e-4)
    try_out(loaded)


def test_target_and_drafter_are_packed_each_for_itself(pair: Directories, tmp_path: Path) -> None:
    target, drafter = packed(pair, tmp_path, Quantization(4, 64, "affine"))
    assert load_pair(target, pair[1]).quantization == (
        "4-bit affine, group 64, mixed; drafter not quantised"
    )
    assert load_pair(pair[0], drafter).quantization.startswith("not quantised; drafter 4-bit")
    assert load_pair(target, None).quantization == "4-bit affine, group 64, mixed"


def test_half_precision_is_kept_where_the_embedding_is_packed(
    pair: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` on a GPU: nothing of a mode without float scales tells the checkpoint's dtype."""
    target, _ = packed(pair, tmp_path, Quantization(4, 32, "mxfp4"))
    path = str(target.path / "model.safetensors")
    tensors = mx.load(path)
    assert isinstance(tensors, dict)
    floats = {k: v for k, v in tensors.items() if mx.issubdtype(v.dtype, mx.floating)}
    mx.save_safetensors(path, tensors | {k: v.astype(mx.float16) for k, v in floats.items()})
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    loaded = load_pair(target, None)
    target_of = PackedGemma4(loaded.target, loaded.target_config.placeholders)
    assert loaded.dtype == target_of.embed(mx.array(IDS)).dtype == mx.float16


@pytest.mark.parametrize("dtype", few_quick(["float32", "bfloat16", "float16"], "bfloat16"))
def test_experts_may_each_have_a_scale_of_their_own_as_mlx_lm_packs_them(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Far from where the groups' scales reach alone; mlx itself computes so on a GPU only."""
    target, _ = plain("a4b-tiny", tmp_path)
    small = {
        name: array * 1e-3
        for name, array in _tensors_of(target).items()
        if "experts" in name and not name.endswith("scale")
    }
    assert len(small) > 2
    _repack(target, small)
    model = load_pair(target, None, "float32").target
    _, document = quantize_model(model, _document(target), 16, 4, "nvfp4", global_scale=True)
    capsys.readouterr()  # it prints
    named = {f"language_model.{name}": array for name, array in parameters(model).items()}
    assert sum(name.endswith("global_scale") for name in named) == 6
    mx.save_safetensors(str(target.path / "model.safetensors"), named, {"format": "mlx"})
    table = {
        f"language_model.{key}" if isinstance(value, dict) else key: value
        for key, value in document["quantization"].items()
    }
    (target.path / "config.json").write_text(json.dumps(document | {"quantization": table}))
    twin = unpacked(target, tmp_path)
    loaded = load_pair(target, None, dtype)
    scales = [a for name, a in parameters(loaded.target).items() if name.endswith("global_scale")]
    assert {scale.dtype for scale in scales} == {mx.float32}
    found = np.array(loaded.target(mx.array(IDS[None])).astype(mx.float32))[0]
    off = np.abs(found - logits(load_pair(twin, None, "float32").target, IDS))
    # In half precision a router may choose otherwise: a few logits are far off, packed or not.
    assert np.median(off) < {"float32": 1e-5, "bfloat16": 0.06, "float16": 0.008}[dtype]
    assert dtype != "float32" or off.max() < 1e-4


def _tensors_of(directory: ModelDirectory) -> dict[str, mx.array]:
    tensors = mx.load(str(directory.path / "model.safetensors"))
    assert isinstance(tensors, dict)
    return tensors


def _document(directory: ModelDirectory) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory.path / "config.json").read_text())
    return document


def _repack(directory: ModelDirectory, change: dict[str, Any]) -> None:
    path = str(directory.path / "model.safetensors")
    tensors = mx.load(path)
    assert isinstance(tensors, dict)
    mx.save_safetensors(path, {k: v for k, v in (tensors | change).items() if v is not None})


_UP = "language_model.model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {f"{_UP}.weight": mx.zeros((128, 28), mx.uint32)},
            r"layers\.1\.mlp\.up_proj: found 7 bits in groups of 64 with .*float32, expected",
        ),
        (
            {f"{_UP}.scales": mx.zeros((128, 8)), f"{_UP}.biases": mx.zeros((128, 8))},
            r"layers\.1\.mlp\.up_proj: found 4 bits in groups of 16 with",
        ),
        (
            {f"{_UP}.scales": mx.zeros((128, 0))},
            r"\.safetensors: .*up_proj: cannot tell how it is packed",
        ),
        (
            {f"{_UP}.scales": mx.zeros((128, 2), mx.uint8)},
            r"up_proj: found 4 bits in .*of 64 with .*uint8",
        ),
        ({f"{_UP}.biases": None}, r"up_proj\.biases is missing"),
        ({f"{_UP}.weight": None}, r"\.safetensors: .*up_proj: cannot tell how it is packed"),
        ({f"{_UP}.global_scale": mx.ones((1,))}, r"up_proj: has a global scale, which only nvfp4"),
        ({f"{_UP}.weight": mx.zeros((64, 16), mx.uint32)}, r"expected .*\[128, 16\], found"),
    ],
)
def test_packed_weights_that_mlx_cannot_read_are_refused_by_name(
    change: dict[str, Any], message: str, pair: Directories, tmp_path: Path
) -> None:
    target, _ = packed(pair, tmp_path, Quantization(4, 64, "affine"))
    _repack(target, change)
    with pytest.raises(ModelRefused, match=message):
        load_pair(target, None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"bits": 7, "group_size": 64}, r"quantization\.bits is 7; supported is 2 or 3 or 4"),
        ({"bits": 1, "group_size": 64}, r"quantization\.bits is 1;"),
        ({"bits": 4, "group_size": 16}, r"quantization\.group_size is 16; supported is 32 or 64"),
        ({"bits": 8, "group_size": 32, "mode": "mxfp4"}, r"\.bits is 8; supported is 4"),
        ({"bits": 4, "group_size": 32, "mode": "nvfp4"}, r"group_size is 32; supported is 16"),
        ({"bits": 4, "group_size": 32, "mode": "q4_k"}, r"quantization\.mode is 'q4_k'"),
        (
            {"bits": 4, "group_size": 64, "a.b": {"bits": 9, "group_size": 64}},
            r"quantization\.a\.b\.bits is 9",
        ),
    ],
)
def test_tables_that_mlx_cannot_have_written_are_refused_by_key(
    table: dict[str, Any], message: str, pair: Directories, tmp_path: Path
) -> None:
    target, _ = packed(pair, tmp_path, Quantization(4, 64, "affine"))
    edit(target, "config.json", {"quantization": table})
    with pytest.raises(ModelRefused, match=message):
        load_pair(target, None)


@pytest.mark.parametrize("place", ["", "text_config"])
@pytest.mark.parametrize("beside", [{}, {"quantization": None}])
def test_a_table_is_found_beside_a_null(
    place: str, beside: dict[str, None], pair: Directories, tmp_path: Path
) -> None:
    """And where mlx-lm finds it: of what was packed, nothing is called a wrong shape."""
    target, _ = packed(pair, tmp_path, Quantization(4, 64, "affine"))
    path = target.path / "config.json"
    document = json.loads(path.read_text())
    inner = document.get(place, document)
    inner["quantization_config"] = document.pop("quantization")
    document.pop("quantization_config", None) if inner is not document else None
    path.write_text(json.dumps(document | beside))
    assert load_pair(target, None).quantization == "4-bit affine, group 64, mixed"


def test_a_packing_is_spelled_by_its_bits_or_its_mode() -> None:
    assert parse_packing("4bit", None) == Quantization(4, 64, "affine")
    assert parse_packing("6bit", 128) == Quantization(6, 128, "affine")
    assert parse_packing("nvfp4", None) == Quantization(4, 16, "nvfp4")
    assert {str(parse_packing(s, None).mode) for s in SPELLINGS} == set(PACKINGS)
    for text, group, message in (
        ("7bit", None, "none of 2bit, 3bit"),
        ("4bit", 16, "groups of 32, 64, 128, not of 16"),
        ("mxfp4", 64, "groups of 32, not of 64"),
        ("", None, "none of"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_packing(text, group)


def test_the_fixtures_headers_hold_what_they_should(pair: Directories, tmp_path: Path) -> None:
    """Every 2-D weight of this test's pairs is packed, the ones named in the table aside."""
    target, _ = packed(pair, tmp_path, Quantization(4, 128, "affine"))
    tensors = {t.name: t for file in weight_files(target) for t in file.tensors}
    plain_ones = {n for n, t in tensors.items() if len(t.shape) > 1 and t.dtype == "F32"}
    assert {n for n in plain_ones if n.endswith(".weight")} == {
        "language_model.model.layers.0.mlp.down_proj.weight"
    }
    table = json.loads((target.path / "config.json").read_text())["quantization"]
    assert table["language_model.model.layers.0.mlp.down_proj"] is False
