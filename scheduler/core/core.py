"""The pure core: commands in, step plans and effects out. The engine's loop is

    for command in inbox: core.handle(command, now)
    plan = core.plan(now)               # captures, releases, admits, one forward
    effects = core.take_effects()       # leave before the plan is carried out
    core.commit(plan, result, now)      # only where there was a plan

- Sequences, the queue and pending effects have this one writer; tree and ledger move in
  DeviceMemory. What they are, and what may be asked of them: state.py. Commands: intake.py.
- plan() is a function of the commands, results and times that came before, nothing else (L8).
- A sequence that ends is DONE at once and tells its end at once, exactly once (R1); its slot leaves
  with the next plan, which first captures what the tree lacks of it (R2).
- Who is parked for want of memory still runs: neither the queue's time nor a drain ends it.
- Counters move before the effect that tells of them leaves.
- A step's duration for the depth policy is commit's now - plan's now: emission, submit and device.
"""

from __future__ import annotations

from collections import abc

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.captures import lose_slots, store_captures
from sapwood.scheduler.core.door import Verdict
from sapwood.scheduler.core.intake import Intake
from sapwood.scheduler.core.planner import PlannedStep, Planner
from sapwood.scheduler.core.round_checks import RoundChecks
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.disk import DiskFolder
from sapwood.scheduler.events import (
    Command,
    Delta,
    Finished,
    Pinned,
    Progress,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.plan import DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.policy.depth import DepthPolicy
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.replay import Replay, Replayed
from sapwood.scheduler.reply.retell import identified
from sapwood.scheduler.result import Decoded, DeviceExhausted, Prefilled, StepResult, TokenLogprobs


class Core(Intake):
    """Decides who computes what in each step. Single-threaded, deterministic, without I/O."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        tree: Tree,
        ledger: Ledger,
        token_bytes: abc.Sequence[bytes],
        depth: DepthPolicy | None = None,
        folder: DiskFolder | None = None,
    ) -> None:
        """`token_bytes[id]` are a token's bytes, b"" for specials, for the whole vocabulary.

        The core owns tree and ledger from here on. `depth` learns across sequences; None makes a
        fresh one that fits the model. folder: where prefixes are kept too.
        """
        super().__init__(facts, limits, tree, ledger, token_bytes, depth, folder)
        parts = limits, self._roster, self._memory
        self._checks = RoundChecks(facts, limits, self._memory, self._fairness.time, self._meters)
        self._planner = Planner(*parts, self._depth, self._fairness, self._slicing, self._checks)
        self._planned: PlannedStep | None = None
        self._lost = 0  # of the newest steps

    def handle(self, command: Command, now: float) -> None:
        """Take in one command, between a commit and the next plan."""
        assert self._planned is None, f"{type(command).__name__} while step {self._steps} runs"
        self._expire(now)
        self._waits_for_disk = False
        self._take_in(command, now)

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing for the device."""
        assert self._planned is None, f"step {self._steps} is not committed"
        self._expire(now)
        for sequence, verdict in self._door.expired(now):
            self._fail(sequence, now, verdict)
        self._planned = self._planner.plan(self._steps + 1, now)
        if self._planned is None:
            self._waits_for_disk = self._memory.disk.is_reading
            return None
        self._steps += 1
        for sequence in self._planned.admitted:
            if sequence.request.counts and not (sequence.parks or sequence.resumed):
                self._meters.request_queue.observe(now - sequence.submitted_at)
        return self._planned.plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Take in what the device answered to `plan`. Takes the result's payloads."""
        planned = self._take_planned(plan)
        self._lost = 0
        # Ends all promises, so slices come after it.
        store_captures(planned, result, self._roster, self._memory)
        self._count_step(planned, now - planned.planned_at)
        self._checks.committed(plan, planned.decoding, result, now - planned.planned_at)
        rounds = zip(planned.decoding, plan.decodes, result.decoded, strict=True)
        for sequence, row, decoded in rounds:
            self._commit_round(sequence, row, decoded, now)
        slices = zip(planned.prefilling, plan.prefills, result.prefilled, strict=True)
        for sequence, piece, prefilled in slices:
            self._commit_slice(sequence, piece, prefilled, now)

    def lose(self, plan: StepPlan, now: float) -> None:
        """The device had no memory for `plan` and dropped all slots: who lives is parked.

        Raises DeviceExhausted where limits.lost_steps_max have been lost in a row.
        """
        planned = self._take_planned(plan)
        self._lost += 1
        if self._lost > self._limits.lost_steps_max:
            raise DeviceExhausted(f"{self._lost} steps in a row")
        self._meters.count_restored(planned.found_tokens)
        parked = lose_slots(planned, self._roster, self._memory, now)
        self._meters.parks += planned.parked + parked

    def check_rounds(self) -> None:
        """Choose rounds to compute once more, from now on."""
        self._checks.start()

    def take_replay(self) -> Replay | None:
        """A round to compute once more now, between two steps; None: none is due. Each once."""
        assert self._planned is None, f"step {self._steps} is not committed"
        return self._checks.take(self.spare_bytes, served=bool(self._roster))

    def replayed(self, replay: Replay, replayed: Replayed, seconds: float) -> None:
        """What came of one that was taken, and how long it took."""
        self._checks.told(replay, replayed, seconds)

    # Results.

    def _break(self, sequence: Sequence, now: float, why: str) -> None:
        """Its constraint cannot be kept: what this step drew for it counts nowhere."""
        self._fail(sequence, now, Verdict(Outcome.FAILED, Reason.BAD_CONSTRAINT, why))

    def _take_planned(self, plan: StepPlan) -> PlannedStep:
        planned = self._planned
        assert planned is not None and planned.plan is plan, f"step {plan.number} was not planned"
        self._planned = None
        return planned

    def _count_step(self, planned: PlannedStep, seconds: float) -> None:
        """What the step was made of, and what the policy learns from it."""
        self._meters.count_restored(planned.found_tokens)
        restored = [self._facts.restored_bytes(a.target, a.base) for a in planned.plan.admits]
        self._meters.page_in_bytes += sum(restored)
        self._meters.parks += planned.parked
        self._meters.count_step(planned.plan, self._depth.parked_rows)
        self._depth.observe_step(planned.shape, seconds)
        self._fairness.charge(planned.plan, planned.decoding, planned.prefilling, seconds)

    def _commit_round(
        self, sequence: Sequence, row: DecodeRow, decoded: Decoded, now: float
    ) -> None:
        assert decoded.drafted <= row.depth, f"{decoded} for {row}"
        if decoded.failure:
            self._break(sequence, now, decoded.failure)
            return
        self._depth.observe_row(sequence.drafting, decoded.drafted, decoded.accepted, row.forced)
        sequence.forced_drafts = decoded.forced
        emitted = sequence.reply.push_round(decoded)
        sequence.evaluated += emitted
        self._meters.count_round(decoded.drafted, min(emitted, decoded.accepted))
        self._meters.inter_token_latency.observe((now - sequence.emitted_at) / emitted, emitted)
        self._emit(sequence, decoded.tokens[:emitted], decoded.logprobs[:emitted], now)

    def _commit_slice(
        self, sequence: Sequence, piece: PrefillSlice, prefilled: Prefilled, now: float
    ) -> None:
        token, payload = prefilled.token, prefilled.payload
        first = piece.draws and not sequence.emitted
        assert (token is not None) == first, f"slot {piece.slot} drew {token}"
        assert payload is None or piece.capture, f"slot {piece.slot}: nobody asked for a payload"
        whole = piece.end == len(sequence.prefix)
        sequence.storing = payload is not None and self._memory.insert(
            sequence, payload, self._steps, turn_end=whole
        )
        sequence.evaluated = piece.end
        sequence.forced_drafts = prefilled.forced
        self._count_slice(sequence, piece, prefilled.prompt_logprobs)
        if prefilled.failure:
            self._break(sequence, now, prefilled.failure)
        elif token is not None:
            self._begin_reply(sequence, token, prefilled.logprobs, now)
        elif piece.draws:
            sequence.move(SequenceState.DECODE, now, "as far as it was")
        elif sequence.request.pin and (whole or not sequence.storing):
            self._pin(sequence, now)

    def _count_slice(
        self, sequence: Sequence, piece: PrefillSlice, logprobs: tuple[TokenLogprobs, ...]
    ) -> None:
        """Of what was computed for the second time nobody is told."""
        assert len(logprobs) == len(piece.scored), f"{len(logprobs)} scores: {sequence.tell()}"
        start, end = sequence.processed, min(piece.end, sequence.prompt_tokens)
        if start < end:
            self._meters.count_computed(start, end, sequence.causes)
            sequence.processed = end
            told = Progress(sequence.stream, sequence.cached, end, sequence.prompt_tokens, logprobs)
            self._effects.append(told)

    def _pin(self, sequence: Sequence, now: float) -> None:
        """All of its prompt was read, and nothing is drawn; or it cannot be kept any more."""
        pins, request = self._memory.pins, sequence.request
        pin = pins.make(request, sequence.lease, self._roster.accepted, self._steps, now)
        if pin is None:
            message, retry_s = "memory is too short to keep it now", self._door.retry_s
            why = Verdict(Outcome.FAILED, Reason.OUT_OF_MEMORY, message, retry_s)
            self._fail(sequence, now, why)
        else:
            self._roster.end(sequence, now, "pinned")
            self._effects.append(Pinned(sequence.id, pin))

    def _begin_reply(
        self, sequence: Sequence, token: int, logprobs: tuple[TokenLogprobs, ...], now: float
    ) -> None:
        sequence.move(SequenceState.DECODE, now, "first token")
        sequence.first_token_at = now
        if sequence.request.counts:
            self._meters.time_to_first_token.observe(now - sequence.submitted_at)
            self._meters.request_prefill.observe(now - sequence.admitted_at)
        self._roster.waiting.release(sequence.id)
        sequence.reply.push_first(token)
        self._emit(sequence, (token,), logprobs, now)

    def _emit(
        self,
        sequence: Sequence,
        tokens: tuple[int, ...],
        logprobs: tuple[TokenLogprobs, ...],
        now: float,
    ) -> None:
        """The step's one Delta of a sequence, and its end where the reply ended."""
        wanted = len(tokens) if sequence.request.top_logprobs else 0
        assert len(logprobs) == wanted, f"{len(logprobs)} logprobs, {wanted} due: {sequence.tell()}"
        reply, parts = sequence.reply, sequence.reply.parts
        sequence.emitted_at = now
        self._meters.generated_tokens += len(tokens)
        text, thinking, calls = parts.take_text(), parts.take_thinking(), parts.take_calls()
        if sequence.request.session is not None:
            calls = identified(calls, sequence.prompt_tokens, len(sequence.calls))
            sequence.calls += [(call.id, call.name) for call in calls]
        self._effects.append(Delta(sequence.stream, text, tokens, thinking, calls, logprobs))
        if reply.reason:
            self._reply_length.observe(sequence.emitted)
            usage = sequence.usage(now)
            if sequence.request.counts:
                self._meters.request_decode.observe(usage.decode_seconds)
                self._meters.request_duration.observe(now - sequence.submitted_at)
                self._meters.count_end(reply.reason.outcome)
            self._roster.end(sequence, now, reply.reason)
            told = Finished(sequence.stream, reply.reason, reply.stop_sequence, usage)
            self._sessions.settle(sequence, now, told)
            self._effects.append(told)
