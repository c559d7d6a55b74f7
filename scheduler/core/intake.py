"""What comes into the core: commands, who is let in by them, and who is ended.

- Each command is answered, or ended, once. A late one finds nobody, and changes nothing.
- Whoever is let in waits from then on; whoever is not is told why at once.
"""

from __future__ import annotations

from collections import abc

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.door import SHUTTING_DOWN, Door, Verdict
from sapwood.scheduler.core.fairness import Fairness
from sapwood.scheduler.core.forgetting import Forgetting
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.sessions import Sessions
from sapwood.scheduler.core.slicing import Slicing
from sapwood.scheduler.core.state import CoreState
from sapwood.scheduler.disk import DiskFolder
from sapwood.scheduler.events import (
    Cancel,
    Clear,
    Command,
    Drain,
    Failed,
    Forget,
    Request,
    Submit,
    Unpin,
    Unpinned,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.policy.depth import DepthPolicy
from sapwood.scheduler.reply.reply import GeneratedReply
from sapwood.scheduler.session_events import (
    CreateSession,
    DeleteSession,
    ForkSession,
    ResumeReply,
    RollbackSession,
)


class Intake(CoreState):
    """The core's side of commands. What is planned and answered is Core's."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        tree: Tree,
        ledger: Ledger,
        token_bytes: abc.Sequence[bytes],
        depth: DepthPolicy | None,
        folder: DiskFolder | None,
    ) -> None:
        """As Core's."""
        assert len(token_bytes) == facts.vocabulary, f"{len(token_bytes)} of {facts.vocabulary}"
        depth_max = limits.draft_depth_max if facts.has_drafter else 0
        self._depth = depth or DepthPolicy(depth_max)
        assert self._depth.depth_max == depth_max, f"{self._depth.depth_max} != {depth_max}"
        super().__init__(facts, limits, tree, ledger, depth_max)
        self._token_bytes = token_bytes
        self._fairness = Fairness(limits, self._roster)
        self._slicing = Slicing(limits, self._roster, self._depth, self._fairness)
        if folder is not None:
            self._memory.use_disk(folder, self._slicing.reading_s)
        parts = limits, self._roster, self._memory
        self._door = Door(*parts, self._meters, self._fairness, self._slicing)
        self._sessions = Sessions(
            limits,
            tree,
            self._meters,
            self._new_sequence,
            lambda request: GeneratedReply(request, facts, token_bytes),
            self._give_up,
        )
        self._forgetting = Forgetting(self._sessions, self._roster, self._memory)

    def _take_in(self, command: Command, now: float) -> None:
        match command:
            case Submit(request):
                self._submit(request, now)
            case Cancel(id, reason):
                self._cancel(id, reason, now)
            case Unpin(id, name):
                self._effects.append(Unpinned(id, self._memory.pins.unpin(name, self._step)))
            case Clear():
                self._clear(command)
            case ResumeReply():
                self._resume(command, now)
            case Drain():
                self._drain(now)
            case CreateSession() | ForkSession() | RollbackSession() | DeleteSession():
                self._effects += self._forgetting.obey(command, now)
            case Forget():
                self._memory.disk.stop_reading(self._step)
                self._effects += self._forgetting.forget(command, self._step, now)
            case _:
                self._effects += self._memory.disk.take(command, self._step)

    def _submit(self, request: Request, now: float) -> None:
        if self._roster.find(request.id) is not None:
            return
        rows, entered = request.rows, list[Sequence]()
        for row in rows:
            sequence = self._new_sequence(row, now)
            refusal = self._refusal(sequence, now)
            if refusal is not None:
                self._turn_away(entered, rows[len(entered) :], refusal, now)
                return
            self._let_in(sequence, now)
            entered.append(sequence)

    def _turn_away(
        self, entered: list[Sequence], rest: abc.Sequence[Request], why: Verdict, now: float
    ) -> None:
        """One of a request's rows is refused: so are all."""
        for sequence in entered:
            self._fail(sequence, now, why)
        for row in rest:
            self._tell_end(row, row.id, why)

    def _refusal(self, sequence: Sequence, now: float) -> Verdict | None:
        if self._draining:
            return SHUTTING_DOWN
        why = self._sessions.refusal(sequence.request)
        if why is not None:
            return Verdict(Outcome.REJECTED, why.reason, why.message)
        return self._door.refusal(sequence, now)

    def _let_in(self, sequence: Sequence, now: float) -> None:
        for displaced, verdict in self._door.displaced(sequence.request):
            self._fail(displaced, now, verdict)
        self._sessions.begin(sequence)
        self._memory.public.adopt(sequence, self._step)
        self._roster.waiting.add(sequence)

    def _resume(self, order: ResumeReply, now: float) -> None:
        """What of the reply is there is told, but for who is not let in to go on with it."""
        told, sequence = self._sessions.resume(order, self._ends_at(order.deadline, now), now)
        refusal = None if sequence is None else self._refusal(sequence, now)
        if refusal is not None:
            self._turn_away([], [] if sequence is None else [sequence.request], refusal, now)
            return
        self._effects += told
        if sequence is not None:
            self._let_in(sequence, now)

    def _new_sequence(self, request: Request, now: float) -> Sequence:
        assert request.prompt and request.max_tokens > 0, f"request {request.id} asks for nothing"
        assert request.weight > 0, f"request {request.id} weighs nothing"
        drafting = self._depth.drafting()
        sequence = Sequence(request, self._facts, self._token_bytes, drafting, now)
        sequence.queue_expires_at = now + self._limits.queue_s_max
        sequence.expires_at = self._ends_at(request.deadline, now)
        return sequence

    def _ends_at(self, deadline: float | None, now: float) -> float:
        latest = now + self._limits.request_s_max
        return latest if deadline is None else min(latest, deadline)

    def _cancel(self, id: int, why: CancelReason, now: float) -> None:
        """A late or duplicate cancel finds nobody and is a no-op."""
        sequence = self._sessions.taken_over(id) or self._roster.find(id)
        if sequence is not None and sequence.stream == id:
            self._give_up(sequence, why, now)

    def _give_up(self, sequence: Sequence, why: CancelReason, now: float) -> None:
        self._fail(sequence, now, Verdict(why.outcome, why.reason, why.message))

    def _clear(self, order: Clear) -> None:
        """Of who reads from disk nothing may come back; who asked hears when the files are gone."""
        memory = self._memory
        memory.disk.stop_reading(self._step)
        if order.root is None:
            cleared = memory.pins.clear(order, self._roster.holders)
            self._effects += memory.disk.clear(order, cleared)
        else:
            cleared = memory.pins.clear_root(order.id, order.root, self._roster.holders)
            self._effects += memory.disk.forget_root(order.root, cleared)

    def _drain(self, now: float) -> None:
        self._draining = True
        for sequence in self._roster.waiting.queued:
            self._fail(sequence, now, SHUTTING_DOWN)

    def _fail(self, sequence: Sequence, now: float, verdict: Verdict) -> None:
        self._roster.end(sequence, now, verdict.outcome)
        self._memory.pins.give_up(sequence.id)
        self._memory.disk.give_up(sequence.id, self._step)
        self._sessions.settle(sequence, now)
        self._forgetting.given_up(sequence)
        self._tell_end(sequence.request, sequence.stream, verdict)

    def _expire(self, now: float) -> None:
        self._memory.pins.expire(self._step, now)
        self._sessions.expire(now)

    def _tell_end(self, request: Request, stream: int, verdict: Verdict) -> None:
        if request.counts:
            self._meters.count_end(verdict.outcome, verdict.reason)
        told = Failed(stream, verdict.reason, verdict.message, verdict.retry_after_s)
        self._effects.append(told)
