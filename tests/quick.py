"""Which of many parameters a quick test has: `make test-long` has them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine

LONG = pytest.mark.long


def few_quick(values: Iterable[Any], *quick: Any) -> list[Any]:
    """All of `values` for a parametrization, those but `quick` marked as long.

    A tuple is of several parameters.
    """
    listed = list(values)
    assert set(quick) <= set(listed), "a quick one that is none of them"
    return [
        pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=[] if v in quick else LONG)
        for v in listed
    ]


def for_long(machine: type[RuleBasedStateMachine], examples: int) -> Any:
    """A machine's test case again, as a long test of so many examples."""
    again: Any = type(f"{machine.__name__}ForLong", (machine,), {})
    again.TestCase.settings = settings(machine.TestCase.settings, max_examples=examples)
    return pytest.mark.long(again.TestCase)
