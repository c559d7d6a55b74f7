"""What a run leaves behind: JSON as documented, a picture, a table; all of the same figures."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from bench import machine
from bench.measure import Figure, Side, at_least, at_most
from bench.report import BenchReport, number, table, write_report

ROOT = Path(__file__).parents[2]


def side(name: str, *values: float) -> Side:
    return Side(name, "s", values)


FIGURES = (
    Figure("a/met", "Hit", side("hit", 0.1, 0.3), side("cold", 2.0, 3.0), at_most(0.1)),
    Figure("a/missed", "Company", side("x", 4.0, 4.4), side("y", 1.0, 1.0), at_least(5)),
    Figure("b/free", "MTP", side("x", 3.0, 1.0), side("y", 2.0, 2.0), details={"rounds": 7.0}),
)


def report(figures: tuple[Figure, ...] = FIGURES) -> BenchReport:
    return BenchReport(
        commit="0" * 40,
        measured_at="2026-01-02T03:04:05+00:00",
        duration_s=1.5,
        quick=False,
        machine=machine.machine(),
        versions=machine.versions(),
        blas="OpenBLAS (libopenblas.so)",
        figures=figures,
    )


def test_json_holds_every_run_of_every_figure(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["schema"], found["quick"], found["blas"]) == (
        1,
        False,
        "OpenBLAS (libopenblas.so)",
    )
    hit, company, free = found["figures"]
    assert hit["ratio"]["values"] == pytest.approx([0.05, 0.1])
    assert hit["ratio"]["runs"] == 2
    assert hit["ratio"]["median"] == pytest.approx(0.075)
    assert hit["peer"]["values"] == [2.0, 3.0] and hit["peer"]["spread"]["median"] == 2.5
    assert (hit["target"], hit["met"]) == (
        {"kind": "at most", "bound": 0.1, "judged": "median"},
        True,
    )
    assert (company["target"]["kind"], company["met"]) == ("at least", False)
    assert (free["target"], free["met"], free["details"]) == (None, None, {"rounds": 7.0})


def test_the_documentation_names_every_key(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/bench/README.md").read_text()))
    first = found["figures"][0]
    keys = {*found, *found["machine"], *first, *first["ratio"], *first["ours"], *first["target"]}
    assert keys - documented == set()


def test_the_picture_shows_every_figure_and_is_the_same_twice(tmp_path: Path) -> None:
    write_report(report(), tmp_path / "a")
    write_report(report(), tmp_path / "b")
    picture = (tmp_path / "a/results.svg").read_bytes()
    assert picture == (tmp_path / "b/results.svg").read_bytes()
    for figure in FIGURES:
        assert f">{figure.title}: ".encode() in picture
    fewer = report(FIGURES[:1])
    write_report(dataclasses.replace(fewer, quick=True), tmp_path / "c")
    assert (tmp_path / "c/results.svg").read_bytes().count(b">Hit: ") == 1


def test_the_table_says_met_missed_or_nothing() -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(table(FIGURES))
    rows = {
        name: line
        for line in out.getvalue().splitlines()
        for name in ("a/met", "a/missed", "b/free")
        if name in line
    }
    assert "0.075" in rows["a/met"] and "≤ 0.1" in rows["a/met"] and "met" in rows["a/met"][10:]
    assert "4.2" in rows["a/missed"] and "missed" in rows["a/missed"][10:]
    assert "met" not in rows["b/free"] and "missed" not in rows["b/free"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.012"), (1.0349, "1.03"), (12.34, "12.3")]
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_commit_is_gits_own_or_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unknown", machine.commit())
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() == "unknown"


def test_what_runs_is_measured_and_pages_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    names = {"GIT_AUTHOR_NAME": "a", "GIT_COMMITTER_NAME": "a"}
    emails = {"GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_EMAIL": "a@b"}
    for name, value in (names | emails).items():
        monkeypatch.setenv(name, value)

    def commit(*paths: str) -> str:
        for path in paths:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(str(len(machine.commit())) + path)
        machine._git("add", "-A")
        machine._git("commit", "-qm", " ".join(paths), "--allow-empty")
        return machine.commit()

    machine._git("init", "-q")
    first = commit("a.py")
    assert commit("docs/b.py", "findings/c.sh", "README.md") == first
    assert commit("bench/d.md") == first != commit("bench/d.py")
    (tmp_path / "a.py").write_text("changed")
    assert machine.commit().endswith("+")


def test_what_was_disturbed_is_no_plain_verdict() -> None:
    hit = dataclasses.replace(FIGURES[0], disturbed=True)
    shown = io.StringIO()
    Console(file=shown, width=200).print(table([hit, FIGURES[1]]))
    assert "met, disturbed" in shown.getvalue() and "missed, " not in shown.getvalue()
