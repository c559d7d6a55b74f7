"""Which kernel MLX takes for an attention call, and how calls are laid out to get a fused one.

- ROUTES is the whole table, first match first. A row that leaves a call unfused says why that is
  right; a call that no row knows is unfused without a reason, and no default may make one
  (tests/cache/arrays/test_routes.py, over every family, depth and context).
- Its rules are those of the locked mlx, RULES_OF: ScaledDotProductAttention::use_fallback and
  eval_gpu in mlx/backend/metal/scaled_dot_product_attention.cpp, and in the macOS wheel's own code
  where that is newer. The thresholds that environment variables change are at their defaults.
- Left out is what begins beyond a step's slices: 1,024 queries at head size 512, 2,048 of a whole
  prompt at 256.
- Pure: what the device is comes in as Kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from sapwood.cache.geometry import ROW_TOKENS_MIN, TILE_TOKENS, whole_tiles

MaskKind = Literal["none", "causal", "array"]

RULES_OF = "0.32.4"  # the mlx version in which they were read

VECTOR_HEAD_SIZES = frozenset({64, 96, 128, 256})  # taken whatever the mask; 512 is a case apart
VECTOR_QUERIES_MAX = 8
VECTOR_PRODUCT_MAX = 32  # queries times the heads that share a K/V head
FULL_HEAD_SIZES = frozenset({64, 72, 80, 96, 128})
LONG_QUERIES_MIN = 1024  # of the full kernel at head size 256 on matrix units
WIDE_HEAD_KEYS_MIN = 1024  # of the vector kernel at head size 512
TILE_QUERIES_MIN = 8  # of a prompt slice, however long its context is
# Copies of a call's partials that exist at once under strict numerics: gathered, halved, joined.
STRICT_PARTIALS = 4


class Route(Enum):
    """How MLX computes a call. UNFUSED: products, mask and softmax one after another."""

    VECTOR = "vector kernel, one pass"
    VECTOR_TWO_PASS = "vector kernel, two passes"
    FULL = "full kernel"
    UNFUSED = "unfused"


@dataclass(frozen=True, slots=True)
class Kernels:
    """What of a device decides over attention.

    large: an Apple Max or Ultra. matrix_units: those of an M5 or later, which take the K/V's dtype.
    tile_tokens: not the device's, but chosen: more than 1 where numerics are strict. Every sum that
    a row sees has an order of its own then (arrays/strict_attention), and no route below is asked
    for; rows, rings and prefixes that are held by reference are whole tiles of so many tokens.
    """

    backend: Literal["cpu", "metal", "cuda"]
    large: bool = False
    matrix_units: bool = False
    tile_tokens: int = 1

    @property
    def strict(self) -> bool:
        """Whether numerics are."""
        return self.tile_tokens > 1

    def strictly(self) -> Kernels:
        """The same device with strict numerics."""
        return replace(self, tile_tokens=TILE_TOKENS)

    @property
    def row_tokens_min(self) -> int:
        """The smallest row of a full layer."""
        return whole_tiles(ROW_TOKENS_MIN, self.tile_tokens)

    @property
    def slice_scores_max(self) -> int:
        """Scores of one tile of a prompt slice, over all heads: what exists at once.

        A CPU likes them in its caches; a GPU makes a pass over K and V for each tile.
        """
        most = 1 << 20 if self.backend == "cpu" else 1 << 26
        return most // STRICT_PARTIALS if self.strict else most

    @property
    def score_arrays(self) -> int:
        """Arrays of a call's scores that exist at once, their softmax among them.

        A CPU's is made in several steps (arrays/powers).
        """
        return 5 if self.backend == "cpu" else 2

    def partial_bytes(self, head_size: int) -> int:
        """And for each of its scores what tiles of them have become: nothing, unless strict."""
        if not self.strict:
            return 0
        return -(-STRICT_PARTIALS * (head_size + 2) * 4 // self.tile_tokens)

    @property
    def wide_arrays(self) -> int:
        """Arrays of an MLP's inner width that exist at once: gate, up, and what is made of them."""
        return 6 if self.backend == "cpu" else 3


CPU_KERNELS = Kernels("cpu")


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The shape of one call. group: query heads that share a K/V head. queries, keys: of a row."""

    head_size: int
    group: int
    queries: int
    keys: int
    mask: MaskKind


Applies = Callable[[Kernels, AttentionCall], bool]


def _on_cpu(kernels: Kernels, _: AttentionCall) -> bool:
    return kernels.backend == "cpu"


def _on_cuda(kernels: Kernels, call: AttentionCall) -> bool:
    return kernels.backend == "cuda" and (call.head_size > 128 or call.mask == "array")


def _on_metal(kernels: Kernels, call: AttentionCall) -> bool:
    # A causal mask needs a key for each query; so does the vector kernel under any mask.
    bound = call.mask == "causal" or call.queries <= VECTOR_QUERIES_MAX
    return kernels.backend == "metal" and (call.queries <= call.keys or not bound)


def _vector(kernels: Kernels, call: AttentionCall) -> bool:
    if not _on_metal(kernels, call) or call.queries > VECTOR_QUERIES_MAX:
        return False
    if call.head_size == 512:
        alone = call.queries == 1 and call.group == 8 and call.mask != "array"
        return alone and call.keys >= WIDE_HEAD_KEYS_MIN
    small = call.queries * call.group <= VECTOR_PRODUCT_MAX
    return small and call.head_size in VECTOR_HEAD_SIZES


def _two_passes(kernels: Kernels, call: AttentionCall) -> bool:
    long = (kernels.large and call.keys >= 1024) or (call.group > 1 and call.keys >= 4096)
    return long and _vector(kernels, call)


def _full(kernels: Kernels, call: AttentionCall) -> bool:
    if not _on_metal(kernels, call) or call.queries <= VECTOR_QUERIES_MAX:
        return False
    return call.head_size in FULL_HEAD_SIZES


def _full_on_matrix_units(kernels: Kernels, call: AttentionCall) -> bool:
    long = call.queries >= LONG_QUERIES_MIN and call.mask != "none"
    return _on_metal(kernels, call) and kernels.matrix_units and call.head_size == 256 and long


def _wide_head(kernels: Kernels, call: AttentionCall) -> bool:
    return kernels.backend == "metal" and call.head_size == 512


def _slice_of_256(kernels: Kernels, call: AttentionCall) -> bool:
    slice_ = VECTOR_QUERIES_MAX < call.queries < LONG_QUERIES_MIN
    return _on_metal(kernels, call) and call.head_size == 256 and slice_


#: (whether a call goes this way, the way, why it may be unfused)
ROUTES: tuple[tuple[Applies, Route, str], ...] = (
    (_on_cpu, Route.UNFUSED, "MLX fuses attention on a GPU only"),
    (
        _on_cuda,
        Route.UNFUSED,
        "MLX's CUDA kernels end at head size 128 and take no array mask: folded, one product for"
        " each K/V head",
    ),
    (_two_passes, Route.VECTOR_TWO_PASS, ""),
    (_vector, Route.VECTOR, ""),
    (_full_on_matrix_units, Route.FULL, ""),
    (_full, Route.FULL, ""),
    (
        _wide_head,
        Route.UNFUSED,
        "by default MLX fuses head size 512 for one query of 8 heads to a K/V head, 1,024 keys and"
        " no array mask, or for slices of 1,024 queries, which no step has: folded, one product"
        " for each K/V head (fused under a mask it was 1.1 to 1.2 times quicker, mlx #4459)",
    ),
    (
        _slice_of_256,
        Route.UNFUSED,
        "MLX has a kernel and calls its own products quicker for less than 1,024 queries"
        " (use_fallback); tiles bound the scores",
    ),
    (lambda _, __: True, Route.UNFUSED, ""),
)


def route(kernels: Kernels, call: AttentionCall) -> tuple[Route, str]:
    """The way of a call, and why that is right where it is unfused; "": nobody has said so."""
    return next((way, why) for applies, way, why in ROUTES if applies(kernels, call))


def is_fused(kernels: Kernels, call: AttentionCall) -> bool:
    """Whether one kernel computes the call."""
    return route(kernels, call)[0] is not Route.UNFUSED


def queries_max(kernels: Kernels, head_size: int, group: int) -> int | None:
    """Most queries of a row with which one call stays on the vector kernel; None: it never is.

    A longer round is cut into several calls, so that it takes nobody else's off the kernel either.
    """
    if kernels.backend != "metal" or head_size not in VECTOR_HEAD_SIZES:
        return None
    return min(VECTOR_QUERIES_MAX, VECTOR_PRODUCT_MAX // group) or None


def slice_tiles(kernels: Kernels, call: AttentionCall, kv_heads: int) -> list[tuple[int, int]]:
    """[first, end) of the queries of every call that a prompt slice is computed in.

    call: the slice as one. No tile has more scores than kernels.slice_scores_max. One so short that
    only its heads keep it off the vector kernel (a prefix hit may leave so few tokens) is cut as a
    round is.
    """
    heads = kv_heads * call.group
    tile = max(TILE_QUERIES_MIN, kernels.slice_scores_max // (heads * call.keys))
    most = queries_max(kernels, call.head_size, call.group)
    tiles = []
    for first in range(0, call.queries, tile):
        end = min(first + tile, call.queries)
        step = most if most and end - first <= VECTOR_QUERIES_MAX else tile
        tiles += [(cut, min(cut + step, end)) for cut in range(first, end, step)]
    return tiles


def folds(kernels: Kernels, call: AttentionCall) -> bool:
    """Whether a call is computed here, with the heads of a group as one matrix's rows.

    One product reads each K/V head once, where one for each query head may read it again. So is
    what no kernel takes, all on a CPU; where MLX has a kernel for the head size it is left to MLX.
    """
    size = call.head_size
    if kernels.backend == "cpu":
        return True
    known = size <= 128 if kernels.backend == "cuda" else size in VECTOR_HEAD_SIZES
    return not known and not is_fused(kernels, call)


def lengthens(kernels: Kernels, call: AttentionCall) -> bool:
    """Whether a kernel takes the call with the heads of a group as further queries of one head."""
    if not kernels.matrix_units or call.queries <= VECTOR_QUERIES_MAX or is_fused(kernels, call):
        return False
    queries = call.group * call.queries
    return is_fused(kernels, AttentionCall(call.head_size, 1, queries, call.keys, "array"))
