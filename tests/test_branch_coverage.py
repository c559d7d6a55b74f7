"""What `make coverage` makes of coverage's report; the run itself is left to it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.branch_coverage import Count, bare, by_room, page
from tests.test_rooms import NAMES, PATHS, ROOT

EVERY = [PATHS[name].relative_to(ROOT).as_posix() for name in NAMES]


def report(**changed: dict[str, Any]) -> dict[str, Any]:
    """Every file with ten statements and four branches, all run but those of `changed`."""
    summary = {
        "num_statements": 10,
        "num_branches": 4,
        "missing_lines": 0,
        "missing_branches": 0,
    }
    files: dict[str, Any] = {}
    for path in EVERY:
        lines, branches = changed.get(path, {}).values() or ([], [])
        counted = {"missing_lines": len(lines), "missing_branches": len(branches)}
        files[path] = {
            "summary": summary | counted,
            "missing_lines": lines,
            "missing_branches": branches,
        }
    return files


def test_what_a_pure_room_lacks_is_named_by_line_and_branch() -> None:
    lacking = {"lines": [7], "branches": [[9, 12], [13, -11]]}
    files = report(**{"scheduler/plan.py": lacking, "model/pair.py": lacking})
    assert bare(files) == ["scheduler/plan.py: 7, 9 -> 12, 13 -> -11"], "model is not pure"
    assert bare(report()) == []


def test_a_room_is_the_sum_of_its_files() -> None:
    files = report(**{"cache/prefix/tree.py": {"lines": [1, 2], "branches": [[3, 4]]}})
    rooms = by_room(files)
    own = sum(path.startswith("cache/prefix/") for path in EVERY)
    room = rooms["cache/prefix"]
    assert (room.statements, room.branches, room.missing) == (10 * own, 4 * own, 3)
    assert sum(count.statements for count in rooms.values()) == 10 * len(EVERY)


def test_a_file_that_was_not_measured_is_missed() -> None:
    files = report()
    del files["scheduler/plan.py"]
    with pytest.raises(AssertionError, match=r"not measured: \['scheduler/plan'\]"):
        by_room(files)


def test_almost_all_is_not_100() -> None:
    lines = page({"scheduler": Count(9999, 1, 1), "model": Count(3, 1, 0)}).splitlines()
    assert lines[-3:] == [
        "| `model` | 3 | 1 | 100.0 |",
        "| `scheduler`, pure | 9999 | 1 | 99.9 |",
        "| all | 10002 | 2 | 99.9 |",
    ]
