"""The prefix tree as a terminal sees it.

- A line per node, cut where it is too long: its token range, what it weighs and where, who holds
  and reads it, whether it is pinned and when it was last used.
- Children are drawn in order of their weight below, heaviest first; what is past `rows_max` is
  counted, never silently left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text
from rich.tree import Tree

from sapwood import Tier, TreeNode
from sapwood.daemon.sizes import format_bytes

ROWS_MAX = 500


def draw_tree(nodes: Sequence[TreeNode], rows_max: int = ROWS_MAX) -> Tree:
    """`nodes` parents first, as DescribeTree sends them."""
    total = sum(_bytes(node) for node in nodes)
    top = Tree(Text(f"{len(nodes)} nodes · {format_bytes(total)}", style="bold"))
    branches: dict[int | None, Tree] = {None: top}
    for node in _in_drawing_order(nodes)[:rows_max]:
        branches[node.id] = branches[node.parent_id].add(_label(node))
    if len(nodes) > rows_max:
        top.add(Text(f"… {len(nodes) - rows_max} more", style="dim"))
    return top


def _in_drawing_order(nodes: Sequence[TreeNode]) -> list[TreeNode]:
    """Depth first, so that a cut at `rows_max` leaves whole branches."""
    children: dict[int | None, list[TreeNode]] = {}
    for node in nodes:
        children.setdefault(node.parent_id, []).append(node)
    below = {node.id: _bytes(node) for node in nodes}
    for node in reversed(nodes):
        if node.parent_id is not None:
            below[node.parent_id] += below[node.id]
    order: list[TreeNode] = []
    stack = _lightest_first(children.get(None, ()), below)
    while stack:
        node = stack.pop()
        order.append(node)
        stack += _lightest_first(children.get(node.id, ()), below)
    return order


def _lightest_first(nodes: Iterable[TreeNode], below: dict[int, int]) -> list[TreeNode]:
    return sorted(nodes, key=lambda node: below[node.id])


def _label(node: TreeNode) -> Text:
    label = Text.assemble(
        (f"[{node.start}, {node.end})", "cyan"),
        f"  {node.end - node.start} tokens  {format_bytes(_bytes(node))}",
        (f"  {node.hit_count} hits  {node.age_steps} steps old", "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )
    if on_disk := sum(size for (tier, _), size in node.stored.items() if tier is Tier.DISK):
        label.append(f"  {format_bytes(on_disk)} of it on disk", "dim")
    if node.leases:
        label.append(f"  leased x{node.leases}", "green")
    if node.readers:
        label.append(f"  read by {node.readers}", "green")
    if node.pinned:
        label.append("  pinned", "yellow")
    return label


def _bytes(node: TreeNode) -> int:
    return sum(node.stored.values())
