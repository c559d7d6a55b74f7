"""The report: every part ends, whatever it does, and nothing private leaves the machine."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench_main
from bench import agreement, device_report, soak
from bench.agreement import questions, share_equal
from bench.attention_paths import _row
from bench.device_report import ReportPart, head, main, parts, read_tests, run_part, summary
from bench.private import scrubbed
from bench.soak import Series
from tests.test_rooms import ROOT


def said(code: str) -> tuple[str, ...]:
    return ("-c", code)


GOOD = ReportPart("agreement", said('print(\'{"equal": 2, "replies": 3}\')'), 20)
BAD = ReportPart("soak", said("import sys; sys.exit('no model at /home/somebody/model')"), 20)
# What it starts holds the pipe, so that only the end of both ends the part.
SLOW = ReportPart("bench", said("import subprocess as s; s.run(['sleep', '60'])"), 0.5)
MUTE = ReportPart("check", said("print('nothing to read')"), 20)
LATER = ReportPart("attention", (), 20, skipped="a CPU has no fused attention")


def test_a_part_ends_in_time_and_says_how() -> None:
    began = time.monotonic()
    states = {part.name: run_part(part) for part in (GOOD, BAD, SLOW, MUTE, LATER)}
    assert time.monotonic() - began < 20
    assert {name: state["state"] for name, state in states.items()} == {
        "agreement": "done", "soak": "failed", "bench": "timed out", "check": "failed",
        "attention": "skipped",
    }  # fmt: skip
    assert states["agreement"]["result"] == {"equal": 2, "replies": 3}
    assert states["soak"]["exit_code"] == 1 and "no model" in states["soak"]["said"][-1]
    assert "not read" in states["check"]["why"]


def test_the_report_goes_on_and_is_written_after_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "build" / "device-report.json"
    look = ReportPart("tests", said(f"print(open({str(file)!r}).read())"), 20)
    listed = [
        BAD,
        ReportPart("check", look.command, 20, read=lambda out: look_into(out)),
        GOOD,
        LATER,
    ]
    monkeypatch.setattr(device_report, "ROOT", tmp_path)
    monkeypatch.setattr(device_report, "REPORT", file)
    monkeypatch.setattr(device_report, "parts", lambda arguments, on_cpu: listed)
    assert main([]) == 1
    report = json.loads(file.read_text())
    assert list(report["parts"]) == ["soak", "check", "agreement", "attention"]
    assert report["parts"]["check"]["result"]["seen"] == ["soak"]
    assert "bundle" not in report["parts"]["check"]["result"]
    assert "agreement: 2 of 3 replies are equal" in report["summary"]
    assert "attention: skipped: a CPU has no fused attention" in report["summary"]
    assert "somebody" not in file.read_text() and "…/model" in file.read_text()
    assert "device-report.json" in capsys.readouterr().out


def look_into(out: str) -> dict[str, Any]:
    """As a check's result, with the names of the parts that were written by then."""
    seen = list(json.loads(out)["parts"])
    return {"seen": seen, "bundle": "/models/mine", "ok": True, "problem": "", "self_check": None}


def arguments(*flags: str) -> Any:
    return device_report._parser().parse_args(flags)


def test_on_a_cpu_it_says_what_it_leaves_out_and_why() -> None:
    skipped = {part.name: part.skipped for part in parts(arguments(), on_cpu=True) if part.skipped}
    assert skipped == {
        "attention": "a CPU has no fused attention",
        "attention, masks of size 512 too": "a CPU has no fused attention",
        "check float32": "auto is float32 on a CPU",
        "agreement float32": "auto is float32 on a CPU",
        "soak": "asked for with --soak",
    }


def test_on_a_gpu_all_is_done_with_the_models_that_are_named() -> None:
    flags = ("--soak", "--soak-s", "60", "--model", "some/model", "--draft", "none")
    found = {part.name: part for part in parts(arguments(*flags), on_cpu=False)}
    assert not any(part.skipped for part in found.values())
    assert all(0 < part.limit_s <= 5400 for part in found.values())
    model = ("--model", "some/model", "--draft", "none")
    assert found["soak"].command[-4:] == found["agreement"].command[-4:] == model
    assert found["soak"].limit_s > 60
    assert found["check"].command[3:] == ("some/model", "--draft", "none", "--json")
    for name in ("tests", "check float32", "agreement float32"):
        assert found[name].environ == {"MLX_ENABLE_TF32": "0"}


def test_parts_may_be_left_out() -> None:
    found = {part.name: part for part in parts(arguments("--tests", "none", "--no-bench"), True)}
    assert found["tests"].skipped and found["bench"].skipped
    chosen = parts(arguments("--tests", "tests/a.py -k 'b or c'"), True)[0]
    assert not chosen.skipped and chosen.command[-3:] == ("tests/a.py", "-k", "b or c")


@pytest.mark.parametrize(
    "flag", ["--prompts=0", "--prompts=-3", "--prompts=many", "--prompts=1e9", "--prompts=1000000",
             "--soak-s=0", "--soak-s=-1", "--soak-s=nan", "--soak-s=inf", "--soak-s=1e300",
             "--soak-s=long", "--tests='open"],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_report, "run_part", lambda part: pytest.fail(f"{part} ran"))
    with pytest.raises(SystemExit) as end:
        main([flag])
    assert end.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "flag"),
    [(agreement, "--prompts=0"), (soak, "--seconds=0"), (soak, "--seconds=nan"),
     (bench_main, "--runs=0")],
)  # fmt: skip
def test_its_parts_refuse_the_same_by_themselves(module: Any, flag: str) -> None:
    with pytest.raises(SystemExit) as end:
        module.main([flag])
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("tests/nowhere.py", "file or directory not found: tests/nowhere.py"),
        pytest.param("--nowhere", "unrecognized arguments: --nowhere", marks=pytest.mark.long),
    ],
)
def test_tests_that_cannot_run_say_why(asked: str, reason: str) -> None:
    part = parts(arguments(f"--tests={asked}"), on_cpu=True)[0]
    (told,) = summary({"tests": run_part(part)})
    assert told.startswith("tests: failed after ") and told.endswith(reason)


def test_a_process_that_said_nothing_is_said_to() -> None:
    mute = ReportPart("soak", said("import sys; sys.exit(3)"), 20)
    (told,) = summary({"soak": run_part(mute)})
    assert told.endswith(" s: it said nothing")
    (told,) = summary({"soak": run_part(BAD)})
    assert told.endswith(" s: no model at /home/somebody/model")


def test_what_the_benchmarks_wrote_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the report that is committed: a quick run writes one like it elsewhere."""
    (tmp_path / "build/bench").mkdir(parents=True)
    text = (ROOT / "docs/bench/results.json").read_text()
    (tmp_path / "build/bench/results.json").write_text(text)
    monkeypatch.setattr(device_report, "ROOT", tmp_path)
    found = device_report.read_bench("")
    assert len(found["figures"]) == len(json.loads(text)["figures"]) and found["blas"]
    assert all(figure["ratio"]["median"] > 0 for figure in found["figures"])


def test_what_pytest_says_is_read() -> None:
    out = """..F.s                                                            [100%]
SKIPPED [1] tests/a.py:3: needs Metal
FAILED tests/b.py::test_it - assert 1 == 2
1 failed, 3 passed, 1 skipped, 40 deselected in 12.30s (0:00:12)
"""
    found = read_tests(out)
    assert found["counts"] == {"failed": 1, "passed": 3, "skipped": 1, "deselected": 40}
    assert found["failures"] == ["FAILED tests/b.py::test_it - assert 1 == 2"]
    assert found["skipped"] == ["SKIPPED [1] tests/a.py:3: needs Metal"]
    with pytest.raises(ValueError, match="nothing"):
        read_tests("no tests ran")
    told = summary({"tests": {"state": "done", "seconds": 1, "result": found}})
    assert told == ["tests: 1 failed, 3 passed, 1 skipped, 40 deselected"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/Users/anna/models/e2b/config.json: bad", "…/config.json: bad"),
        ("File '/home/anna/x.py', line 3", "File '…/x.py', line 3"),
        ("~/models/e2b is no directory", "…/e2b is no directory"),
        ("anna on lovelace.local, lovelace", "NAME on NAME, NAME"),
        ("unix:///run/user/501/sapwood.sock", "…/sapwood.sock"),
        ("listens on 192.168.1.7:50551", "listens on ADDRESS"),
        ("tests/model/test_pair.py::test_it 12 tokens/s, 3/4", None),
        ("annabel says: savannah", None),
        ("/Volumes/My Own/e2b/config.json", "NAME/config.json"),
    ],
)
def test_paths_names_and_addresses_are_gone(text: str, clean: str | None) -> None:
    names = ["lovelace.local", "lovelace", "anna", "it", "/Volumes/My Own/e2b"]
    document = {"a": [text], "b": {"c": text, "n": 3}}
    wanted = text if clean is None else clean
    assert scrubbed(document, names) == {"a": [wanted], "b": {"c": wanted, "n": 3}}


def test_the_head_of_a_report_tells_what_computes_and_nothing_private() -> None:
    found = scrubbed(head())
    text = json.dumps(found)
    assert found["versions"]["mlx"] and found["backend"] in ("cpu", "cuda", "metal")
    private = {platform.node(), getpass.getuser(), str(ROOT), os.path.expanduser("~")}
    strings = [word for word in private if len(word) >= 3]
    assert strings and not any(f'"{word}"' in text or f"{word}/" in text for word in strings)


def test_agreement_counts_replies_and_where_they_parted() -> None:
    found = share_equal([(1, 2, 3), (4, 5), (6, 7, 8)], [(1, 2, 3), (4, 9), (6, 7)])
    assert (found["replies"], found["equal"], found["tokens"]) == (3, 1, 7)
    assert found["parted_at"] == [1, 2] and found["share_equal"] == pytest.approx(1 / 3)
    assert len(set(questions(200))) == 200


def test_the_soak_keeps_what_memory_did_and_names_what_is_missing() -> None:
    series = Series()
    for value in (5.0, 9.0, 7.0):
        series.add({("memory_bytes", "live"): value, ("tree_nodes", ""): 1.0, ("other", ""): 2.0})
    assert series.found["memory_bytes live"] == {
        "first": 5.0, "least": 5.0, "most": 9.0, "last": 7.0,
    }  # fmt: skip
    assert series.missing == ["memory_unaccounted_bytes", "memory_buffers"]
    series.add({("memory_unaccounted_bytes", ""): 1.0, ("memory_buffers", "tree"): 2.0})
    assert series.missing == []


def test_attention_written_out_is_the_librarys() -> None:
    """So that their times are of the same thing: heads in groups, a mask of the round's own."""
    for shape in (("E2B", "sliding", 256, 8, 1), ("31B", "full", 512, 32, 4)):
        row = _row(*shape, 64, 4)
        assert row["difference"] < 0.05 and row["ratio"] > 0


def test_where_mlx_does_not_load_it_says_so() -> None:
    code = "import sys; sys.modules['mlx.core'] = None; import bench.device_report"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("make device-report: mlx does not load")


def test_make_runs_it() -> None:
    command = ["make", "-n", "device-report", "-o", ".venv/.made-from-lock", "ARGS=--soak"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "-m bench.device_report --soak" in shown.stdout
