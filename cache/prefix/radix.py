"""The compressed radix tree of token ids: how it is walked, and the moves that change its shape.

- An edge is packed int32, never empty except at a root; a root spans [0, 0) and stores nothing.
- child.start == parent.end, and no two siblings begin with the same token.
- Every node but a root owns one Payload, which spans exactly its edge.
- Whoever holds a path's end keeps its identity: split makes a new upper half, merge keeps the
  child. So the leases, children and ghosts that hang on an end stay where they are.
- A payload's operation comes before the first change of shape: where it raises, nothing moved.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from sapwood.cache.prefix.node import Node, Totals, Weight, weigh
from sapwood.cache.prefix.snapshot import Payload

# A merge copies its edge; a release that finds a long prefill merges this many edges of it.
MERGED_EDGES_MAX = 4


def pack(tokens: Sequence[int]) -> array[int]:
    """`tokens` as an edge; one that is packed already is returned as it is."""
    return tokens if isinstance(tokens, array) else array("i", tuple(tokens))


def common(edge: array[int], offset: int, tokens: Sequence[int], at: int, stop: int) -> int:
    """How many tokens of edge[offset:] and tokens[at:stop] agree.

    Compares whole slices, and bisects only where they differ: no Python loop over tokens.
    """
    count = min(len(edge) - offset, stop - at)
    ours, theirs = edge[offset : offset + count], pack(tokens[at : at + count])
    if ours == theirs:
        return count
    low, high = 0, count  # [0, low) agrees, [low, high) does not
    while high - low > 1:
        middle = (low + high) // 2
        if ours[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle
    return low


def descend(node: Node, tokens: Sequence[int], start: int, stop: int) -> tuple[Node, int]:
    """Follow tokens[start:stop] from position `start`, which lies in `node` or at its end.

    Returns the deepest node reached and the position up to which the tree agrees; the position
    lies in (node.start, node.end], unless nothing agreed.
    """
    assert node.start <= start <= node.end, f"{start} is outside {node}"
    position = start
    while position < stop:
        if position < node.end:
            position += common(node.edge, position - node.start, tokens, position, stop)
            if position < node.end:
                break
        elif child := node.children.get(tokens[position]):
            node = child
        else:
            break
    return node, position


def climb(node: Node, position: int) -> Node:
    """The node of `node`'s path that contains `position`, for position <= node.end."""
    while node.start > position:
        node = node.above
    return node


def trail(node: Node) -> list[Node]:
    """`node` and its ancestors, the root left out, topmost first."""
    nodes = []
    while node.parent is not None:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


def preorder(roots: Iterable[Node]) -> Iterator[Node]:
    """Every node, parents before children. The tree may not change meanwhile."""
    stack = list(roots)
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def attach(parent: Node, edge: array[int], payload: Payload, age: int, totals: Totals) -> Node:
    """A new leaf under `parent`, which must end where `payload` starts. Takes `payload`."""
    assert (payload.start, len(edge)) == (parent.end, payload.end - payload.start) and edge, (
        f"[{payload.start}, {payload.end}) with {len(edge)} tokens under {parent}"
    )
    assert edge[0] not in parent.children, f"{parent} has a child for {payload.start} already"
    node = Node(totals.draw_id(), parent, edge, payload.start, payload.end, payload, age)
    parent.marked = parent.marked or bool(parent.children)
    parent.children[edge[0]] = node
    totals.add(node)
    totals.move(Weight(), weigh(node))
    return node


def detach(leaf: Node, totals: Totals) -> None:
    """Cut off a leaf that nobody leases and close its payload."""
    assert not leaf.leases and not leaf.children, f"{leaf} is in use"
    del leaf.above.children[leaf.edge[0]]
    totals.move(weigh(leaf), Weight())
    totals.remove(leaf)
    leaf.stored.close()


def split(node: Node, at: int, totals: Totals) -> Node:
    """Cut `node` at `at`; returns the new upper half [start, at), `node` keeps [at, end).

    Leases that end at or before `at` stay on the upper half only. What is stored takes a page more
    at most for each kind of layer: its last one is no longer shared.
    """
    assert node.start < at < node.end, f"cannot split {node} at {at}"
    was, parent, length = weigh(node), node.above, at - node.start
    above, node.payload = node.stored.split(at)
    upper = Node(totals.draw_id(), parent, node.edge[:length], node.start, at, above, node.age)
    parent.children[upper.edge[0]] = upper
    node.parent, node.edge, node.start = upper, node.edge[length:], at
    upper.children[node.edge[0]] = node
    upper.leases, upper.hits = node.leases, node.hits
    upper.pins, upper.windows, upper.doomed = node.pins, node.windows, node.doomed
    upper.used, upper.exposed = node.used, node.exposed
    for lease in [lease for lease in node.landed if lease.end <= at]:
        node.landed.remove(lease)
        node.leases -= 1
        node.hits -= lease.hit_end == lease.end
        upper.landed.add(lease)
        lease.node = upper
    totals.add(upper)
    totals.splits += 1
    grown = totals.move(was, weigh(upper, node))
    assert grown >= 0, f"splitting {upper} from {node} changed the bytes by {grown}"
    return upper


def joinable(parent: Node, child: Node) -> bool:
    """Whether merging loses nothing: no restore point, no sliding K/V to a gap.

    And both are held alike: by the same leases and pins, to go with the same of them.
    """
    above, below = parent.stored, child.stored
    return (
        len(parent.children) == 1
        and not parent.marked
        and (parent.leases, parent.windows) == (child.leases, child.windows)
        and parent.doomed == child.doomed
        and (below.sliding_start == below.start or above.sliding_start == above.end)
    )


def merge(parent: Node, child: Node, totals: Totals) -> Node:
    """Join `parent` and its only child to the child, which then starts where `parent` did."""
    assert parent is child.parent and joinable(parent, child), f"cannot merge {parent}, {child}"
    was = weigh(parent, child)
    child.payload = parent.stored.merge(child.stored)
    child.parent, child.start, child.edge = parent.above, parent.start, parent.edge + child.edge
    child.above.children[child.edge[0]] = child
    child.age = max(parent.age, child.age)
    child.hits = max(parent.hits, child.hits)
    totals.remove(parent)
    totals.merges += 1
    grown = totals.move(was, weigh(child))
    assert grown <= 0, f"merging {parent} into {child} changed the bytes by {grown}"
    return child


def compact(chain: Sequence[Node], tokens_max: int, totals: Totals) -> None:
    """Merge neighbours of `chain`, a path from the top down, to edges of at most `tokens_max`.

    Pairwise and in rounds: payloads that copy at once copy a token log2(nodes of its edge) times,
    those whose copies are made later (arrays/ranges) once. One call stops after MERGED_EDGES_MAX
    such edges: the next one goes on, so no pause is long.
    """
    for group in _mergeable(chain, tokens_max)[:MERGED_EDGES_MAX]:
        while len(group) > 1:
            odd = [group[-1]] if len(group) % 2 else []
            pairs = zip(group[::2], group[1::2], strict=False)
            group = [merge(upper, lower, totals) for upper, lower in pairs] + odd


def _mergeable(chain: Sequence[Node], tokens_max: int) -> list[list[Node]]:
    """The runs of `chain` that may each become one edge, topmost first."""
    runs: list[list[Node]] = []
    length = 0
    for node in chain:
        length += len(node.edge)
        if runs and length <= tokens_max and joinable(runs[-1][-1], node):
            runs[-1].append(node)
        else:
            runs.append([node])
            length = len(node.edge)
    return [run for run in runs if len(run) > 1]
