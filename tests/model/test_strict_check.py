"""What is tried before a daemon promises strict numerics, and that it notices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn

from sapwood.model import products
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.one_text import WAYS, OneText
from sapwood.model.pair import Pair, load_pair
from sapwood.model.products import ROW_TILES, in_row_tiles, row_tile
from sapwood.model.strict_check import refuse_unless_strict
from tests.model.reference import checkpoint
from tests.quick import few_quick
from tests.system.pairs import pair


def _packs(_: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 64 == 0


def strict(name: str) -> Pair:
    return replace(pair(name, drafter=False), kernels=pair(name).kernels.strictly())


@pytest.mark.parametrize("name", few_quick(["e2b-tiny", "a4b-tiny"], "e2b-tiny"))
def test_it_holds_here(name: str) -> None:
    refuse_unless_strict(strict(name))


@pytest.mark.long
@pytest.mark.parametrize("name", ["e4b-tiny", "12b-tiny", "31b-tiny"])
@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_holds_of_all_families_packed_and_in_half_precision(
    name: str, bits: int, dtype: str
) -> None:
    loaded = load_pair(checkpoint(name), None, dtype, strict=True)
    if bits:
        nn.quantize(loaded.target, 64, bits, class_predicate=_packs)
    refuse_unless_strict(loaded)


def test_a_product_that_knows_how_many_rows_it_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a kernel that is chosen by the number of rows."""
    right = PackedGemma4.logits

    def by_rows(self: PackedGemma4, hidden: mx.array) -> mx.array:
        return right(self, hidden * (1 + 1e-3 * hidden.shape[0]))

    monkeypatch.setattr(PackedGemma4, "logits", by_rows)
    with pytest.raises(ModelRefused, match=r"in rounds with drafts, 9 of 9 rows"):
        refuse_unless_strict(strict("e2b-tiny"))


def test_a_row_that_knows_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel whose last rows are summed up otherwise."""
    right = PackedGemma4.logits

    def by_place(self: PackedGemma4, hidden: mx.array) -> mx.array:
        return right(self, hidden) + 1e-3 * (mx.arange(hidden.shape[0]) % 2)[:, None]

    monkeypatch.setattr(PackedGemma4, "logits", by_place)
    with pytest.raises(ModelRefused, match="have other bits than alone; --numerics fast"):
        refuse_unless_strict(strict("e2b-tiny"))


def test_fast_attention_is_refused() -> None:
    """It sums what is held by reference apart from the rest."""
    with pytest.raises(ModelRefused, match="strict numerics do not hold"):
        refuse_unless_strict(pair("e2b-tiny", drafter=False))


@pytest.mark.parametrize("tiles", [0, 1, 3])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_products_always_have_as_many_rows(tiles: int, beyond: int) -> None:
    count = max(0, tiles * row_tile() + beyond)
    seen: list[int] = []

    def rows_of(a: mx.array, b: mx.array) -> mx.array:
        seen.append(a.shape[0])
        return a + b.sum(axis=-1)

    a, b = mx.arange(count), mx.ones((count, 2), mx.int32)
    assert mx.array_equal(in_row_tiles(rows_of)(a, b), mx.arange(count) + 2)
    assert set(seen) <= {row_tile(), *([0] if not count else [])}


def test_tiles_are_those_in_which_no_place_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenBLAS's kernels that take twelve rows, and the four behind them by another one."""
    right = mx.array.__matmul__

    def twelve_and_four(rows: mx.array, weight: mx.array) -> mx.array:
        out = right(rows, weight)
        return mx.concatenate([out[:12], out[12:] * (1 + 1e-6)])

    monkeypatch.setattr(mx.array, "__matmul__", twelve_and_four)
    assert row_tile.__wrapped__() == 8


def test_where_every_place_matters_the_smallest_tile_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = mx.array.__matmul__

    def by_place(rows: mx.array, weight: mx.array) -> mx.array:
        return right(rows, weight) * mx.arange(rows.shape[0])[:, None]

    monkeypatch.setattr(mx.array, "__matmul__", by_place)
    assert row_tile.__wrapped__() == ROW_TILES[-1]


@pytest.mark.parametrize("name", few_quick(["e2b-tiny", "a4b-tiny"], "e2b-tiny"))
def test_every_product_of_a_strict_forward_has_as_many_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some BLAS no bit shows that a product was left out."""
    seen: list[int] = []
    right = products._product

    def counted(how: Any, held: dict[str, mx.array], strict: bool) -> Any:
        product = right(how, held, strict)
        return lambda rows: seen.append(rows.shape[0]) or product(rows)  # type: ignore[func-returns-value]

    monkeypatch.setattr(products, "_product", counted)
    OneText(strict(name)).logits(WAYS[2])
    assert seen and set(seen) == {row_tile()}
