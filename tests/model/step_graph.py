"""Primitives of a step's graph, family by family, as a table to review like code.

    python -m tests.model.step_graph --rewrite && git diff tests/model/step_graph.txt bench

- Beside it bench/step_graphs.txt, of nodes and kernels with more clients and every depth, which the
  model of a step reads; python -m bench.model --write says what follows from it.

- Ours is one submit of a greedy row through the real runner; mlx-lm's is its own step.
- A kernel is a node that computes: what only looks at an array in another way is none.
- Ratios are of a step, per layer of the model: of all nodes, which are host time, at most
  NODES_MAX; of kernels, which are launches too, at most KERNELS_MAX.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.families import FAMILIES, Family
from bench.step_graphs import (
    GRAPH_CLIENTS,
    GRAPH_DEPTHS,
    STEP_GRAPHS,
    GraphCount,
    GraphKey,
    graphs_text,
    peer_key,
)
from sapwood.model.pair import Pair
from tests.model.hollow import (
    CONTEXT,
    SAMPLERS,
    VIEWS,
    hollow_pair,
    nodes,
    our_step,
    row,
    rows,
    their_step,
)

TABLE = Path(__file__).with_suffix(".txt")
NODES_MAX, KERNELS_MAX, DRAFTS = 0.85, 0.9, 3


@dataclass(frozen=True, slots=True)
class Graphs:
    """Primitives of one family's steps. starts: calls that start the device, plain and drafted."""

    family: Family
    plain: Counter[str]
    drafted: Counter[str]
    theirs: Counter[str]
    starts: tuple[int, int]

    @property
    def ratio(self) -> float:
        """Nodes of ours to mlx-lm's own, per layer, as both have the same layers."""
        return self.plain.total() / self.theirs.total()

    @property
    def kernels_ratio(self) -> float:
        """Likewise, of what computes."""
        return kernels(self.plain) / kernels(self.theirs)


def graphs(family: Family) -> Graphs:
    """Built in a folder of its own, without computing anything. A second or two."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pair = hollow_pair(family, place)
        plain, drafted = our_step(pair, row(0)), our_step(pair, row(DRAFTS))
        return Graphs(
            family,
            nodes([array for call in plain for array in call], place),
            nodes([array for call in drafted for array in call], place),
            nodes(their_step(pair.target), place),
            (len(plain), len(drafted)),
        )


def kernels(counted: Counter[str]) -> int:
    """Nodes that compute."""
    return sum(count for name, count in counted.items() if name not in VIEWS)


def page(found: Graphs) -> str:
    """One family's part of the table."""
    layers = found.family.layers
    head = [
        f"{found.family.name}: {layers} layers, one greedy row, {CONTEXT} tokens of context",
        f"nodes a layer: ours {found.plain.total() / layers:.1f}, mlx-lm's "
        f"{found.theirs.total() / layers:.1f}: {found.ratio:.2f} times (at most {NODES_MAX})",
        f"kernels a layer: ours {kernels(found.plain) / layers:.1f}, mlx-lm's "
        f"{kernels(found.theirs) / layers:.1f}: {found.kernels_ratio:.2f} times "
        f"(at most {KERNELS_MAX})",
        f"with {DRAFTS} drafts: {found.drafted.total()} nodes, {kernels(found.drafted)} kernels",
        f"calls that start the device: {found.starts[0]}, with drafts {found.starts[1]}",
        "",
        f"{'primitive':26}{'ours':>6}{'a layer':>9}{'mlx-lm':>8}{f'{DRAFTS} drafts':>10}",
    ]
    columns = (found.plain, found.theirs, found.drafted)
    rows = [
        f"{name:26}{ours:>6}{ours / layers:>9.2f}{theirs:>8}{drafted:>10}"
        for name in sorted(set().union(*columns))
        for ours, theirs, drafted in [[column[name] for column in columns]]
    ]
    return "\n".join([*head, *rows, ""])


def count(pair: Pair, clients: int, depth: int, place: Path) -> GraphCount:
    """Of a step of so many greedy rows with so many drafts each."""
    calls = our_step(pair, rows(clients, depth), SAMPLERS[:1] * clients)
    found = nodes([array for call in calls for array in call], place)
    return GraphCount(found.total(), kernels(found), len(calls))


def theirs(pair: Pair, place: Path) -> GraphCount:
    """Of mlx-lm's own step, which is started as a whole."""
    found = nodes(their_step(pair.target), place)
    return GraphCount(found.total(), kernels(found), 1)


def counts(family: Family) -> dict[GraphKey, GraphCount]:
    """All of one family's that the model of a step asks for. Some ten seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pair = hollow_pair(family, place)
        ours = {
            (family.name, clients, depth): count(pair, clients, depth, place)
            for clients in GRAPH_CLIENTS
            for depth in GRAPH_DEPTHS
        }
        return ours | {peer_key(family.name): theirs(pair, place)}


def table() -> str:
    """All families'."""
    return "\n".join(page(graphs(family)) for family in FAMILIES.values())


def main() -> int:
    if sys.argv[1:] != ["--rewrite"]:
        print(__doc__)
        return 2
    TABLE.write_text(table())
    found = {key: each for family in FAMILIES.values() for key, each in counts(family).items()}
    STEP_GRAPHS.write_text(graphs_text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
