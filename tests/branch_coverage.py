"""Branch coverage of the quick tests, room by room: what `make coverage` writes.

    python -m tests.branch_coverage [ARGUMENTS OF PYTEST]

- Rooms and files are those of test_rooms. A file that is reached through a link counts once, in its
  folder; the generated stubs do not count.
- Daemons and commands that the tests start are measured too; files that nothing ran count as bare.
- The pure rooms must be whole: what they lack is printed, with the lines, and the exit code is 1.
- With arguments only a part is run: the table is printed, and nothing is written or judged.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.test_rooms import NAMES, PATHS, PURE, ROOT, room_of

REPORT = ROOT / "build" / "coverage" / "report.json"
PAGE = ROOT / "docs" / "coverage.md"
HEAD = """\
# Branch coverage

Of the quick tests (`make test`), over all their processes; written by `make coverage`. The last
column is the share of statements and branches together that ran. The pure rooms must have all of
theirs: the target fails where they do not.

"""


@dataclass(slots=True)
class Count:
    """Statements and branches of a room or file, and how many of both were not run."""

    statements: int = 0
    branches: int = 0
    missing: int = 0

    @property
    def percent(self) -> float:
        whole = self.statements + self.branches
        return 100 * (whole - self.missing) / whole if whole else 100.0

    def add(self, summary: Mapping[str, int]) -> None:
        self.statements += summary["num_statements"]
        self.branches += summary["num_branches"]
        self.missing += summary["missing_lines"] + summary["missing_branches"]


def by_room(files: Mapping[str, Any]) -> dict[str, Count]:
    """`files` of coverage's JSON report. Asserts that every file of ours is in it once."""
    lacking = {name for name in NAMES if _path(name) not in files}
    assert not lacking, f"not measured: {sorted(lacking)}"
    rooms: dict[str, Count] = {}
    for name in NAMES:
        rooms.setdefault(room_of(name), Count()).add(files[_path(name)]["summary"])
    return {room: count for room, count in rooms.items() if count.statements}


def page(rooms: Mapping[str, Count]) -> str:
    rows = ["| room | statements | branches | % |", "|---|--:|--:|--:|"]
    for room, count in sorted(rooms.items()):
        name = f"`{room}`" + (", pure" if room in PURE else "")
        rows.append(f"| {name} | {count.statements} | {count.branches} | {_floor(count)} |")
    total = Count(*(sum(getattr(c, part) for c in rooms.values()) for part in Count.__slots__))
    rows.append(f"| all | {total.statements} | {total.branches} | {_floor(total)} |")
    return HEAD + "\n".join(rows) + "\n"


def bare(files: Mapping[str, Any]) -> list[str]:
    """What the pure rooms lack: lines, and branches as line -> line (below 0: out of a block)."""
    found = []
    for name in NAMES:
        if room_of(name) in PURE:
            file = files[_path(name)]
            places = [str(line) for line in file["missing_lines"]]
            places += [f"{start} -> {end}" for start, end in file["missing_branches"]]
            found += [f"{_path(name)}: {', '.join(places)}"] if places else []
    return found


def main(arguments: list[str]) -> int:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    _coverage("erase")
    # What is traced takes longer.
    tested = _coverage("run", "-m", "pytest", "--timeout", "600", *arguments)
    _coverage("combine", "--quiet")
    if _coverage("json", "--quiet", "-o", str(REPORT)):
        return 1
    files = json.loads(REPORT.read_text())["files"]
    text = page(by_room(files))
    if arguments or tested:
        print(text[len(HEAD) :])
        return tested
    PAGE.write_text(text)
    lacks = bare(files)
    print("\n".join(["the pure rooms lack:", *lacks] if lacks else ["the pure rooms are whole"]))
    return 1 if lacks else 0


def _coverage(*arguments: str) -> int:
    command = [sys.executable, "-m", "coverage", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _path(name: str) -> str:
    return PATHS[name].relative_to(ROOT).as_posix()


def _floor(count: Count) -> str:
    """One digit, never rounded up: 100.0 is all of it."""
    return f"{int(count.percent * 10) / 10:.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
