"""`sapwood check`: is this bundle whole, does its pair fit, and does it compute what it should.

- Every step that `serve` takes with a model, and then what it has no time for: all digests, and a
  few prompts through the real core and runner, drafts included, each emitted token held against
  one plain forward of mlx-lm.
- Exit code 0: all is well. 1: one sentence says what is not. The drafter's acceptance is reported,
  never judged, and so is the share of replies that are the same alone: in half precision, and on a
  GPU, nobody promises it, unless with --numerics strict, which is proved then.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sapwood.daemon.errors import StartError
from sapwood.daemon.process import assemble
from sapwood.daemon.process.self_check import SelfCheck
from sapwood.daemon.settings.config import Config, load_config
from sapwood.daemon.sizes import format_bytes
from sapwood.model.checkpoint.bundle import Manifest, check_digests
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.locate import Located, find
from sapwood.model.pair import load_pair, try_out
from sapwood.model.step_values import DeviceFault
from sapwood.model.strict_check import refuse_unless_strict


@dataclass(slots=True)
class Findings:
    """What is known so far; printed whole, whether all is well or not."""

    bundle: str
    manifest: Manifest | None = None
    files: int = 0  # whose digests hold
    target: str = ""
    drafter: str = ""
    numerics: str = ""  # that were proved to hold, where they are strict
    context_tokens: int = 0
    self_check: SelfCheck | None = None
    problem: str = ""


def run_check(arguments: argparse.Namespace) -> int:
    """Check, print, and return the exit code. Raises UsageError."""
    flags = {"model": arguments.bundle, "draft": arguments.draft, "dtype": arguments.dtype}
    flags |= {"numerics": arguments.numerics}
    config = load_config(flags)
    findings = Findings(config.model or "the bundled demo pair")
    try:
        _examine(config, findings)
    except (ModelRefused, StartError) as error:
        findings.problem = str(error)
    except OSError as error:
        findings.problem = f"{error.filename}: {error.strerror}"
    print(json.dumps(_as_json(findings), indent=2)) if arguments.json else _show(findings)
    return 1 if findings.problem else 0


def _examine(config: Config, findings: Findings) -> None:
    """In the order in which things depend on each other; `findings` keeps what was reached."""
    found = find(config.model, config.draft)
    findings.manifest = found.manifest
    if found.manifest is not None:
        _read_through(found, found.manifest)
        findings.files = len(found.manifest.files)
    strict = config.numerics == "strict"
    pair = load_pair(found.target, found.drafter, config.dtype, strict=strict)
    try_out(pair)
    if pair.kernels.strict:
        refuse_unless_strict(pair)
    loaded = assemble.put_together(config, pair, "" if found.drafter is None else "drafter")
    target, _, drafter = pair.quantization.partition("; drafter ")
    findings.numerics = config.numerics
    findings.target = f"{pair.family}, {target or 'not quantised'}, runs in {pair.dtype_name}"
    findings.context_tokens = loaded.card.facts.context_tokens_max
    if pair.assistant is not None:
        findings.drafter = f"fits the target, {drafter or 'not quantised'}"
    findings.self_check = checked = SelfCheck.of(pair)
    try:
        checked.run(pair, loaded)
    except (DeviceFault, RuntimeError) as error:  # a failed command buffer is a RuntimeError
        findings.problem = f"the self-check broke off, because the device failed: {error}"
        return
    if checked.strict and checked.replies_equal < checked.prompts:
        findings.problem = (
            f"{checked.prompts - checked.replies_equal} of {checked.prompts} replies are others "
            "alone without drafts, which strict numerics rule out"
        )
    if checked.too_many(checked.replay_faults, checked.replayed):
        findings.problem = (
            f"{checked.replay_faults} of {checked.replayed} tokens come out otherwise when their "
            "round is computed again alone"
        )
    if checked.too_many(checked.faults, checked.tokens):
        findings.problem = (
            f"{checked.faults} of {checked.tokens} tokens are not what a plain forward gives: "
            f"they lie more than {checked.tolerance:g} below the largest logit"
        )


def _read_through(found: Located, manifest: Manifest) -> None:
    """Compare all digests, with a bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("digests"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task("", total=manifest.bytes)
        check_digests(found.path, manifest, lambda count: progress.advance(task, count))


def _as_json(findings: Findings) -> dict[str, Any]:
    document = asdict(findings) | {"ok": not findings.problem}
    if findings.manifest is not None:
        manifest = findings.manifest
        document["manifest"] = {"tool": manifest.tool, "bytes": manifest.bytes} | {
            name: asdict(part) for name, part in manifest.parts.items()
        }
    if findings.self_check is not None:
        document["self_check"]["rounds"] = findings.self_check.rounds
    return document


def _show(findings: Findings) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for label, text in _lines(findings):
        console.print(f"{label:12}{text}", markup=False)
    if findings.problem:
        console.print(f"{'[bold red]FAILED[/]':25}", end="")
        console.print(findings.problem, markup=False)
    else:
        console.print("[bold green]ok[/]")


def _lines(findings: Findings) -> list[tuple[str, str]]:
    lines = [("bundle", findings.bundle)]
    if findings.manifest is not None:
        parts = ", ".join(part.source for part in findings.manifest.parts.values())
        lines.append(("made of", f"{parts}, by {findings.manifest.tool}"))
        if findings.files:
            size = format_bytes(findings.manifest.bytes)
            lines.append(("digests", f"{findings.files} files, {size}: as they were written"))
    if findings.target:
        lines.append(("target", findings.target))
        lines.append(("drafter", findings.drafter or "none"))
    if findings.numerics == "strict":
        lines.append(("numerics", "strict: a row has the same bits in whatever company"))
    if findings.self_check is not None and findings.self_check.tokens:
        lines += _self_check_lines(findings.self_check)
    return lines


def _self_check_lines(checked: SelfCheck) -> list[tuple[str, str]]:
    good = checked.tokens - checked.faults - checked.near_ties
    ties = f"{checked.near_ties} within {checked.tolerance:g} of it, {checked.faults} are not"
    lines = [
        ("self-check", f"{checked.prompts} prompts at once, {checked.steps} steps"),
        ("", f"{good} of {checked.tokens} tokens are the plain forward's own, {ties}"),
        ("", f"{checked.replayed} tokens replayed in isolation, {checked.replay_faults} differ"),
        ("", _equal_line(checked)),
    ]
    if not checked.rounds:
        return lines
    shares = [a / d if d else 0.0 for a, d in zip(checked.accepted, checked.drafted, strict=True)]
    committed = 1 + sum(checked.accepted) / checked.rounds
    return [
        *lines,
        ("draft", "".join(f"{position:>7}" for position in range(1, len(shares) + 1))),
        ("accepted", "".join(f"{share:>7.0%}" for share in shares)),
        ("", f"{committed:.2f} tokens per round, in {checked.rounds} rounds"),
    ]


def _equal_line(checked: SelfCheck) -> str:
    same = f"{checked.replies_equal} of {checked.prompts} replies are the same alone without drafts"
    return (
        same if checked.bits_promised or checked.strict else f"{same}, which nothing promises here"
    )
