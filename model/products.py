"""A module's product with its weights, without the module: what a step's graph is built from.

- nn.Module looks up each attribute through Python, and nn.Linear transposes its weight anew in
  every step: in a step of one row that takes longer than building the rest of the graph.
- Weights exist once, however many runners a pair has. Those laid side by side, or by columns, take
  the place of what they were made of, which stays in its modules as views: there it computes what
  it did, and counts what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import mlx.core as mx
from mlx import nn

from sapwood.model import device

OfRows = Callable[[mx.array], mx.array]

# Rows of a product under strict numerics, the first that holds: few enough that a step of one row
# does not pay for many, and whole micro-kernels. OpenBLAS takes sixteen at once with AVX-512; its
# kernels of Haswell and Zen take twelve and then four, which sum in another order.
ROW_TILES = (16, 8, 4)
_TRIED_WIDTHS, _TRIED_OUTPUTS = (64, 300), (24, 1000)
_MARK, _LAID = "_side_by_side", "_laid"


@dataclass(frozen=True, slots=True)
class _Joined:
    """Arrays [all rows, .] of a product, and what of them its modules hold, by name."""

    arrays: dict[str, mx.array]
    parts: dict[str, list[mx.array]]

    def belongs_to(self, modules: Sequence[Any]) -> bool:
        """Whether these modules hold the parts still, and no others do."""
        return all(
            len(parts) == len(modules)
            and all(module[name] is part for module, part in zip(modules, parts, strict=True))
            for name, parts in self.parts.items()
        )


def product_of(module: Any, strict: bool = False) -> OfRows:
    """What the module computes of rows [T, .]; strict: in tiles of rows."""
    if _layout(module) is None:
        product: OfRows = module
    else:
        if type(module) is nn.Linear:
            _lay(module)
        product = _product(module, {name: module[name] for name in _names(module)}, strict)
    return in_row_tiles(product) if strict else product


@cache
def row_tile() -> int:
    """Of ROW_TILES the first in which a row has the same bits at every place, on this device.

    The last where none does; the whole model is tried behind it in any case (strict_check).
    """
    return next((tile for tile in ROW_TILES if _alike_at_all_places(tile)), ROW_TILES[-1])


def _alike_at_all_places(tile: int) -> bool:
    key = mx.random.key(0)
    for inputs in _TRIED_WIDTHS:
        rows = mx.contiguous(
            mx.broadcast_to(mx.random.normal((1, inputs), key=key), (tile, inputs))
        )
        for outputs in _TRIED_OUTPUTS:
            weight = mx.random.normal((outputs, inputs), key=key)
            for laid in (weight, mx.contiguous(weight.T).T):
                found = rows @ laid.T
                if not mx.array_equal(found, mx.broadcast_to(found[:1], found.shape)):
                    return False
    return True


def in_row_tiles(
    rows_of: Callable[..., mx.array], tile: int | None = None
) -> Callable[..., mx.array]:
    """The same function of arrays of rows [T, ...], computed of `tile` rows at a time.

    A product's bits depend on how many rows it has: so they always are as many, the last ones
    padded with zeros, and a row's bits are its own wherever it lies. tile: None for row_tile().
    """
    size = row_tile() if tile is None else tile

    def tiled(*arrays: mx.array) -> mx.array:
        count = arrays[0].shape[0]
        missing = -count % size
        cuts = list(range(size, count, size))
        if missing:
            arrays = tuple(mx.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for a in arrays)
        if not cuts:
            done = rows_of(*arrays)
        else:
            parts = zip(*(mx.split(a, cuts) for a in arrays), strict=True)
            done = mx.concatenate([rows_of(*part) for part in parts])
        return done[:count] if missing else done

    return tiled


def product_of_all(modules: Sequence[Any], strict: bool = False) -> OfRows:
    """What several modules compute of the same rows, side by side: one product if it can be one.

    It can where they are plain, or packed alike. strict: in tiles of rows.
    """
    layouts = {_layout(module) for module in modules}
    if len(modules) == 1:
        return product_of(modules[0], strict)
    if len(layouts) > 1 or None in layouts:
        products = [product_of(module, strict) for module in modules]
        return lambda rows: mx.concatenate([product(rows) for product in products], axis=-1)
    # Once: each runner of a pair would else have weights of its own.
    joined = getattr(modules[0], _MARK, None)
    if joined is None or not joined.belongs_to(modules):
        joined = _join(modules)
        setattr(modules[0], _MARK, joined)
    product = _product(modules[0], joined.arrays, strict)
    return in_row_tiles(product) if strict else product


def _join(modules: Sequence[Any]) -> _Joined:
    made, parts = {}, {}
    ends = [0]
    for module in modules:
        ends.append(ends[-1] + module.weight.shape[0])
    for name in _names(modules[0]):
        made[name] = stacked([module[name] for module in modules])
        if type(modules[0]) is nn.Linear:
            made[name] = laid_out(made[name])
        parts[name] = [made[name][a:b] for a, b in pairwise(ends)]
        mx.eval(parts[name])
        for module, part in zip(modules, parts[name], strict=True):
            module[name] = part
            if name == "weight":
                setattr(module, _LAID, _Laid(part))
    return _Joined(made, parts)


def kept(
    module: Any, name: str, sources: Sequence[mx.array], make: Callable[[], mx.array]
) -> mx.array:
    """What is made of a module's arrays, once for these: kept in the module and counted with it.

    name: begins with "_", so that it is no parameter.
    """
    of = f"{name}_of"
    known = module.get(of)
    if known is None or any(a is not b for a, b in zip(known, sources, strict=True)):
        made = make()
        mx.eval(made)
        module[name], module[of] = made, tuple(sources)
    found: mx.array = module[name]
    return found


def stacked(parts: Sequence[mx.array]) -> mx.array:
    """The rows of all, evaluated."""
    made = mx.concatenate(list(parts))
    mx.eval(made)
    return made


@dataclass(frozen=True, slots=True)
class _Laid:
    """What a module's weight became, so that it is laid out once."""

    weight: mx.array


def _lay(module: Any) -> None:
    known = getattr(module, _LAID, None)
    if known is None or known.weight is not module.weight:
        module["weight"] = laid_out(module.weight)
        setattr(module, _LAID, _Laid(module["weight"]))


def laid_out(weight: mx.array) -> mx.array:
    """The weight [out, in], evaluated, in the order in which the device reads it fastest."""
    outputs, inputs = weight.shape
    if weight.dtype != mx.float32 or not device.reads_columns(outputs, inputs):
        return weight
    columns = mx.contiguous(weight.T)
    mx.eval(columns)
    by_columns = columns.T
    mx.eval(by_columns)  # a view
    return by_columns


def _product(how: Any, held: dict[str, mx.array], strict: bool) -> OfRows:
    weight = held["weight"]
    if type(how) is nn.Linear:
        transposed = weight.T
        mx.eval(transposed)  # a view
        fills = weight.dtype == mx.float32 and device.fills_tiles(*weight.shape)
        if fills and not strict:
            return lambda rows: _filled(rows, transposed)
        return lambda rows: rows @ transposed
    scales, biases = held["scales"], held.get("biases")
    size, bits, mode = how.group_size, how.bits, how.mode
    return lambda rows: mx.quantized_matmul(
        rows, weight, scales, biases, True, group_size=size, bits=bits, mode=mode
    )


def _filled(rows: mx.array, transposed: mx.array) -> mx.array:
    """rows @ transposed, of more rows where a CPU is quicker so."""
    count = rows.shape[0]
    missing = device.rows_missing(count)
    if not missing:
        return rows @ transposed
    return (mx.pad(rows, [(0, missing), (0, 0)]) @ transposed)[:count]


def _names(module: Any) -> list[str]:
    return [name for name in ("weight", "scales", "biases") if module.get(name) is not None]


def _layout(module: Any) -> tuple[object, ...] | None:
    """What modules that are joined have in common; None: only the module knows how it works."""
    if "bias" in module:
        return None
    if type(module) is nn.Linear:
        return (nn.Linear, module.weight.dtype)
    if type(module) is nn.QuantizedLinear:
        return (nn.QuantizedLinear, module.group_size, module.bits, module.mode)
    return None
