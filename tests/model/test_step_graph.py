"""What a step asks of the device, held without one: its graph against a table, mlx-lm's and Metal.

Shapes are the releases' true ones; nothing is computed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.families import FAMILIES
from bench.step_graphs import graph_count, peer_graph_count
from tests.metal_kernels import KERNELS
from tests.model.hollow import SAMPLERS, Node, everything, exported_nodes, hollow_pair, our_step
from tests.model.step_graph import (
    KERNELS_MAX,
    NODES_MAX,
    TABLE,
    Graphs,
    count,
    counts,
    graphs,
    page,
    theirs,
)

# Metal has no kernel for these, and Load would read a file in a step (metal/primitives.cpp).
NOT_ON_METAL = {
    *("AllGather", "AllReduce", "Load", "Recv", "ReduceScatter", "Send"),
    *("Cholesky", "Eig", "Eigh", "Inverse", "LUF", "QRF", "SVD"),
}
SCANS = {2: "sum", 3: "prod"}  # mlx/primitives.h, Scan::ReduceType


@pytest.fixture(scope="module", params=FAMILIES)
def found(request: pytest.FixtureRequest) -> Graphs:
    """One family's steps, each built once for all tests here."""
    return graphs(FAMILIES[request.param])


def test_the_table_is_what_a_step_is_made_of(found: Graphs) -> None:
    """If this fails: python -m tests.model.step_graph --rewrite, and read the difference."""
    written, expected = TABLE.read_text().splitlines(), page(found).splitlines()
    begin = written.index(expected[0])
    assert written[begin : begin + len(expected)] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_model_of_a_step_reads_is_the_graphs(name: str, tmp_path: Path) -> None:
    """If this fails: the same, and `python -m bench.model --write`."""
    pair = hollow_pair(FAMILIES[name], tmp_path)
    for clients, depth in ((1, 0), (1, 3), (4, 4), (16, 7)):
        found = count(pair, clients, depth, tmp_path)
        assert found == graph_count(name, clients, depth), f"{clients} clients, {depth} drafts"
    assert theirs(pair, tmp_path) == peer_graph_count(name)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_so_in_all_of_its_table(name: str) -> None:
    for key, found in counts(FAMILIES[name]).items():
        assert found == graph_count(*key), key


def test_a_step_has_fewer_nodes_a_layer_than_mlx_lms_own(found: Graphs) -> None:
    print(f"{found.family.name}: {found.ratio:.3f} of nodes, {found.kernels_ratio:.3f} of kernels")
    assert found.ratio <= NODES_MAX
    assert found.kernels_ratio <= KERNELS_MAX


@pytest.fixture(scope="module", params=["E2B", "26B-A4B"])
def everythings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Node]:
    """A step with all samplers, drafts and slices at once, as it is exported."""
    pair = hollow_pair(FAMILIES[request.param], tmp_path_factory.mktemp("pair"))
    made = exported_nodes(lambda: our_step(pair, everything(), SAMPLERS))
    names = {node.name for node in made}
    assert names >= {"ArgSort", "LogSumExp", "RandomBits", "ScatterAxis", "SearchSorted"}
    return made


def test_m1_what_a_step_makes_fits_metals_other_half_of_buffers(tmp_path: Path) -> None:
    """A node makes a buffer at most, and one step is under way: ten times over, of the deepest."""
    pair = hollow_pair(FAMILIES["31B"], tmp_path)
    made = exported_nodes(lambda: our_step(pair, everything(), SAMPLERS))
    assert 5000 < len(made) < 499_000 / 2 / 10


def test_metal_has_every_primitive_of_a_step(everythings: list[Node]) -> None:
    assert {node.name for node in everythings} & NOT_ON_METAL == set()


def test_nothing_of_eight_bytes_is_scattered(everythings: list[Node]) -> None:
    """Metal refuses it (metal/indexing.cpp)."""
    scattered = {node.dtype for node in everythings if node.name.startswith("Scatter")}
    assert scattered and max(dtype.size for dtype in scattered) < 8


def test_half_precision_stays_so_up_to_the_samplers(everythings: list[Node]) -> None:
    heavy = {"GatherMM", "Matmul", "RMSNorm", "RoPE", "ScaledDotProductAttention", "Softmax"}
    found = {(node.name, str(node.dtype)) for node in everythings if node.name in heavy}
    # The routers' softmax and the samplers' are of float32 on purpose.
    assert {name for name, dtype in found if "bfloat16" not in dtype} <= {"Softmax"}
    assert {name for name, _ in found} >= heavy - {"GatherMM"}


def test_running_sums_are_those_whose_kernels_are_looked_for(everythings: list[Node]) -> None:
    """MLX's name of a scan's kernel, against the table of tests/metal_kernels.py."""
    for node in (node for node in everythings if node.name == "Scan"):
        kind, _, reverse, inclusive = node.arguments
        ends = ("reverse_" if reverse else "") + ("inclusive" if inclusive else "exclusive")
        dtype = str(node.dtype).removeprefix("mlx.core.")
        assert f"contig_scan_{ends}_{SCANS[kind]}_{dtype}_{dtype}" in KERNELS
