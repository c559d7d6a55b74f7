"""Python calls of one engine step, by file: what of the host's work does not depend on the machine.

    python -m tests.system.step_calls

- The real engine over the bundled pair, its loop on this thread: commands, plan, emit, submit, wait
  and commit of one greedy client, or of several. Nothing of the event loop is in it.
- A call is what the profiler calls one, of a function written in Python: ours, mlx's and mlx-lm's
  modules, the standard library's. Calls into C, mlx's operations too, are counted apart.
- Only steps count in which all decode and nobody comes or goes; of their counts the median, file by
  file: now and then a step does something rare, such as a page of metrics or a larger pool.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.engine import Engine, Fault
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.process.assemble import put_together
from sapwood.daemon.settings.config import load_config
from sapwood.model.pair import Pair
from sapwood.scheduler.events import Drain, Effect, Failed, Finished, Request, Submit
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import DEMO, pair

TOP = Path(__file__).parents[2]
PROMPT, REPLY_TOKENS = tuple(range(100, 148)), 48
STEPS_MIN = 8
C_CALLS = "calls into C"


@dataclass(frozen=True, slots=True)
class StepCalls:
    """Of one kind of step: calls by file, the median over steps. c: of functions not in Python."""

    by_file: Counter[str]
    c: int
    steps: int

    @property
    def python(self) -> int:
        return self.by_file.total()


@dataclass(slots=True)
class _Watch:
    """Counts between one plan and the next. Also the engine's listener: it drains at the end."""

    rows: int
    engine: Engine | None = None
    failed: str = ""
    left: int = 0
    plan: StepPlan | None = None
    counts: Counter[str] = field(default_factory=Counter)
    kept: list[Counter[str]] = field(default_factory=list)

    def loaded(self, card: ModelCard) -> None:
        sys.setprofile(self._profile)

    def effects(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Failed):
                self.failed = effect.message
            if isinstance(effect, Failed | Finished):
                self.left -= 1
                if not self.left and self.engine is not None:
                    self.engine.send(Drain())

    def ended(self, fault: Fault | None) -> None:
        sys.setprofile(None)
        assert fault is None and not self.failed, (fault, self.failed)

    def planning(self, plan: Callable[[float], StepPlan | None]) -> Callable[[float], Any]:
        """The core's `plan`, at which one step's counts end and the next one's begin."""

        def planned(now: float) -> StepPlan | None:
            if self.plan is not None and _is_plain(self.plan, self.rows):
                self.kept.append(self.counts)
            self.counts = Counter()
            self.plan = plan(now)
            return self.plan

        return planned

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.counts[frame.f_code.co_filename] += 1
        elif event == "c_call":
            self.counts[C_CALLS] += 1


def _is_plain(plan: StepPlan, rows: int) -> bool:
    moves = plan.captures or plan.releases or plan.admits or plan.prefills
    return not moves and len(plan.decodes) == rows


def step_calls(served: Pair, rows: int, depth: int | None) -> StepCalls:
    """Of so many clients. depth: pinned; None: the policy chooses, and all depths count."""
    limits, watch = Limits(), _Watch(rows, left=rows)

    def load() -> Loaded:
        loaded = put_together(load_config({}), served, "drafter" if served.assistant else "")
        core: Any = loaded.core
        core.plan = watch.planning(core.plan)
        return replace(loaded, leave_thread=lambda: None)  # this thread computes again

    watch.engine = engine = Engine(load, watch, limits)
    for id in range(rows):
        prompt = (*PROMPT, 200 + id)
        request = Request(id, b"", prompt, REPLY_TOKENS, Sampling(), ignore_eos=True, depth=depth)
        engine.send(Submit(request))
    engine._run()
    return _median(watch.kept)


def _median(kept: Sequence[Counter[str]]) -> StepCalls:
    assert len(kept) >= STEPS_MIN, f"{len(kept)} steps are too few"
    files = sorted(set().union(*kept))
    medians = {file: round(statistics.median(step[file] for step in kept)) for file in files}
    c = medians.pop(C_CALLS)
    medians.pop(__file__, None)
    named = Counter({_name(file): count for file, count in medians.items() if count})
    return StepCalls(named, c, len(kept))


def _name(file: str) -> str:
    """A path from the top of the repository, or from where packages or Python's own modules lie.

    The longest of these: packages may lie within the repository.
    """
    path = Path(file)
    bases = (TOP / "sapwood", TOP, *map(Path, sys.path))
    within = [base for base in bases if base != Path() and path.is_relative_to(base)]
    longest = max(within, key=lambda base: len(base.parts), default=None)
    return file if longest is None else path.relative_to(longest).as_posix()


def page(found: StepCalls) -> str:
    """Files with most calls first."""
    head = f"{found.python} Python calls in {len(found.by_file)} files, {found.c} calls into C"
    rows = [f"{count:6} {file}" for file, count in found.by_file.most_common()]
    return "\n".join([head, *rows])


def main() -> int:
    for rows, depth in ((1, 0), (1, 3), (8, 0)):
        print(f"\n{rows} rows, depth {depth}:", page(step_calls(pair(DEMO), rows, depth)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
