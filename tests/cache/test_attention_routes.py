"""The table of attention routes, row by row: the shapes at both sides of every threshold."""

from __future__ import annotations

import re

import pytest

from sapwood.cache.attention_routes import (
    CPU_KERNELS,
    ROUTES,
    RULES_OF,
    AttentionCall,
    Kernels,
    MaskKind,
    Route,
    folds,
    is_fused,
    lengthens,
    queries_max,
    route,
    slice_tiles,
)
from tests.test_rooms import ROOT

METAL, LARGE = Kernels("metal"), Kernels("metal", large=True)
M5, CUDA = Kernels("metal", matrix_units=True), Kernels("cuda")
MASKS: tuple[MaskKind, ...] = ("none", "causal", "array")


def test_the_rules_are_those_of_the_locked_mlx() -> None:
    """After an upgrade: read use_fallback and eval_gpu again, then move RULES_OF."""
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^(mlx(?:-metal)?)==(\S+)", lock, re.MULTILINE))
    assert locked == {"mlx": RULES_OF, "mlx-metal": RULES_OF}


@pytest.mark.parametrize(
    ("kernels", "call", "expected"),
    [
        # Queries of a row, and with the heads that share a K/V head.
        (METAL, (256, 8, 4, 600, "array"), Route.VECTOR),
        (METAL, (256, 8, 5, 600, "array"), Route.UNFUSED),
        (METAL, (256, 4, 8, 600, "array"), Route.VECTOR),
        (METAL, (256, 2, 8, 600, "none"), Route.VECTOR),
        (METAL, (256, 2, 9, 600, "array"), Route.UNFUSED),
        (METAL, (256, 2, 8, 7, "array"), Route.UNFUSED),
        (METAL, (512 + 1, 2, 2, 600, "array"), Route.UNFUSED),
        # Two passes: a large device from 1,024 keys on, any other from 4,096 where heads share.
        (METAL, (256, 2, 1, 4095, "array"), Route.VECTOR),
        (METAL, (256, 2, 1, 4096, "array"), Route.VECTOR_TWO_PASS),
        (METAL, (256, 1, 1, 4096, "array"), Route.VECTOR),
        (LARGE, (256, 2, 1, 1023, "array"), Route.VECTOR),
        (LARGE, (256, 1, 1, 1024, "array"), Route.VECTOR_TWO_PASS),
        (LARGE, (256, 8, 5, 1024, "array"), Route.UNFUSED),
        # Head size 512.
        (METAL, (512, 8, 1, 1024, "none"), Route.VECTOR),
        (METAL, (512, 8, 1, 4096, "none"), Route.VECTOR_TWO_PASS),
        (METAL, (512, 8, 1, 1023, "none"), Route.UNFUSED),
        (METAL, (512, 8, 1, 1024, "array"), Route.UNFUSED),
        (METAL, (512, 8, 2, 1024, "none"), Route.UNFUSED),
        (METAL, (512, 4, 1, 1024, "none"), Route.UNFUSED),
        (M5, (512, 8, 512, 1024, "causal"), Route.UNFUSED),
        # Slices.
        (METAL, (128, 2, 64, 600, "causal"), Route.FULL),
        (METAL, (128, 2, 64, 63, "causal"), Route.UNFUSED),
        (METAL, (128, 2, 64, 63, "array"), Route.FULL),
        (METAL, (256, 2, 512, 600, "causal"), Route.UNFUSED),
        (M5, (256, 1, 1023, 600, "array"), Route.UNFUSED),
        (M5, (256, 1, 1024, 600, "array"), Route.FULL),
        (M5, (256, 1, 1024, 600, "none"), Route.UNFUSED),
        (METAL, (256, 1, 1024, 600, "array"), Route.UNFUSED),
        # Elsewhere.
        (CPU_KERNELS, (256, 8, 1, 600, "array"), Route.UNFUSED),
        (CUDA, (256, 8, 1, 600, "none"), Route.UNFUSED),
        (CUDA, (64, 8, 1, 600, "array"), Route.UNFUSED),
    ],
)
def test_both_sides_of_a_threshold(kernels: Kernels, call: tuple, expected: Route) -> None:  # type: ignore[type-arg]
    shape = AttentionCall(*call)
    assert route(kernels, shape)[0] is expected
    assert is_fused(kernels, shape) is (expected is not Route.UNFUSED)


def test_every_row_has_a_call_of_its_own_and_only_what_is_unfused_a_reason() -> None:
    """The last row is for what nobody has thought of: no way round it, and no reason."""
    *rows, last = ROUTES
    assert all(bool(why) is (way is Route.UNFUSED) for _, way, why in rows)
    assert last[1:] == (Route.UNFUSED, "")
    assert route(METAL, AttentionCall(256, 8, 5, 521, "array")) == (Route.UNFUSED, "")


def test_a_round_is_cut_where_the_vector_kernel_ends() -> None:
    assert [queries_max(METAL, 256, group) for group in (1, 2, 4, 8, 16, 32)] == [8, 8, 8, 4, 2, 1]
    assert queries_max(METAL, 256, 33) is None, "no cut would help"
    assert queries_max(METAL, 512, 8) is None, "folded whole"
    assert queries_max(CPU_KERNELS, 256, 8) is queries_max(CUDA, 256, 8) is None


def test_a_slice_is_cut_into_tiles_and_what_is_short_of_it_as_a_round_is() -> None:
    """Also what tiles leave at a long slice's end."""

    def tiles(kernels: Kernels, queries: int, keys: int, group: int = 8) -> list[tuple[int, int]]:
        return slice_tiles(kernels, AttentionCall(256, group, queries, keys, "array"), 8 // group)

    assert tiles(METAL, 9, 600) == [(0, 9)]
    assert tiles(METAL, 8, 600) == [(0, 4), (4, 8)]
    assert tiles(METAL, 5, 600) == [(0, 4), (4, 5)]
    assert tiles(METAL, 8, 600, group=4) == [(0, 8)]
    assert tiles(METAL, 38, 1 << 18) == [(0, 32), (32, 36), (36, 38)]
    assert tiles(CUDA, 38, 1 << 18) == [(0, 32), (32, 38)]
    assert tiles(CPU_KERNELS, 22, 1 << 18) == [(0, 8), (8, 16), (16, 22)]


def test_a_group_is_folded_where_no_kernel_takes_its_heads() -> None:

    def folded(
        kernels: Kernels, size: int, keys: int, mask: MaskKind = "array", queries: int = 1
    ) -> bool:
        return folds(kernels, AttentionCall(size, 8, queries, keys, mask))

    assert [folded(METAL, size, 5) for size in (32, 64, 256, 512)] == [True, False, False, True]
    assert [folded(CUDA, size, 5) for size in (64, 128, 256, 512)] == [False, False, True, True]
    assert all(folded(CPU_KERNELS, size, 5, mask) for size in (64, 512) for mask in MASKS)
    assert [folded(METAL, 512, 2000, mask) for mask in ("array", "none")] == [True, False]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ((256, 8, 128, 600, "array"), True),
        ((256, 8, 127, 600, "causal"), False),
        ((256, 2, 512, 600, "causal"), True),
        ((256, 1, 1024, 1024, "causal"), False),  # long enough as it is
        ((256, 8, 8, 600, "array"), False),  # a round
        ((512, 8, 512, 600, "causal"), False),
    ],
)
def test_a_slice_is_lengthened_where_that_makes_it_long_enough(call: tuple, expected: bool) -> None:  # type: ignore[type-arg]
    assert lengthens(M5, AttentionCall(*call)) is expected
    assert not lengthens(METAL, AttentionCall(*call))


def test_tiles_are_larger_on_a_gpu() -> None:
    assert CPU_KERNELS.slice_scores_max == 1 << 20
    assert METAL.slice_scores_max == CUDA.slice_scores_max == 1 << 26
