"""How many tokens of live K/V a slot has room for, by kind of layer, and what a buffer weighs.

The arrays are made to these sizes and the ledger reserves by them: one module for both, so that
neither can change alone. Pure numbers.
"""

from __future__ import annotations

# The smallest row of a full layer: a prompt's end and a reply of the usual length, behind a prefix.
ROW_TOKENS_MIN = 160
# Under strict numerics keys are summed over in tiles of so many absolute positions: tile t holds
# [t * TILE_TOKENS, (t + 1) * TILE_TOKENS), and rows and rings are whole tiles.
TILE_TOKENS = 64
ROW_TOKENS_ROUND = 512
ARRAY_ELEMENTS_MAX = (1 << 31) - 1  # past it not all of MLX's kernels count right
# In how many evaluations, each of which the host waits for, pools grow and prefixes are restored.
MOVED_GROUPS_MAX = 4


def row_tokens(tokens: int, tokens_min: int = ROW_TOKENS_MIN) -> int:
    """A full layer's row for `tokens` tokens: the smallest class that holds them.

    Classes are tokens_min x 2^i, from ROW_TOKENS_ROUND on the power of two below, as contexts are.
    Doubling, so that a sequence that grows moves log2 times, and padding never doubles a read.
    """
    capacity = tokens_min
    while (row := _rounded(capacity)) < tokens:
        capacity *= 2
    return row


def _rounded(capacity: int) -> int:
    return capacity if capacity < ROW_TOKENS_ROUND else 1 << (capacity.bit_length() - 1)


def whole_tiles(tokens: int, tile: int) -> int:
    """So many tokens rounded up to whole tiles."""
    return -(-tokens // tile) * tile


def ring_tokens(window: int, round_rows_max: int, tile: int = 1) -> int:
    """A sliding layer's ring: the window, the deepest round's rows, and one more.

    The drafter looks at window + 1 committed positions while a round of `round_rows_max` rows, the
    bonus token's included, is written behind them. tile: in whole ones, and one more of them, so
    that what a query sees of a tile of the ring is of one tile of positions.
    """
    return whole_tiles(window + round_rows_max + tile, tile)


def tail_tokens(window: int) -> int:
    """What a prefill keeps aside of a sliding layer: what its next slice sees before itself."""
    return max(0, window - 1)


def buffer_bytes(asked: int, page_bytes: int) -> int:
    """What a device takes for a buffer of `asked` bytes, from above: whole pages of it.

    So a buffer that is cut in two takes a page more at most, and two that are joined never more.
    """
    return -(-asked // page_bytes) * page_bytes


def moved_bytes(live_bytes: int, layers: int) -> int:
    """Of pools of so many bytes in so many like layers, what exists twice while they grow."""
    return live_bytes * -(-layers // MOVED_GROUPS_MAX) // layers if layers else 0
