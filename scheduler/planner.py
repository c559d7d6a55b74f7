"""Which captures, releases, admits, decode rows and prefill slices make up the next step.

- Every DECODE session is in every step (L3); prefill fills the rest, and always its share (L2).
- Whatever may evict comes before the first path is taken out of the tree: captures of those who
  leave, admissions, captures of slices, and only then what is restored.
- A slot that leaves may be given away in the same plan: the device releases before it admits.
- No plan is empty (L6), and there is none only when no session has a slot or waits for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.depth import DepthPolicy, Row
from scheduler.limits import Limits
from scheduler.memory import Memory
from scheduler.plan import Admit, Capture, Decode, Prefill, StepPlan
from scheduler.policy import prefill_budget, prefill_shares
from scheduler.roster import Roster
from scheduler.session import Session, State


@dataclass(frozen=True, slots=True)
class Flight:
    """A plan on the device, and whose its parts are, in plan order."""

    plan: StepPlan
    planned_at: float
    captured: tuple[Session, ...]
    admitted: tuple[Session, ...]
    decoding: tuple[Session, ...]
    prefilling: tuple[Session, ...]


class Planner:
    """Writes the next plan; moves sessions into and out of slots as it does."""

    def __init__(self, limits: Limits, roster: Roster, memory: Memory, depth: DepthPolicy) -> None:
        self._limits = limits
        self._roster = roster
        self._memory = memory
        self._depth = depth

    def plan(self, step: int, now: float) -> Flight | None:
        """Step `step`, or None when there is nothing for the device."""
        roster = self._roster
        releases = tuple(session.slot for session in roster.leaving)
        captured, captures = self._leave(step)
        admitted = self._admit(step, now)
        decoding, prefilling = roster.in_state(State.DECODE), roster.in_state(State.PREFILL)
        decodes = self._decodes(decoding, prefilling)
        shares = self._shares(prefilling, decodes)
        for session, share in shares:
            session.storing = session.storing and self._memory.promise(share, share, step)
        admits = self._restores(admitted, step)
        prefills = tuple(self._slice(session, share, step) for session, share in shares)
        if not (releases or decodes or prefills):
            assert not roster, f"they wait for nothing: {roster.stories()}"
            return None
        plan = StepPlan(step, captures, releases, admits, decodes, prefills)
        served = tuple(session for session, _ in shares)
        return Flight(plan, now, captured, tuple(admitted), decoding, served)

    def _leave(self, step: int) -> tuple[tuple[Session, ...], tuple[Capture, ...]]:
        """Free the slots of ended sessions, after copying out what the tree lacks of them."""
        captured, captures = [], []
        for session in self._roster.leaving:
            start, end = session.stored, session.storable
            sliding = min(end - start, self._memory.ring_tokens)
            if start < end and self._memory.promise(end - start, sliding, step):
                captured.append(session)
                captures.append(Capture(session.slot, start, end))
            else:
                self._memory.forget(session, step)
            self._memory.free_slot(session)
        self._roster.leave(captured)
        return tuple(captured), tuple(captures)

    def _admit(self, step: int, now: float) -> list[Session]:
        admitted = []
        while self._roster.has_free_slot and (session := self._next(step)):
            self._roster.admit(session, now, step)
            admitted.append(session)
        return admitted

    def _next(self, step: int) -> Session | None:
        roster = self._roster
        for session in roster.waiting.candidates(roster.in_state(State.PREFILL)):
            if self._memory.admit(session, step):
                return session
        return None

    def _decodes(
        self, decoding: Sequence[Session], prefilling: Sequence[Session]
    ) -> tuple[Decode, ...]:
        rows = [self._row(session) for session in decoding]
        rests = sum(session.prompt_tokens - session.processed for session in prefilling)
        prefill = min(rests, prefill_budget(len(rows), self._limits.prefill_tokens_max))
        depths = self._depth.choose(rows, prefill)
        return tuple(
            Decode(s.slot, s.evaluated, s.reply.tokens[-1], depth, s.emitted)
            for s, depth in zip(decoding, depths, strict=True)
        )

    def _row(self, session: Session) -> Row:
        """Drafting past the last token that may be emitted would be for nothing."""
        depth_max = min(self._depth.depth_max, session.reply.remaining - 1)
        pinned = session.request.depth
        if pinned is not None:
            pinned = min(pinned, depth_max)
        return Row(session.drafting, depth_max, session.evaluated, pinned)

    def _shares(
        self, prefilling: Sequence[Session], decodes: Sequence[Decode]
    ) -> list[tuple[Session, int]]:
        """Who has a slice in this step, and of how many tokens."""
        limits = self._limits
        shares = prefill_shares(
            [session.prompt_tokens - session.processed for session in prefilling],
            [session.served_step for session in prefilling],
            prefill_budget(sum(d.depth + 1 for d in decodes), limits.prefill_tokens_max),
            limits.prefill_slices_max,
        )
        return [(s, share) for s, share in zip(prefilling, shares, strict=True) if share]

    def _restores(self, admitted: Sequence[Session], step: int) -> tuple[Admit, ...]:
        """Fix what is restored, now that nothing of this plan evicts any more."""
        admits = []
        paths = self._memory.restore(admitted, step)
        for session, path in zip(admitted, paths, strict=True):
            session.restore()
            request = session.request
            admits.append(
                Admit(
                    session.slot,
                    session.cached,
                    path,
                    request.sampling,
                    session.tokens_max,
                    request.prompt,
                    request.top_logprobs,
                )
            )
        return tuple(admits)

    def _slice(self, session: Session, share: int, step: int) -> Prefill:
        """A slice that is not captured leaves a gap, so the rest of that prompt is not either."""
        start, end = session.processed, session.processed + share
        tokens = session.request.prompt[start:end]
        session.served_step = step
        draws = end == session.prompt_tokens
        return Prefill(session.slot, start, tokens, draws, capture=session.storing)
