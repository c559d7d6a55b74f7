"""`sapwood check`: is this bundle whole, does its pair fit, and does it compute what it should.

- Every step that `serve` takes with a model, and then what it has no time for: all digests, and a
  few prompts through the real core and runner, drafts included, each emitted token held against
  one plain forward of mlx-lm.
- Exit code 0: all is well. 1: one sentence says what is not. The drafter's acceptance is reported,
  never judged.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from daemon import assemble
from daemon.config import Config, load_config
from daemon.draw import format_bytes
from daemon.engine import Loaded
from daemon.errors import StartError
from model.bundle import Manifest, check_digests
from model.files import ModelRefused
from model.locate import Located, find
from model.pair import Pair, load_pair, try_out
from model.plain import near_tie, shortfalls
from model.prompt_errors import PromptRefused
from scheduler.events import Delta, Failed, Request, Submit
from scheduler.plan import Sampling, StepResult

_QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about rain.",
)
_LONG = "The river runs past the mill and under the old bridge. "
_REPLY_TOKENS = 48
_DEPTH = 4
_STEPS_MAX = 10_000


@dataclass(slots=True)
class SelfCheck:
    """What the rounds showed. drafted[i], accepted[i]: of the drafts at position i, from 0."""

    prompts: int
    tolerance: float
    tokens: int = 0
    steps: int = 0
    near_ties: int = 0
    faults: int = 0
    drafted: list[int] = field(default_factory=lambda: [0] * _DEPTH)
    accepted: list[int] = field(default_factory=lambda: [0] * _DEPTH)

    @property
    def rounds(self) -> int:
        return self.drafted[0]

    def count(self, result: StepResult) -> None:
        self.steps += 1
        for decoded in result.decoded:
            for position in range(_DEPTH):
                self.drafted[position] += decoded.drafted > position
                self.accepted[position] += decoded.accepted > position

    def judge(self, short: list[float]) -> None:
        self.tokens += len(short)
        # So that what is no number is a fault.
        within = sum(value <= self.tolerance for value in short)
        self.faults += len(short) - within
        self.near_ties += sum(0 < value <= self.tolerance for value in short)


@dataclass(slots=True)
class Findings:
    """What is known so far; printed whole, whether all is well or not."""

    bundle: str
    manifest: Manifest | None = None
    files: int = 0  # whose digests hold
    target: str = ""
    drafter: str = ""
    context_tokens: int = 0
    self_check: SelfCheck | None = None
    problem: str = ""


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and return the exit code. Raises UsageError."""
    flags = {"model": arguments.bundle, "draft": arguments.draft, "dtype": arguments.dtype}
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
    pair = load_pair(found.target, found.drafter, config.dtype)
    try_out(pair)
    loaded = assemble.put_together(config, pair, "" if found.drafter is None else "drafter")
    target, _, drafter = pair.quantization.partition("; drafter ")
    findings.target = f"{pair.family}, {target or 'not quantised'}, runs in {pair.dtype_name}"
    findings.context_tokens = loaded.card.facts.context_tokens_max
    if pair.assistant is not None:
        findings.drafter = f"fits the target, {drafter or 'not quantised'}"
    findings.self_check = checked = SelfCheck(len(_QUESTIONS) + 1, near_tie(pair))
    try:
        prompts = _prompts(pair)
        for prompt, reply in zip(prompts, _converse(loaded, prompts, checked), strict=True):
            checked.judge(shortfalls(pair, prompt, reply))
    finally:
        loaded.runner.close()
    if checked.faults:
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


def _prompts(pair: Pair) -> list[tuple[int, ...]]:
    """Questions in the model's own turns, and a text that is longer than its sliding window."""
    tokenizer, text = pair.tokenizer, pair.target_config.text
    try:
        turns = [[{"role": "user", "content": question}] for question in _QUESTIONS]
        asked = [tokenizer.encode_messages(turn) for turn in turns]
    except PromptRefused:  # a model without a chat template
        asked = [tokenizer.encode_text(question) for question in _QUESTIONS]
    once = tokenizer.encode_text(_LONG)
    wanted = min(text.window + 64, text.context_tokens_max - _REPLY_TOKENS)
    long = (once + once[1:] * (wanted // max(1, len(once) - 1)))[:wanted]
    return [tuple(prompt) for prompt in (*asked, long)]


def _converse(
    loaded: Loaded, prompts: list[tuple[int, ...]], checked: SelfCheck
) -> list[list[int]]:
    """Greedy replies to all prompts at once, at a pinned depth: the engine's loop, in line."""
    core, runner = loaded.core, loaded.runner
    depth = _DEPTH if loaded.card.facts.has_drafter else 0
    for id, prompt in enumerate(prompts):
        request = Request(id, b"check", prompt, _REPLY_TOKENS, Sampling(), depth=depth)
        core.handle(Submit(request), time.monotonic())
    replies: list[list[int]] = [[] for _ in prompts]
    for _ in range(_STEPS_MAX):
        if not core.has_work:
            return replies
        plan = core.plan(time.monotonic())
        if plan is not None:
            result = runner.wait(runner.submit(plan))
            core.commit(plan, result, time.monotonic())
            checked.count(result)
        for effect in core.take_effects():
            if isinstance(effect, Delta):
                replies[effect.id] += effect.token_ids
            elif isinstance(effect, Failed):
                raise StartError(f"the self-check's request failed: {effect.message}")
    raise AssertionError(f"still at work after {_STEPS_MAX} steps")


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
    if findings.self_check is not None and findings.self_check.tokens:
        lines += _self_check_lines(findings.self_check)
    return lines


def _self_check_lines(checked: SelfCheck) -> list[tuple[str, str]]:
    good = checked.tokens - checked.faults - checked.near_ties
    ties = f"{checked.near_ties} within {checked.tolerance:g} of it, {checked.faults} are not"
    lines = [
        ("self-check", f"{checked.prompts} prompts at once, {checked.steps} steps"),
        ("", f"{good} of {checked.tokens} tokens are the plain forward's own, {ties}"),
    ]
    if not checked.rounds:
        return lines
    shares = [a / d if d else 0.0 for a, d in zip(checked.accepted, checked.drafted, strict=True)]
    committed = 1 + sum(checked.accepted) / checked.rounds
    return [
        *lines,
        ("draft", "".join(f"{position:>7}" for position in range(1, _DEPTH + 1))),
        ("accepted", "".join(f"{share:>7.0%}" for share in shares)),
        ("", f"{committed:.2f} tokens per round, in {checked.rounds} rounds"),
    ]
