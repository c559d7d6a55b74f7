"""`make device-report`: what a device does with Sapwood, in one file to send back.

- Parts: tests, `check`, quick benchmarks, attention, agreement of replies, and with --soak an hour
  of 16 clients. Each is a process with a time limit; one that fails or takes too long ends alone.
- The file is written after every part, so that what was found is there whatever comes next.
- What cannot be done here is said by name with its reason, never left out.
- No path, no name of user or machine, no address is in it (bench/private.py).
- 0: all parts ran, whatever they found: it is a report. 1: a part did not. 2: usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import mlx.core as mx
except ImportError as error:  # such as that of mlx[cuda] without NVIDIA's driver
    sys.exit(f"make device-report: mlx does not load, so there is nothing to report: {error}")

from bench.flags import flag_count, flag_s, flag_words
from bench.machine import ROOT, commit, machine, versions
from bench.private import own_names, scrubbed

REPORT = ROOT / "build" / "device-report.json"
REPORT_SCHEMA = 1
LINES_KEPT, FAILURES_KEPT = 20, 100
KILLED_S_MAX = 10.0
# Of Metal's and CUDA's own facts, those that say what computes; no serial number is among them.
DEVICE_FACTS = (
    *("architecture", "device_name", "max_buffer_length", "max_recommended_working_set_size"),
    *("memory_size", "resource_limit", "total_memory", "compute_capability_major"),
    "compute_capability_minor",
)

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReportPart:
    """One process. read: what its standard output means. skipped: why it is not run."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    read: Callable[[str], Result] = json.loads
    environ: Mapping[str, str] = field(default_factory=dict)
    codes: tuple[int, ...] = (0,)  # of an end that has something to tell: of tests 1, some failed
    skipped: str = ""


def parts(arguments: argparse.Namespace, on_cpu: bool) -> list[ReportPart]:
    """In the order in which they run, those that are skipped included."""
    model = [part for name in ("model", "draft") for part in _flag(arguments, name)]
    checked = [arguments.model] * (arguments.model is not None) + _flag(arguments, "draft")
    no_fused = "a CPU has no fused attention" * on_cpu
    same_dtype = "auto is float32 on a CPU" * on_cpu
    float32 = {"MLX_ENABLE_TF32": "0"}
    check = ("-m", "sapwood", "check", *checked, "--json")
    attention = ("-m", "bench.attention_paths")
    soak = ("-m", "bench.soak", "--seconds", str(arguments.soak_s), *model)
    asks = ("-m", "bench.agreement", "--prompts", str(arguments.prompts), *model)
    chosen = arguments.tests
    no_tests = "--tests none" * (chosen == ["none"])
    bench = ("-m", "bench", "--quick")
    tests = ("-m", "pytest", "-q", "--tb=no", "-rfEs", "-p", "no:cacheprovider", *chosen)
    return [
        ReportPart("tests", tests, 5400, read_tests, float32, (0, 1), no_tests),
        ReportPart("check", check, 1800, codes=(0, 1)),
        ReportPart(
            "check float32", (*check, "--dtype", "float32"), 1800, environ=float32, codes=(0, 1),
            skipped=same_dtype,
        ),
        ReportPart("bench", bench, 3600, read_bench, skipped="--no-bench" * arguments.no_bench),
        ReportPart("attention", attention, 900, skipped=no_fused),
        ReportPart(
            "attention, masks of size 512 too", attention, 900,
            environ={"MLX_SDPA_D512_MIN_KL": "0"}, skipped=no_fused,
        ),
        ReportPart("agreement", asks, 3600),
        ReportPart("agreement float32", (*asks, "--dtype", "float32"), 3600, environ=float32,
             skipped=same_dtype),
        ReportPart("soak", soak, arguments.soak_s + 900,
             skipped="" if arguments.soak else "asked for with --soak"),
    ]  # fmt: skip


def _flag(arguments: argparse.Namespace, name: str) -> list[str]:
    value = getattr(arguments, name)
    return [] if value is None else [f"--{name}", value]


def run_part(part: ReportPart) -> Result:
    """Its state, seconds, and result or the last of what it said. Its children end with it."""
    if part.skipped:
        return {"state": "skipped", "why": part.skipped}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *part.command], cwd=ROOT, env={**os.environ, **part.environ},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=part.limit_s)
        state = "done" if process.returncode in part.codes else "failed"
    except subprocess.TimeoutExpired:
        _end(process)
        (out, err), state = _rest(process), "timed out"
    finally:
        _end(process)
    told: Result = {"state": state, "seconds": round(time.monotonic() - began, 1)}
    if state == "done":
        try:
            return told | {"result": part.read(out)}
        except (LookupError, ValueError, OSError) as error:
            told |= {"state": "failed", "why": f"not read: {error}"}
    said = (out + err).splitlines()[-LINES_KEPT:]
    return {"exit_code": process.returncode} | told | {"said": said}


def _end(process: subprocess.Popen[str]) -> None:
    """The process and what it started; both may be gone already."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def _rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What an ended process said; somebody who left its group may still hold the pipe."""
    try:
        return process.communicate(timeout=KILLED_S_MAX)
    except subprocess.TimeoutExpired:
        return "", ""


def read_tests(out: str) -> Result:
    """Counts of pytest's last line, what failed, and why others were skipped."""
    lines = out.strip().splitlines()
    counts = {
        kind: int(n) for n, kind in re.findall(r"(\d+) ([a-z]+)", lines[-1].rsplit(" in ")[0])
    }
    if not counts:
        raise ValueError("pytest counted nothing")
    named = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    skipped = [line for line in lines if line.startswith("SKIPPED ")]
    return {"counts": counts, "failures": named[:FAILURES_KEPT], "skipped": skipped}


def read_bench(_: str) -> Result:
    """What the benchmarks wrote, without the machine, which stands in the head."""
    report = json.loads((ROOT / "build/bench/results.json").read_text())
    figures = [
        {key: figure[key] for key in ("name", "title", "ratio", "details")}
        for figure in report["figures"]
    ]
    return {"blas": report["blas"], "figures": figures}


def head() -> Result:
    """What computes, and with what."""
    info = mx.device_info()
    return {
        "schema": REPORT_SCHEMA,
        "commit": commit(),
        "machine": machine()
        | {"macos": platform.mac_ver()[0], "system_release": platform.release()},
        "device": {name: info[name] for name in DEVICE_FACTS if name in info},
        "backend": "metal"
        if mx.metal.is_available()
        else "cuda"
        if mx.cuda.is_available()
        else "cpu",
        "versions": versions(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("MLX_")},
    }


def summary(found: Mapping[str, Result]) -> list[str]:
    """A line for each part, for people."""
    return [f"{name}: {_line(name, part)}" for name, part in found.items()]


def _line(name: str, part: Result) -> str:
    if part["state"] != "done":
        after = f" after {part['seconds']} s" if "seconds" in part else ""
        return f"{part['state']}{after}: {part.get('why') or _reason(part.get('said', ()))}"
    result = part["result"]
    if name == "tests":
        return ", ".join(f"{count} {kind}" for kind, count in result["counts"].items())
    if name.startswith("check"):
        checked = result["self_check"] or {}
        equal = f"{checked.get('replies_equal')} of {checked.get('prompts')} replies are equal"
        return f"{'ok' if result['ok'] else result['problem']}; {equal}"
    if name.startswith("agreement"):
        return f"{result['equal']} of {result['replies']} replies are equal"
    if name == "soak":
        return f"{result['finished']} replies, missing: {', '.join(result['missing']) or 'nothing'}"
    return f"done in {part['seconds']} s"


def _reason(said: Sequence[str]) -> str:
    """Of what a process said last, the line that most likely says why it ended so."""
    told = [line for line in said if line.strip()]
    errors = [line for line in told if "error" in line.lower() and not line[0].isspace()]
    return ([*told, *errors] or ["it said nothing"])[-1].strip()


def write(
    path: Path, began: Result, found: Mapping[str, Result], private: Sequence[str] = ()
) -> None:
    """The whole report so far, cleaned. `bundle` of a check is a path of its owner's."""
    told = {
        name: part | {"result": {k: v for k, v in part["result"].items() if k != "bundle"}}
        if name.startswith("check") and "result" in part
        else part
        for name, part in found.items()
    }
    document = {"summary": summary(told)} | began | {"parts": told}
    document = scrubbed(document, [*private, *own_names()])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    models = [given for given in (arguments.model, arguments.draft) if given]
    began, found = head(), {}
    for part in parts(arguments, mx.default_device() == mx.Device(mx.cpu)):
        print(f"{part.name} ...", flush=True)
        found[part.name] = run_part(part)
        print(f"  {_line(part.name, found[part.name])}", flush=True)
        write(REPORT, began, found, models)
    print(f"written to {REPORT.relative_to(ROOT)}: this file is all there is to send")
    return 0 if all(part["state"] in ("done", "skipped") for part in found.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make device-report", allow_abbrev=False)
    add = parser.add_argument
    add("--model", metavar="DIR|ID", help="for check, agreement and soak (default: the demo pair)")
    add("--draft", metavar="DIR|ID|none", help="its drafter")
    add(
        "--tests",
        type=flag_words,
        default=[],
        metavar="ARGUMENTS",
        help="of pytest; none: no tests",
    )
    add("--no-bench", action="store_true", help="without the quick benchmarks")
    add("--prompts", type=flag_count, default=200, metavar="N", help="whose replies are compared")
    add("--soak", action="store_true", help="16 clients for an hour, with bytes and buffers")
    add("--soak-s", type=flag_s, default=3600.0, metavar="S", help="or for so long")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
