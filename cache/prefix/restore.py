"""From where on a path a sequence can go on.

- A restore at t needs all full K/V of [0, t), which every path has, and the sliding K/V of
  [max(0, t - window), t) without a gap, wherever on the path it lies.
- Within one edge a later position is never worse, as long as the tree has its tokens.
"""

from __future__ import annotations

from sapwood.cache.prefix.node import Node


def restorable(node: Node, t: int, window: int) -> bool:
    """Whether the window before `t` is whole, for node.start < t <= node.end (or t = 0)."""
    first = max(0, t - window)
    while t > first:
        if node.stored.sliding_start > max(first, node.start):
            return False
        t, node = node.start, node.above
    return True


def longest_restorable(node: Node, t: int, window: int) -> int:
    """The largest restorable position up to `t` on the path of `node`, for t <= node.end."""
    while t > 0 and not (t > node.start and restorable(node, t, window)):
        t, node = min(t, node.start), node.above
    return t
