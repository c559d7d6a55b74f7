"""Weights laid side by side: the modules' own numbers, each once in memory, for every packing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from sapwood.model import device, products
from sapwood.model.checkpoint.weights import arrays
from sapwood.model.products import kept, laid_out, product_of, product_of_all

PLAIN: dict[str, Any] = {}
PACKINGS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "4bit": {"bits": 4, "group_size": 64},
    "8bit": {"bits": 8, "group_size": 32},
    "mxfp4": {"mode": "mxfp4"},
    "nvfp4": {"mode": "nvfp4"},
}
SIZES = (192, 64, 64)


def modules(*packings: str) -> list[Any]:
    """A linear layer for each, with rows of 128."""
    made = []
    for seed, (packing, size) in enumerate(zip(packings, SIZES, strict=False)):
        layer: Any = nn.Linear(128, size, bias=False)
        layer.weight = mx.random.normal((size, 128), key=mx.random.key(seed))
        if PACKINGS[packing]:
            layer = layer.to_quantized(**PACKINGS[packing])
        mx.eval(layer.parameters())
        made.append(layer)
    return made


def rows(count: int) -> mx.array:
    return mx.random.normal((count, 128), key=mx.random.key(9))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("count", [1, 5])
def test_one_product_is_what_the_modules_compute(packing: str, count: int) -> None:
    layers = modules(packing, packing, packing)
    fed = rows(count)
    expected = np.concatenate([np.array(layer(fed)) for layer in layers], axis=-1)
    found = product_of_all(layers)(fed)
    assert found.shape == (count, sum(SIZES))
    np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        np.array(product_of(layers[0])(fed)), expected[:, : SIZES[0]], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_modules_keep_their_numbers_as_views_of_the_whole(packing: str) -> None:
    layers = modules(packing, packing, packing)
    fed = rows(3)
    before = [np.array(layer(fed)) for layer in layers]
    names = [sorted(layer.parameters()) for layer in layers]
    product_of_all(layers)
    assert [sorted(layer.parameters()) for layer in layers] == names, "a parameter more, or less"
    for layer, numbers in zip(layers, before, strict=True):
        np.testing.assert_allclose(np.array(layer(fed)), numbers, rtol=0, atol=1e-4)


@pytest.mark.parametrize("packing", PACKINGS)
def test_nothing_is_in_memory_twice_however_often_it_is_asked_for(packing: str) -> None:
    layers = modules(packing, packing, packing)
    held = sum(a.nbytes for layer in layers for a in layer.values() if isinstance(a, mx.array))
    begun = mx.get_active_memory()
    kept = [product_of_all(layers) for _ in range(3)]
    grown = mx.get_active_memory() - begun
    assert grown < held // 8, f"{grown} bytes more for {held}"
    assert kept


def test_new_weights_are_laid_out_anew() -> None:
    layers = modules("plain", "plain")
    product_of_all(layers)
    layers[1].weight = mx.zeros_like(layers[1].weight)
    found = np.array(product_of_all(layers)(rows(1)))
    assert not found[:, SIZES[0] :].any()
    assert found[:, : SIZES[0]].all()


def test_what_is_made_of_a_module_is_made_once_and_counted_with_it() -> None:
    layer = modules("plain")[0]
    parameters = sorted(layer.parameters())
    one, same = (kept(layer, "_sum", [layer.weight], layer.weight.sum) for _ in range(2))
    assert one is same and any(one is each for each in arrays(layer))
    assert sorted(layer.parameters()) == parameters
    layer.weight = mx.zeros_like(layer.weight)
    assert kept(layer, "_sum", [layer.weight], layer.weight.sum).item() == 0


@pytest.mark.parametrize("mixed", [("4bit", "8bit"), ("plain", "4bit"), ("4bit", "nvfp4")])
def test_what_is_packed_differently_is_computed_apart(
    mixed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, fed = modules(*mixed), rows(2)
    monkeypatch.delattr(products, "stacked")
    expected = np.concatenate([np.array(layer(fed)) for layer in layers], axis=-1)
    np.testing.assert_allclose(np.array(product_of_all(layers)(fed)), expected, rtol=0, atol=1e-4)


def test_a_module_of_another_kind_computes_itself() -> None:
    """Such as one with a bias, or with a scale of its own (tensor_scale)."""
    layer = nn.Linear(128, 64)
    assert product_of(layer) is layer
    found = product_of_all([*modules("plain"), layer])(rows(2))
    np.testing.assert_array_equal(np.array(found[:, SIZES[0] :]), np.array(layer(rows(2))))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_module_that_goes_alone_is_laid_out_once_and_is_in_memory_once(packing: str) -> None:
    (layer,) = modules(packing)
    fed, expected = rows(3), np.array(layer(rows(3)))
    names = sorted(layer.parameters())
    mx.clear_cache()
    begun = mx.get_active_memory()
    found = [product_of(layer) for _ in range(3)]
    weight = layer.weight
    assert mx.get_active_memory() - begun < layer.weight.nbytes // 8
    assert sorted(layer.parameters()) == names
    product_of(layer)
    assert layer.weight is weight, "laid out again"
    for product in found:
        np.testing.assert_allclose(np.array(product(fed)), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.array(layer(fed)), expected, rtol=0, atol=1e-4)


def test_part_of_a_whole_is_not_laid_out_by_itself() -> None:
    layers = modules("plain", "plain")
    product_of_all(layers)
    part = layers[0].weight
    product_of(layers[0])
    assert layers[0].weight is part


@pytest.mark.parametrize(
    ("dtype", "columns", "turned"),
    [(mx.float32, True, True), (mx.bfloat16, True, False), (mx.float32, False, False)],
)
def test_a_weight_is_laid_by_columns_where_that_is_quicker(
    dtype: mx.Dtype, columns: bool, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (64, 32)
    asked: list[tuple[int, int]] = []

    def reads_columns(outputs: int, inputs: int) -> bool:
        asked.append((outputs, inputs))
        return columns

    monkeypatch.setattr(device, "reads_columns", reads_columns)
    weight = mx.random.normal(shape).astype(dtype)
    mx.eval(weight)
    laid = laid_out(weight)
    assert (laid is not weight) == turned
    assert mx.array_equal(laid, weight)
    assert asked == ([shape] if dtype == mx.float32 else [])


WIDE = (1024, 512)


def wide_module() -> Any:
    layer: Any = nn.Linear(WIDE[1], WIDE[0], bias=False)
    layer.weight = mx.random.normal(WIDE, key=mx.random.key(0))
    mx.eval(layer.parameters())
    return layer


@pytest.mark.parametrize("fills", [True, False])
@pytest.mark.parametrize("how", [product_of, lambda layer: product_of_all([layer, wide_module()])])
def test_a_tile_is_filled_where_that_is_quicker_and_the_rows_are_the_same(
    how: Callable[[Any], Callable[[mx.array], mx.array]],
    fills: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, asked = wide_module(), []
    monkeypatch.setattr(device, "fills_tiles", lambda outputs, inputs: fills)
    missing = device.rows_missing

    def rows_missing(count: int) -> int:
        asked.append(count)
        return missing(count)

    monkeypatch.setattr(device, "rows_missing", rows_missing)
    product = how(layer)
    for count in (1, 12, 16, 28):
        fed = mx.random.normal((count, WIDE[1]), key=mx.random.key(count))
        found, expected = np.array(product(fed)), np.array(layer(fed))
        assert found.shape[0] == count
        np.testing.assert_allclose(found[:, : WIDE[0]], expected, rtol=0, atol=1e-3)
    assert asked == ([1, 12, 16, 28] if fills else [])


def test_under_strict_numerics_no_product_has_more_rows_than_a_tile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its tile was tried as it is: a row has the same bits at every place of that many."""
    monkeypatch.setattr(device, "fills_tiles", lambda outputs, inputs: True)
    monkeypatch.delattr(device, "rows_missing")
    layer = wide_module()
    for product in (product_of(layer, True), product_of_all([layer, wide_module()], True)):
        found = product(mx.ones((5, WIDE[1])))
        expected = np.array(layer(mx.ones((5, WIDE[1]))))
        np.testing.assert_allclose(np.array(found[:, : WIDE[0]]), expected, rtol=0, atol=1e-3)
