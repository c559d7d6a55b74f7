"""A step's Python calls do not grow unnoticed: host time that no machine's load hides.

Who brings them down brings the bounds down with them; `python -m tests.system.step_calls` says by
file where they are. Counted with Python 3.11; later ones call less.
"""

from __future__ import annotations

import pytest

from tests.system.pairs import DEMO, pair
from tests.system.step_calls import StepCalls, step_calls

# Some 3 % above what they were when this was written: 1,220 and 1,690 of one row, 126 of a further.
CALLS_MAX = {0: 1257, 3: 1720}
CALLS_OF_A_ROW_MAX = 130
ROWS = 4


@pytest.fixture(scope="module")
def alone() -> dict[int, StepCalls]:
    return {depth: step_calls(pair(DEMO), 1, depth) for depth in CALLS_MAX}


@pytest.mark.parametrize("depth", CALLS_MAX)
def test_a_step_of_one_row(alone: dict[int, StepCalls], depth: int) -> None:
    calls = alone[depth].python
    assert 500 < calls <= CALLS_MAX[depth]


def test_a_further_row(alone: dict[int, StepCalls]) -> None:
    calls = step_calls(pair(DEMO), ROWS, 0).python - alone[0].python
    assert 0 < calls <= (ROWS - 1) * CALLS_OF_A_ROW_MAX


def test_all_that_a_step_runs_through_is_counted(alone: dict[int, StepCalls]) -> None:
    """The loop, the core, the runner, the model, mlx's modules; and no call of the counting's.

    Of mlx's modules a step without a drafter meets those of the layers' own inputs.
    """
    files = alone[0].by_file
    assert {
        *("daemon/engine/engine.py", "scheduler/core/core.py", "model/runner.py"),
        *("model/gemma4.py", "model/dense.py", "model/products.py"),
        *("cache/arrays/attention.py", "mlx/nn/layers/linear.py"),
    } <= files.keys()
    assert not any("step_calls" in file for file in files)
    assert files["model/runner.py"] >= 3 and alone[0].c > 300
