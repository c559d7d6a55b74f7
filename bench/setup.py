"""What every benchmark is given: the pairs, how often to run, fresh prompts, and real daemons.

- A daemon is a process of its own on a free port, started by the same command as in service.
- Prompts are random token ids that no run repeats unless it says so: nothing is found in the tree
  that the benchmark did not put there.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import BenchError
from bench.synthetic import write_synthetic_pair
from sapwood import SapwoodError
from sapwood.daemon import blas
from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.process import DaemonProcess, running, serve_command
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.locate import locate
from sapwood.model.pair import Pair, load_pair

START_S_MAX = 120.0
# Plain tokens of the bundled tokenizer, which the synthetic pair shares: past the control tokens.
PROMPT_IDS = range(100, 2000)


@dataclass(slots=True)
class Setup:
    """folder: for the synthetic pair, written once if a benchmark asks for it.

    quick: shorter work, whose figures mean little. runs: of every figure, by benchmark.

    model, draft: as `serve` takes them, of the benchmarks that take any pair; None: the bundled.
    blas: what every process that computed had loaded, noted while it ran.
    """

    folder: Path
    quick: bool
    seed: int
    runs: int = 1
    model: str | None = None
    draft: str | None = None
    blas: set[str] = field(default_factory=set)
    random: random.Random = field(init=False)
    _synthetic: tuple[Path, Path] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def prompt(self, tokens: int) -> list[int]:
        return self.random.choices(PROMPT_IDS, k=tokens)

    @property
    def synthetic_pair(self) -> tuple[Path, Path]:
        """Target and drafter of bench/synthetic.py."""
        if self._synthetic is None:
            self._synthetic = write_synthetic_pair(self.folder)
        return self._synthetic

    def load_target(self) -> Pair:
        """The synthetic target in this process, without its drafter."""
        self.blas.add(blas.loaded(os.getpid()))
        target, _ = self.synthetic_pair
        return load_pair(*locate(str(target), "none"))

    def load_given_pair(self) -> Pair:
        """The pair of --model and --draft, in this process. Raises BenchError."""
        self.blas.add(blas.loaded(os.getpid()))
        try:
            return load_pair(*locate(self.model, self.draft))
        except ModelRefused as error:
            raise BenchError(str(error)) from error

    @property
    def given_flags(self) -> list[str]:
        """Those by which `serve` loads the same pair."""
        given = {"--model": self.model, "--draft": self.draft}
        return [
            part for flag, value in given.items() if value is not None for part in (flag, value)
        ]

    @contextmanager
    def synthetic(self, command: Sequence[str] | None = None) -> Iterator[DaemonProcess]:
        """A daemon with the synthetic pair. command: of `serve`, without the model."""
        target, drafter = map(str, self.synthetic_pair)
        flags = ["--model", target, "--draft", drafter]
        with self.daemon([*(command or serve_command()), *flags]) as daemon:
            yield daemon

    @contextmanager
    def daemon(self, command: Sequence[str]) -> Iterator[DaemonProcess]:
        """Raises BenchError where it does not come up or does not end well."""
        deadline = time.monotonic() + START_S_MAX
        try:
            with running(command, os.environ, deadline) as daemon:
                yield daemon
                self.blas.add(blas.loaded(daemon.pid))
        except DemoError as error:
            cause = first_cause(error)
            if not isinstance(cause, BenchError | DemoError | SapwoodError):
                raise  # our own mistake, with its traceback
            said = str(error)
            raise BenchError(said if str(cause) in said else f"{cause}\n{said}") from error

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)


def first_cause(error: BaseException) -> BaseException:
    """Where a failure began; the other clients' errors follow from it."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, DemoError) and error.__cause__ is not None:
            error = error.__cause__
        else:
            return error
