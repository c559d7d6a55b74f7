"""Which captures, releases, moves, decode rows and prefill slices make up the next step.

- Every DECODE sequence is in every step (L3); prefill fills the rest, and always its share (L2).
- Where slots or memory are short one may be parked in a plan, for who has less than its share (L4).
- Who decodes has room for its next round before anybody is admitted, the oldest first. Where there
  is none, the youngest is parked: never the oldest (L7), but where it is alone and what it refers
  to is in its own way.
- What those who leave hold is captured as far as that leaves room for those who stay.
- Whatever may evict comes before the first path is taken out of the tree: growing, captures of
  those who leave, admissions, captures of slices, and only then what is restored.
- A slot that leaves may be given away in the same plan: the device releases before it admits.
- No plan is empty (L6), and there is none only when no sequence has a slot or waits for one, or all
  who wait do so for the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sapwood.scheduler.core.claims import Claims
from sapwood.scheduler.core.fairness import Fairness
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.round_checks import RoundChecks
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.core.slicing import Slicing, shape_of
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import (
    Admit,
    Capture,
    DecodeRow,
    Grow,
    PrefillSlice,
    Repoint,
    Seal,
    StepPlan,
)
from sapwood.scheduler.policy.depth import DepthPolicy, Row
from sapwood.scheduler.policy.slice_cost import Reading
from sapwood.scheduler.policy.step_cost import StepShape

Left = tuple[Sequence, int]  # a sequence whose slot the plan releases, and which it was


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A plan on the device, and whose its parts are, in plan order.

    planned_at: seconds of the engine's clock, when the plan was begun. parked: how many are parked
    by it, for want of memory or for others. found_tokens: of prompts, that are restored and were
    not counted before.
    """

    plan: StepPlan
    planned_at: float
    parked: int
    found_tokens: int
    captured: tuple[Sequence, ...]
    admitted: tuple[Sequence, ...]
    decoding: tuple[Sequence, ...]
    prefilling: tuple[Sequence, ...]

    @property
    def shape(self) -> StepShape:
        """What its cost depends on."""
        plan = self.plan
        return replace(
            shape_of(plan.decodes),
            reading=Reading.of((p.start, len(p.tokens)) for p in plan.prefills),
            copied=plan.copied,
        )


class Planner:
    """Writes the next plan; moves sequences into and out of slots as it does."""

    def __init__(
        self,
        limits: Limits,
        roster: Roster,
        memory: DeviceMemory,
        depth: DepthPolicy,
        fairness: Fairness,
        slicing: Slicing,
        checks: RoundChecks,
    ) -> None:
        self._limits = limits
        self._roster = roster
        self._memory = memory
        self._depth = depth
        self._reshaped = 0  # of the tree, when all references were right
        self._fairness = fairness
        self._claims = Claims(limits, roster, fairness)
        self._slicing = slicing
        self._checks = checks

    def plan(self, step: int, now: float) -> PlannedStep | None:
        """Step `step`, or None when there is nothing for the device."""
        roster = self._roster
        self._memory.begin_plan(step, now)
        leaving = [(sequence, sequence.slot) for sequence in roster.leaving]
        for sequence, _ in leaving:
            self._memory.free_slot(sequence)
        self._fairness.begin()
        parked = self._grow(leaving, step, now)
        victim = None if leaving or parked else self._claims.victim(step)
        yielded = [] if victim is None else [self._give_up(victim, step, now)]
        releases = tuple(slot for _, slot in (*leaving, *parked, *yielded))
        # Who was parked first: they come back for it.
        captured, captures = self._capture([*parked, *yielded, *leaving], step)
        roster.leave(captured)
        grows = self._grows()
        # Nobody comes in the place of who has just gone for want of memory.
        admitted = () if parked else self._admit(victim, step, now)
        decoding = roster.in_state(SequenceState.DECODE)
        prefilling = roster.in_state(SequenceState.PREFILL)
        decodes = self._decodes(decoding, reads=bool(prefilling))
        copies = bool(captures or grows or self._memory.packs or admitted)
        shares = self._slicing.shares(prefilling, decoding, decodes, copies)
        for sequence, share in shares:
            sequence.storing = sequence.storing and self._memory.promise(
                share, share, step, of_slot=False
            )
        # After the last promise: an eviction spoils paths.
        admits, found = self._restores(admitted)
        seals = self._seals(decoding)
        told = {sequence.slot for sequence in admitted} | {seal.slot for seal in seals}
        repoints = self._repoints(told)
        # After the promises, which say what of it is captured.
        prefills = tuple(self._slice(sequence, share, step) for sequence, share in shares)
        if not (releases or decodes or prefills):
            idle = not roster or self._memory.disk.is_reading
            assert idle, f"they wait for nothing: {roster.stories()}"
            return None
        plan = StepPlan(
            number=step,
            captures=captures,
            releases=releases,
            pack=self._memory.packs,
            grows=grows,
            admits=admits,
            repoints=repoints,
            seals=seals,
            decodes=decodes,
            prefills=prefills,
            kept_slot=self._checks.choose(step, decodes),
        )
        served = tuple(sequence for sequence, _ in shares)
        parks = len(parked) + len(yielded)
        return PlannedStep(plan, now, parks, found, captured, admitted, decoding, served)

    def _grow(self, leaving: list[Left], step: int, now: float) -> list[Left]:
        """Room for the next round of all who decode; returns who was parked for it."""
        parked: list[Left] = []
        for sequence in sorted(self._roster.in_state(SequenceState.DECODE), key=_rank):
            while sequence.slot >= 0 and not self._memory.grow(sequence, step):
                if (victim := self._least_claim()) is not None:
                    parked.append(self._park(victim, now))
                elif not self._forget([*parked, *leaving], step):
                    assert sequence.base, f"L5: it cannot grow alone: {sequence.tell()}"
                    parked.append(self._park(sequence, now))
        return parked

    def _least_claim(self) -> Sequence | None:
        """Of those that live, but for the oldest, the youngest of who has most."""
        _, *others = sorted(self._roster.live.values(), key=_rank)
        return self._fairness.furthest_over(others) if others else None

    def _give_up(self, victim: Sequence, step: int, now: float) -> Left:
        """Its row goes to somebody else."""
        had_long = step - victim.served_step >= self._limits.yield_steps_min
        return self._park(victim, now, "yields", forced=not had_long)

    def _park(
        self, sequence: Sequence, now: float, why: str = "memory is short", *, forced: bool = True
    ) -> Left:
        slot = sequence.slot
        self._memory.free_slot(sequence)
        self._roster.park(sequence, now, why, forced=forced)
        return sequence, slot

    def _forget(self, left: list[Left], step: int) -> bool:
        """What they hold in the tree may go, what it lacks is lost. Whether anybody held any."""
        held = [sequence for sequence, _ in left if sequence.lease is not None]
        for sequence in held:
            self._memory.forget(sequence, step)
        return bool(held)

    def _capture(
        self, left: list[Left], step: int
    ) -> tuple[tuple[Sequence, ...], tuple[Capture, ...]]:
        """Copy out what the tree lacks of those whose slots go, as far as there is room for it."""
        captured, captures = [], []
        for sequence, slot in left:
            if sequence.lease is None:
                continue
            start, end = sequence.stored, sequence.storable
            tokens = end - start
            if tokens > 0 and self._memory.promise(tokens, tokens, step, of_slot=True):
                captured.append(sequence)
                captures.append(Capture(slot, start, end))
            else:
                self._memory.forget(sequence, step)
        return tuple(captured), tuple(captures)

    def _grows(self) -> tuple[Grow, ...]:
        """In the order in which they were decided: it says which holes they take."""
        grown = [self._roster.live[id] for id in self._memory.grown]
        return tuple(Grow(sequence.slot, sequence.demand.tokens) for sequence in grown)

    def _admit(self, victim: Sequence | None, step: int, now: float) -> tuple[Sequence, ...]:
        """All that may come but who has just gone for another."""
        admitted = []
        while self._roster.free_slots and (sequence := self._next(victim, step)):
            self._roster.give_slot(sequence, now, step)
            admitted.append(sequence)
        return tuple(admitted)

    def _next(self, victim: Sequence | None, step: int) -> Sequence | None:
        for sequence in self._roster.candidates(self._fairness.order()):
            if sequence is not victim and self._memory.reserve_slot(sequence, step):
                return sequence
        return None

    def _decodes(self, decoding: tuple[Sequence, ...], *, reads: bool) -> tuple[DecodeRow, ...]:
        deepest = min(self._depth.depth_max, self._limits.depth_max(len(decoding)))
        rows = [_row(sequence, deepest) for sequence in decoding]
        depths = self._depth.choose(rows, reads=reads)
        return tuple(
            DecodeRow(s.slot, s.evaluated, s.reply.tokens[-1], depth, s.emitted, row.forced)
            for s, row, depth in zip(decoding, rows, depths, strict=True)
        )

    def _restores(self, admitted: tuple[Sequence, ...]) -> tuple[tuple[Admit, ...], int]:
        """Lend what is restored, now that nothing of this plan evicts any more.

        Also returns PlannedStep.found_tokens.
        """
        admits, found = [], 0
        paths = self._memory.restore(admitted)
        for sequence, path in zip(admitted, paths, strict=True):
            found += sequence.restore()
            request = sequence.request
            admits.append(
                Admit(
                    sequence.slot,
                    sequence.evaluated,
                    path,
                    request.sampling,
                    sequence.tokens_max,
                    request.prompt,
                    request.top_logprobs,
                    sequence.base,
                    sequence.demand.tokens,
                    tuple(sequence.reply.tokens),
                    request.constraint,
                    sequence.reply.bounds if sequence.reply.bounds.binds else None,
                    request.prompt_logprobs,
                )
            )
        return tuple(admits), found

    def _seals(self, decoding: tuple[Sequence, ...]) -> tuple[Seal, ...]:
        """Long prompts that have just been read: the tree has them, no row need hold them too."""
        fresh = [sequence for sequence in decoding if sequence.emitted == 1]
        sealed = [sequence for sequence in fresh if self._memory.seal(sequence)]
        return tuple(Seal(s.slot, self._memory.path(s), s.demand.tokens) for s in sealed)

    def _repoints(self, told: set[int]) -> tuple[Repoint, ...]:
        """Tell those that refer to anything where it lies, once the tree was reshaped.

        told: slots that this plan tells in another way.
        """
        if self._reshaped == self._memory.reshaped:
            return ()
        self._reshaped = self._memory.reshaped
        return tuple(
            Repoint(sequence.slot, self._memory.path(sequence))
            for sequence in self._roster.live.values()
            if sequence.base and sequence.slot not in told
        )

    def _slice(self, sequence: Sequence, share: int, step: int) -> PrefillSlice:
        """A slice that is not captured leaves a gap, so the rest of that prompt is not either."""
        start, end = sequence.evaluated, sequence.evaluated + share
        tokens = sequence.prefix[start:end]
        sequence.served_step = step
        draws = end == len(sequence.prefix) and sequence.request.pin is None
        scored = sequence.scores_left and start == sequence.processed
        return PrefillSlice(
            sequence.slot,
            start,
            tokens,
            draws,
            sequence.storing,
            sequence.emitted,
            sequence.request.prompt[start + 1 : end + 1] if scored else (),
        )


def _rank(sequence: Sequence) -> int:
    return sequence.rank


def _row(sequence: Sequence, deepest: int) -> Row:
    """Drafting past the last token that may be emitted would be for nothing."""
    depth_max = min(deepest, sequence.reply.remaining - 1)
    pinned = sequence.request.depth
    if pinned is not None:
        pinned = min(pinned, depth_max)
    forced = min(sequence.forced_drafts, depth_max if pinned is None else pinned)
    return Row(sequence.drafting, depth_max, sequence.evaluated, pinned, forced)
