"""Which captures, releases, admits, decode rows and prefill slices make up the next step.

- Every DECODE sequence is in every step (L3); prefill fills the rest, and always its share (L2).
- Whatever may evict comes before the first path is taken out of the tree: captures of those who
  leave, admissions, captures of slices, and only then what is restored.
- A slot that leaves may be given away in the same plan: the device releases before it admits.
- No plan is empty (L6), and there is none only when no sequence has a slot or waits for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import Admit, Capture, DecodeRow, PrefillSlice, Repoint, Seal, StepPlan
from sapwood.scheduler.policy.depth import DepthPolicy, Row
from sapwood.scheduler.policy.shares import prefill_budget, prefill_shares


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A plan on the device, and whose its parts are, in plan order.

    planned_at: seconds of the engine's clock, when the plan was begun.
    """

    plan: StepPlan
    planned_at: float
    captured: tuple[Sequence, ...]
    admitted: tuple[Sequence, ...]
    decoding: tuple[Sequence, ...]
    prefilling: tuple[Sequence, ...]


class Planner:
    """Writes the next plan; moves sequences into and out of slots as it does."""

    def __init__(
        self, limits: Limits, roster: Roster, memory: DeviceMemory, depth: DepthPolicy
    ) -> None:
        self._limits = limits
        self._roster = roster
        self._memory = memory
        self._depth = depth
        self._reshaped = 0  # of the tree, when all references were right

    def plan(self, step: int, now: float) -> PlannedStep | None:
        """Step `step`, or None when there is nothing for the device."""
        roster = self._roster
        # Before _leave, which empties `leaving`; and who leaves makes room for who comes.
        releases = tuple(sequence.slot for sequence in roster.leaving)
        captured, captures = self._leave(step)
        admitted = self._admit(step, now)
        decoding = roster.in_state(SequenceState.DECODE)
        prefilling = roster.in_state(SequenceState.PREFILL)
        decodes = self._decodes(decoding, prefilling)
        shares = self._shares(prefilling, decodes)
        for sequence, share in shares:
            sequence.storing = sequence.storing and self._memory.promise(share, share, step)
        # After the last promise: an eviction spoils paths.
        admits = self._restores(admitted)
        seals = self._seals(decoding)
        told = {sequence.slot for sequence in admitted} | {seal.slot for seal in seals}
        repoints = self._repoints(told)
        # After the restores, which say where a new sequence's first slice begins.
        prefills = tuple(self._slice(sequence, share, step) for sequence, share in shares)
        if not (releases or decodes or prefills):
            assert not roster, f"they wait for nothing: {roster.stories()}"
            return None
        plan = StepPlan(step, captures, releases, admits, repoints, seals, decodes, prefills)
        served = tuple(sequence for sequence, _ in shares)
        return PlannedStep(plan, now, captured, admitted, decoding, served)

    def _leave(self, step: int) -> tuple[tuple[Sequence, ...], tuple[Capture, ...]]:
        """Free the slots of ended sequences, after copying out what the tree lacks of them."""
        captured, captures = [], []
        for sequence in self._roster.leaving:
            start, end = sequence.stored, sequence.storable
            sliding = min(end - start, self._memory.ring_tokens)
            if start < end and self._memory.promise(end - start, sliding, step):
                captured.append(sequence)
                captures.append(Capture(sequence.slot, start, end))
            else:
                self._memory.forget(sequence, step)
            self._memory.free_slot(sequence)
        self._roster.leave(captured)
        return tuple(captured), tuple(captures)

    def _admit(self, step: int, now: float) -> tuple[Sequence, ...]:
        admitted = []
        while self._roster.has_free_slot and (sequence := self._next(step)):
            self._roster.give_slot(sequence, now, step)
            admitted.append(sequence)
        return tuple(admitted)

    def _next(self, step: int) -> Sequence | None:
        roster = self._roster
        for sequence in roster.waiting.candidates(roster.in_state(SequenceState.PREFILL)):
            if self._memory.reserve_slot(sequence, step):
                return sequence
        return None

    def _decodes(
        self, decoding: tuple[Sequence, ...], prefilling: tuple[Sequence, ...]
    ) -> tuple[DecodeRow, ...]:
        rows = [self._row(sequence) for sequence in decoding]
        rests = sum(sequence.prompt_tokens - sequence.processed for sequence in prefilling)
        prefill = min(rests, prefill_budget(len(rows), self._limits.prefill_tokens_max))
        depths = self._depth.choose(rows, prefill)
        return tuple(
            DecodeRow(s.slot, s.evaluated, s.reply.tokens[-1], depth, s.emitted)
            for s, depth in zip(decoding, depths, strict=True)
        )

    def _row(self, sequence: Sequence) -> Row:
        """Drafting past the last token that may be emitted would be for nothing."""
        depth_max = min(self._depth.depth_max, sequence.reply.remaining - 1)
        pinned = sequence.request.depth
        if pinned is not None:
            pinned = min(pinned, depth_max)
        return Row(sequence.drafting, depth_max, sequence.evaluated, pinned)

    def _shares(
        self, prefilling: tuple[Sequence, ...], decodes: tuple[DecodeRow, ...]
    ) -> list[tuple[Sequence, int]]:
        """Who has a slice in this step, and of how many tokens."""
        limits = self._limits
        shares = prefill_shares(
            [sequence.prompt_tokens - sequence.processed for sequence in prefilling],
            [sequence.served_step for sequence in prefilling],
            prefill_budget(sum(d.depth + 1 for d in decodes), limits.prefill_tokens_max),
            limits.prefill_slices_max,
        )
        return [(s, share) for s, share in zip(prefilling, shares, strict=True) if share]

    def _restores(self, admitted: tuple[Sequence, ...]) -> tuple[Admit, ...]:
        """Lend what is restored, now that nothing of this plan evicts any more."""
        admits = []
        paths = self._memory.restore(admitted)
        for sequence, path in zip(admitted, paths, strict=True):
            sequence.restore()
            request = sequence.request
            admits.append(
                Admit(
                    sequence.slot,
                    sequence.cached,
                    path,
                    request.sampling,
                    sequence.tokens_max,
                    request.prompt,
                    request.top_logprobs,
                    sequence.base,
                )
            )
        return tuple(admits)

    def _seals(self, decoding: tuple[Sequence, ...]) -> tuple[Seal, ...]:
        """Long prompts that have just been read: the tree has them, no row need hold them too."""
        fresh = [sequence for sequence in decoding if sequence.emitted == 1]
        sealed = [sequence for sequence in fresh if self._memory.seal(sequence)]
        return tuple(Seal(s.slot, self._memory.path(s)) for s in sealed)

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
        start, end = sequence.processed, sequence.processed + share
        tokens = sequence.request.prompt[start:end]
        sequence.served_step = step
        draws = end == sequence.prompt_tokens
        return PrefillSlice(sequence.slot, start, tokens, draws, capture=sequence.storing)
