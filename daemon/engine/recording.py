"""`--record FILE`: what goes into the core and what it plans, so that a run can be played again.

- One JSON value a line: a head, then commands, plans and commits in the engine's order, with its
  times. `json` writes a float so that it is read back as the same.
- No text and no secret: ids go through a permutation that is drawn here and never written; seeds
  are left out, and so is what a constraint says; a root, a principal and a session are the numbers
  of their first use. Where a reply ends otherwise than by its length, its last token stands as END,
  which is past the vocabulary: what text decided is a fact of the recording, and who plays it needs
  no text.
- Bounded by `bytes_max`. A file that cannot be written to any more ends the recording, with one
  line in the log, and nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, BinaryIO

from sapwood.cache.prefix.snapshot import Payload
from sapwood.daemon.engine.disguise import Disguise
from sapwood.daemon.engine.disk_port import WithoutDisk
from sapwood.daemon.engine.loaded import StepCore
from sapwood.daemon.engine.replay_port import UnrecordedReplays
from sapwood.scheduler.events import (
    Cancel,
    Clear,
    Command,
    Delta,
    Drain,
    Effect,
    Finished,
    Forget,
    PinView,
    Request,
    Submit,
    Unpin,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import FinishReason
from sapwood.scheduler.plan import Admit, StepPlan
from sapwood.scheduler.result import StepResult
from sapwood.scheduler.session_events import (
    HeldSession,
    ResumeReply,
    SessionCommand,
    SessionKey,
    SessionView,
)
from sapwood.scheduler.stats import Stats
from sapwood.scheduler.stream_view import StreamView

FORMAT = 4


_log = logging.getLogger(__name__)


class RecordedCore(WithoutDisk, UnrecordedReplays):
    """A core that writes down what passes it. Everything else is the core's own doing."""

    def __init__(self, core: StepCore, facts: ModelFacts, limits: Limits, file: BinaryIO) -> None:
        """What `core` was made of, and a new file, which is closed here."""
        self._core: StepCore = core
        self._disguise = Disguise(facts.vocabulary)
        self._left = limits.record_bytes_max
        self._effects: list[Effect] = []
        self._file = file
        told = asdict(self._disguise.facts(facts)) | {"eos_token_ids": [self._disguise.end]}
        del told["control_tokens"]
        budget = core.stats().memory.budget
        self._write(format=FORMAT, facts=told, limits=asdict(limits), budget_bytes=budget)

    @property
    def has_work(self) -> bool:
        """As StepCore says."""
        return bool(self._effects) or self._core.has_work

    @property
    def finished(self) -> bool:
        """As StepCore says."""
        return not self._effects and self._core.finished

    def handle(self, command: Command, now: float) -> None:
        """As StepCore says."""
        match command:
            case Submit(request):
                self._write(now=now, submit=_request(self._disguise.request(request)))
            case Cancel(id, reason):
                self._write(now=now, cancel=[id, reason.name])
            case Unpin(id, name):
                self._write(now=now, unpin=[id, name])
            case Clear(id, tokens, root):
                self._write(now=now, clear=[id, self._disguise.ids(tokens), self._root(root)])
            case Forget(id, principal, root):
                who = self._disguise.principal(principal)
                self._write(now=now, forget=[id, who, self._root(root)])
            case Drain():
                self._write(now=now, drain=True)
            case _ if isinstance(command, SessionCommand | ResumeReply):
                self._write(now=now, session=_session(self._disguise.session_command(command)))
        self._core.handle(command, now)

    def _root(self, root: bytes | None) -> str | None:
        return None if root is None else self._disguise.root(root).decode()

    def plan(self, now: float) -> StepPlan | None:
        """As StepCore says. An idle look without work is not written: it changes nothing."""
        worked = self._core.has_work
        plan = self._core.plan(now)
        if plan is not None or worked:
            self._write(now=now, plan=None if plan is None else written(self._disguise.plan(plan)))
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """As StepCore says. Payloads are measured before the core takes them."""
        prefilled = [span(each.payload) for each in result.prefilled]
        captured = [span(payload) for payload in result.captured]
        self._effects += self._core.take_effects()
        self._core.commit(plan, result, now)
        effects = self._core.take_effects()
        self._effects += effects
        tokens = iter(self._ended(result, effects))
        self._write(
            now=now,
            decoded=[
                [next(tokens), each.drafted, each.failure, each.forced] for each in result.decoded
            ],
            prefilled=[
                [
                    None if each.token is None else next(tokens)[0],
                    payload,
                    each.failure,
                    each.forced,
                ]
                for each, payload in zip(result.prefilled, prefilled, strict=True)
            ],
            captured=captured,
        )

    def lose(self, plan: StepPlan, now: float) -> None:
        """As StepCore says."""
        self._write(now=now, lost=plan.number)
        self._core.lose(plan, now)

    @property
    def spare_bytes(self) -> int:
        """As StepCore says."""
        return self._core.spare_bytes

    def take_effects(self) -> tuple[Effect, ...]:
        """As StepCore says."""
        effects = (*self._effects, *self._core.take_effects())
        self._effects.clear()
        return effects

    def stats(self) -> Stats:
        """As StepCore says."""
        return self._core.stats()

    def pins(self, now: float) -> tuple[PinView, ...]:
        """As StepCore says."""
        return self._core.pins(now)

    def sessions(self, owner: str, now: float) -> tuple[SessionView, ...]:
        """As StepCore says."""
        return self._core.sessions(owner, now)

    def session(self, key: SessionKey, now: float) -> HeldSession | None:
        """As StepCore says."""
        return self._core.session(key, now)

    def readers(self) -> Mapping[int, int]:
        """As StepCore says."""
        return self._core.readers()

    def streams(self, now: float, most: int) -> tuple[StreamView, ...]:
        """As StepCore says."""
        return self._core.streams(now, most)

    def check(self) -> None:
        """As StepCore says."""
        self._core.check()

    def close(self) -> None:
        """As StepCore says; the recording is whole."""
        self._core.close()
        self._end()

    def stories(self) -> list[str]:
        """As StepCore says. A core that broke is asked for them last: what led here is written."""
        self._end()
        return self._core.stories()

    def _ended(self, result: StepResult, effects: Sequence[Effect]) -> list[list[int]]:
        """Each drawing row's tokens, in plan order, with END where the reply ended.

        A commit makes one Delta for each such row that did not fail, in that order.
        """
        drawn = [(each.tokens, each.failure) for each in result.decoded]
        drawn += [((p.token,), p.failure) for p in result.prefilled if p.token is not None]
        ends = {
            e.id for e in effects if isinstance(e, Finished) and e.reason != FinishReason.LENGTH
        }
        deltas = iter([effect for effect in effects if isinstance(effect, Delta)])
        told = []
        for tokens, failure in drawn:
            row = list(self._disguise.ids(tokens))
            if not failure and (delta := next(deltas)).id in ends:
                row[len(delta.token_ids) - 1] = self._disguise.end
            told.append(row)
        return told

    def _write(self, **line: Any) -> None:
        if self._file.closed:
            return
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._left -= len(data)
        if self._left < 0:
            _log.warning("the recording is full: what follows is not recorded")
            self._end()
            return
        try:
            self._file.write(data)
            self._file.flush()  # one system call a line: what comes before a crash is there
        except OSError as error:
            _log.warning("the recording ends: %s", error.strerror)
            self._end()

    def _end(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            _log.warning("the end of the recording is lost: %s", error.strerror)


def written(plan: StepPlan) -> list[Any]:
    """A plan as JSON: everything that it says, payloads by the spans that they have."""
    admits = [_admit(admit) for admit in plan.admits]
    captures = [[c.slot, c.start, c.end] for c in plan.captures]
    decodes = [[d.slot, d.start, d.token, d.depth, d.index, d.forced] for d in plan.decodes]
    prefills = [[p.slot, p.start, p.tokens, p.draws, p.capture, p.index] for p in plan.prefills]
    grows = [[grow.slot, grow.room] for grow in plan.grows]
    repoints = [[r.slot, [span(payload) for payload in r.path]] for r in plan.repoints]
    seals = [[s.slot, [span(payload) for payload in s.path], s.room] for s in plan.seals]
    moved = [captures, plan.releases, plan.pack, grows, admits, repoints, seals]
    return [plan.number, *moved, decodes, prefills]


def _admit(admit: Admit) -> list[Any]:
    restored = [admit.slot, admit.target, admit.base, [span(payload) for payload in admit.path]]
    sequence = [asdict(admit.sampling), admit.tokens_max, admit.prompt, admit.top_logprobs]
    return [*restored, admit.room, *sequence, admit.reply]


def span(payload: Payload | None) -> list[int] | None:
    """What the core can tell of a payload: [start, end, sliding_start, full, sliding bytes]."""
    if payload is None:
        return None
    ranges = [payload.start, payload.end, payload.sliding_start]
    return [*ranges, payload.full_bytes, payload.sliding_bytes]


def _session(command: SessionCommand | ResumeReply) -> list[Any]:
    """Its kind, whose it is, and the rest in order."""
    rest = [getattr(command, each.name) for each in fields(command) if each.name != "key"]
    return [type(command).__name__, command.key.owner, command.key.name, *rest]


def _request(request: Request) -> dict[str, Any]:
    told = asdict(request)
    for text in ("stop", "stop_token_ids", "ignore_eos"):
        del told[text]
    return told | {"root": request.root.decode()}
