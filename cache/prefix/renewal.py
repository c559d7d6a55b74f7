"""What a prompt computed again puts back into the tree: sliding K/V that had been thinned.

- The tree keeps one copy of each range of tokens, the one with more sliding K/V.
- A piece that takes the place of another brings full K/V of its own: whoever refers to the old one
  is to be told (Totals.renewals).
"""

from __future__ import annotations

from sapwood.cache.prefix.node import Node, Totals, weigh
from sapwood.cache.prefix.radix import split, trail
from sapwood.cache.prefix.snapshot import Payload


def renew(node: Node, known: Payload, totals: Totals) -> None:
    """Put what `known` has more of sliding K/V into the path above and at `node`.

    A prefix that was thinned and had to be computed again is whole afterwards. Takes `known`.
    """
    path = (each for each in reversed(trail(node)) if each.end > known.start)
    if not any(_gains(each, known) for each in path):
        known.close()
        return
    rest: Payload | None = known
    while rest is not None:
        rest, piece = cut(rest, node.start)
        assert piece is not None, f"{node} lies past what extend stored"
        above = node.above
        if _gains(node, piece):
            _replace(node, piece, totals)
        else:
            piece.close()
        node = above


def _replace(node: Node, piece: Payload, totals: Totals) -> None:
    """Swap the part of `node` that `piece` spans for `piece`. Takes it."""
    if piece.end < node.end:
        node = split(node, piece.end, totals)
    if piece.start > node.start:
        split(node, piece.start, totals)
    was, old = weigh(node), node.stored
    node.payload = piece
    totals.move(was, weigh(node))
    totals.renewals += 1
    old.close()


def cut(payload: Payload, at: int) -> tuple[Payload | None, Payload | None]:
    """What lies before and from `at`; None for an empty part. Takes `payload`."""
    if at <= payload.start:
        return None, payload
    if at >= payload.end:
        return payload, None
    return payload.split(at)


def _gains(node: Node, payload: Payload) -> bool:
    """Whether `payload` has sliding K/V of `node`'s edge that the node lacks."""
    start, end = max(node.start, payload.start), min(node.end, payload.end)
    return max(start, payload.sliding_start) < min(end, node.stored.sliding_start)
