"""Lets builder processes try grammars, and kills those that take too long or too much.

- A grammar that passes is built again by whoever asked: a matcher belongs to its process.
- A process serves one caller at a time, is kept for the next, and is started anew after a kill:
  what one grammar took is nobody else's time.
- None is started before the first constraint, and each ends with the daemon: its input ends.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from typing import Any

from sapwood.model.constraints.matching import first_line
from sapwood.model.constraints.spec import ConstraintRefused
from sapwood.model.constraints.vocabulary import Vocabulary

_START_S_MAX = 30.0
_ANSWER_BYTES_MAX = 64 << 10


class BuilderBroken(Exception):
    """A builder that cannot even start: the daemon's own fault."""


class BuildGuard:
    """Thread-safe: each call has a process of its own, or waits in its thread for one to start."""

    def __init__(self, vocabulary: Vocabulary, build_s_max: float, build_bytes_max: int) -> None:
        self._build_s_max = build_s_max
        self._head = {
            "size": vocabulary.size,
            "names": vocabulary.names,
            "ends": sorted(vocabulary.end_ids),
            "bytes_max": build_bytes_max,
        }
        self._idle: queue.SimpleQueue[_Builder] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def check(self, grammar: str) -> None:
        """Raises ConstraintRefused for what cannot be built within the limits."""
        builder = self._take()
        try:
            problem = builder.build(grammar, self._build_s_max)
        except BaseException:
            builder.kill()
            raise
        self._keep(builder)
        if problem:
            raise ConstraintRefused(f"it cannot be built: {first_line(problem)}")

    def close(self) -> None:
        """No process is kept from here on."""
        with self._lock:
            self._closed = True
        while (builder := self._next_idle()) is not None:
            builder.kill()

    def _take(self) -> _Builder:
        while (builder := self._next_idle()) is not None:
            if builder.alive:
                return builder
            builder.kill()
        return _Builder(self._head)

    def _next_idle(self) -> _Builder | None:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return None

    def _keep(self, builder: _Builder) -> None:
        with self._lock:
            if not self._closed:
                self._idle.put(builder)
                return
        builder.kill()


class _Builder:
    """One process. Of one thread at a time."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sapwood.model.constraints.builder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the daemon's terminal is not for it
        )
        self._pending = b""
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._output, selectors.EVENT_READ)
        # The first answer says that it is there: it has nothing of a client's.
        self._write(json.dumps(head))
        try:
            problem = self.build('start: "a"', _START_S_MAX)
        except ConstraintRefused as refusal:
            problem = str(refusal)
        if problem:
            self.kill()
            raise BuilderBroken(problem)

    @property
    def alive(self) -> bool:
        """Whether it waits for a grammar."""
        return self._process.poll() is None

    def build(self, grammar: str, seconds_max: float) -> str:
        """The library's problem with it, or "". Raises ConstraintRefused past a limit."""
        self._write(json.dumps({"grammar": grammar}))
        deadline = time.monotonic() + seconds_max
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._answers.select(left_s):
                raise ConstraintRefused(f"it takes longer than {seconds_max:g} s to build")
            data = os.read(self._output, _ANSWER_BYTES_MAX)
            if not data:
                raise ConstraintRefused("it takes too much memory to build")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        problem: str = json.loads(line)["problem"]
        return problem

    def kill(self) -> None:
        """End it, whatever it does, and leave nothing of it."""
        self._answers.close()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def _output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has ended, and its answer does not come
