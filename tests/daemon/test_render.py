"""The tree as the terminal shows it."""

from __future__ import annotations

from rich.console import Console

from sapwood import LayerKind, Tier, TreeNode
from sapwood.daemon.render import draw_tree


def node(id: int, parent: int | None, start: int, end: int, size: int, leases: int = 0) -> TreeNode:
    stored = {(Tier.DEVICE, LayerKind.FULL): size}
    return TreeNode(id, parent, start, end, stored, leases, 7, False, 2, (), None)


NODES = (
    node(1, None, 0, 10, 1024),
    node(2, 1, 10, 20, 100),
    node(3, 1, 10, 30, 5000, leases=2),
    node(4, None, 0, 4, 10),
)


def drawn(*nodes: TreeNode, rows_max: int = 100) -> list[str]:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(draw_tree(nodes, rows_max))
    return capture.get().splitlines()


def test_a_line_per_node_heaviest_branch_first() -> None:
    lines = drawn(*NODES)
    assert lines[0] == "4 nodes · 6.0 KiB"
    assert [line[line.index("[") : line.index(")") + 1] for line in lines[1:]] == [
        "[0, 10)",
        "[10, 30)",
        "[10, 20)",
        "[0, 4)",
    ]
    assert "20 tokens  4.9 KiB  2 hits  7 steps old  leased x2" in lines[2]


def test_what_is_not_drawn_is_counted() -> None:
    assert drawn(*NODES, rows_max=2)[-1].endswith("… 2 more")
    assert len(drawn(*NODES, rows_max=2)) == 4


def test_an_empty_tree() -> None:
    assert drawn() == ["0 nodes · 0 B"]
