"""Nodes, kernels and starts of every family's step, as its exported graph has them.

- The table lies beside this file. `python -m tests.model.step_graph --rewrite` writes it, from one
  submit of the real runner in true shapes; a test builds the graphs anew and compares.
- Also in it: mlx-lm's own step of one row, by which what others published is read.
- Nothing here builds a graph: a benchmark imports no test.
- Pure but for the reading of that table.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

STEP_GRAPHS = Path(__file__).with_suffix(".txt")
GRAPH_CLIENTS, GRAPH_DEPTHS = (1, 4, 16), tuple(range(8))
_PEER = "mlx-lm:"
_HEAD = "family clients drafts nodes kernels starts"


class GraphCount(NamedTuple):
    """Of one step: what the host builds, what of it computes, in how many parts it is started."""

    nodes: int
    kernels: int
    starts: int


GraphKey = tuple[str, int, int]  # family, clients, drafts of each


def graphs_text(found: dict[GraphKey, GraphCount]) -> str:
    """The table as it is written."""
    rows = (" ".join(map(str, (*key, *count))) for key, count in found.items())
    return "\n".join([_HEAD, *rows]) + "\n"


def graphs_read(text: str) -> dict[GraphKey, GraphCount]:
    """And read again. Raises ValueError for a table of another kind."""
    head, *rows = text.splitlines()
    if head != _HEAD:
        raise ValueError(f"expected {_HEAD}, found {head}")
    found = {}
    for row in rows:
        family, *numbers = row.split()
        clients, depth, nodes, kernels, starts = map(int, numbers)
        found[family, clients, depth] = GraphCount(nodes, kernels, starts)
    return found


@cache
def _all() -> dict[GraphKey, GraphCount]:
    return graphs_read(STEP_GRAPHS.read_text())


def graph_count(family: str, clients: int, depth: int) -> GraphCount:
    """Of a step that is in the table; raises KeyError for any other."""
    return _all()[family, clients, depth]


def peer_key(family: str) -> GraphKey:
    """Under which mlx-lm's own step of one row stands in the table."""
    return _PEER + family, 1, 0


def peer_graph_count(family: str) -> GraphCount:
    """Of that step."""
    return _all()[peer_key(family)]
