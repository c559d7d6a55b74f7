"""Nothing in a step waits for the device but `wait`: read from the syntax trees.

- To read a number of an mx array is to wait until it is computed, and everything before it. What
  reads: item, tolist, NumPy's array and asarray, bool, and an `if` on what mlx computed.
- Host numbers are made into NumPy arrays everywhere. A call that says its dtype is taken for such a
  one, and so is a list that stands in the call; the rest is named below, with why it does not wait
  or may. float and int are taken for host numbers' own.
- The rooms are those that a step runs through. Checkpoints, conversions and prompts are no steps.
- What syntax does not show a submit does: of a whole model, where a single read would compute it.
  Whether what looks like a host number is one, mlx says: tests/model/test_host_reads.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from bench.families import FAMILIES
from tests.model.hollow import SAMPLERS, everything, hollow_pair, our_step
from tests.test_rooms import NAMES, PATHS, room_of, tree

ROOMS = {"cache/arrays", "model", "model/sampling"}
HOST = "host numbers: of the plan, or of NumPy"
WAIT = "the step's one wait"
LOAD = "before anybody is served"

#: file -> function -> why it may
ALLOWED = {
    "cache/arrays/batch": {"__init__": HOST},
    "cache/arrays/eight_bits": {"to_eight_bits": "a copy for the disk, between two steps"},
    "cache/arrays/paging": {"copy_out": "a copy for the disk, between two steps"},
    "model/assistant": {"_check_ordering": LOAD},
    "model/device": dict.fromkeys(
        ("_is_cpu", "can_wire", "shares_host_memory"), "what the device is: no array"
    ),
    "model/drawing": {"step_masks": HOST},
    "model/pair": {"try_out": LOAD},
    "model/plain_forward": {"below_maximum": "a check or a replay, between two steps"},
    "model/one_text": {"_step": LOAD},
    "model/replay": {
        **dict.fromkeys(("_judged", "_step"), "a replay, between two steps"),
        "kept_round": "what was kept, behind the step's wait",
    },
    "model/products": {"_alike_at_all_places": LOAD},
    "model/step_values": {
        "read_drafts": "of constrained rows: the target is at work meanwhile",
        "read_rows": WAIT,
    },
    "model/sampling/acceptance": {"_committed": HOST},
    "model/sampling/distribution": {
        **dict.fromkeys(("starts", "owners", "firsts", "gumbel", "coins"), HOST),
    },
    "model/sampling/logprobs": {"logprobs_report": HOST, "read": WAIT},
    "model/sampling/proposals": {"draft": HOST},
}

Place = tuple[str, str]


def reads(name: str) -> Iterator[tuple[Place, str]]:
    """(file, innermost function) and text of everything in a file that may read an array."""
    for function, node in inner(tree(PATHS[name])):
        if is_read(node):
            yield (name, function), f"{name}:{getattr(node, 'lineno', 0)} {ast.unparse(node)}"


def inner(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the name of the function that it lies in."""
    for child in ast.iter_child_nodes(node):
        within = child.name if isinstance(child, ast.FunctionDef) else function
        yield within, child
        yield from inner(child, within)


def is_read(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="item" | "tolist")):
            return True
        case ast.Call(func=ast.Name(id="bool"), args=[_]):
            return True
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="np"), attr="array" | "asarray"), args=[value]
        ):
            return not isinstance(value, ast.List | ast.ListComp | ast.Tuple)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            return is_computed(test)
        case ast.Assert(test=test):
            return is_computed(test)
    return False


def is_computed(test: ast.expr) -> bool:
    """Whether a condition asks mlx itself."""
    called = (node.func for node in ast.walk(test) if isinstance(node, ast.Call))
    return any(
        isinstance(f, ast.Attribute)
        and isinstance(f.value, ast.Name)
        and f.value.id == "mx"
        and f.attr not in ("Device", "default_device")
        for f in called
    )


FILES = [name for name in NAMES if room_of(name) in ROOMS]


@pytest.mark.parametrize("name", FILES)
def test_nothing_reads_an_array_in_a_step(name: str) -> None:
    allowed = ALLOWED.get(name, {})
    strange = [text for (_, function), text in reads(name) if function not in allowed]
    assert strange == [], "host numbers say their dtype, as in np.array(x, np.int32)"


def test_no_place_is_named_that_reads_nothing() -> None:
    found = {place for name in FILES for place, _ in reads(name)}
    listed = {(name, function) for name, functions in ALLOWED.items() for function in functions}
    assert listed <= found


@pytest.mark.parametrize(
    "line",
    [
        *("x.item()", "x.tolist()", "np.array(x)", "np.asarray(x.y)", "bool(x)"),
        *("while mx.any(x): ...", "if not mx.array_equal(x, y): ...", "assert mx.all(x)"),
        "a if mx.all(x) else b",
    ],
)
def test_what_reads_is_known(line: str) -> None:
    assert any(is_read(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize("line", ["np.array(x, np.int32)", "np.array([x])", "if x.size: ..."])
def test_what_does_not_read_is_let_be(line: str) -> None:
    assert not any(is_read(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.long
def test_a_submit_computes_nothing(tmp_path: Path) -> None:
    """Its graph is built and handed over; a read in it would compute E2B's layers at full size."""
    pair = hollow_pair(FAMILIES["E2B"], tmp_path)
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    calls = our_step(pair, everything(), SAMPLERS)
    assert mx.get_peak_memory() - held < 1 << 20
    mx.eval(calls[0][0])  # a sign that the graph can be computed, and that this would be noticed
    assert mx.get_peak_memory() - held > 1 << 20
