"""The pure core: commands in, step plans and effects out. The engine's loop is

    for command in inbox: core.handle(command, now)
    plan = core.plan(now)               # captures, releases, admits, one forward
    effects = core.take_effects()       # leave before the plan is carried out
    core.commit(plan, result, now)      # only where there was a plan

- Sequences, the queue and pending effects have this one writer; tree and ledger move in
  DeviceMemory. What they are, and what may be asked of them: state.py.
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
from sapwood.scheduler.core.door import SHUTTING_DOWN, Door, Verdict
from sapwood.scheduler.core.fairness import Fairness
from sapwood.scheduler.core.planner import PlannedStep, Planner
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.core.slicing import Slicing
from sapwood.scheduler.core.state import CoreState
from sapwood.scheduler.disk import DiskFolder
from sapwood.scheduler.events import (
    Cancel,
    Clear,
    Command,
    Delta,
    Drain,
    Failed,
    Finished,
    Pinned,
    Progress,
    Request,
    Submit,
    Unpin,
    Unpinned,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.plan import DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.policy.depth import DepthPolicy
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.result import Decoded, DeviceExhausted, Prefilled, StepResult, TokenLogprobs


class Core(CoreState):
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
        assert len(token_bytes) == facts.vocabulary, f"{len(token_bytes)} of {facts.vocabulary}"
        depth_max = limits.draft_depth_max if facts.has_drafter else 0
        self._depth = depth or DepthPolicy(depth_max)
        assert self._depth.depth_max == depth_max, f"{self._depth.depth_max} != {depth_max}"
        super().__init__(facts, limits, tree, ledger, depth_max)
        self._token_bytes = token_bytes
        self._fairness = Fairness(limits, self._roster)
        parts = limits, self._roster, self._memory
        slicing = Slicing(limits, self._roster, self._depth, self._fairness)
        if folder is not None:
            self._memory.use_disk(folder, slicing.reading_s)
        self._planner = Planner(*parts, self._depth, self._fairness, slicing)
        self._door = Door(*parts, self._meters, self._fairness, slicing)
        self._planned: PlannedStep | None = None
        self._lost = 0  # of the newest steps

    def handle(self, command: Command, now: float) -> None:
        """Take in one command, between a commit and the next plan."""
        assert self._planned is None, f"{type(command).__name__} while step {self._steps} runs"
        self._memory.pins.expire(self._step, now)
        self._waits_for_disk = False
        match command:
            case Submit(request):
                self._submit(request, now)
            case Cancel(id, reason):
                self._cancel(id, reason, now)
            case Unpin(id, name):
                self._effects.append(Unpinned(id, self._memory.pins.unpin(name, self._step)))
            case Clear():
                self._clear(command)
            case Drain():
                self._drain(now)
            case _:
                self._effects += self._memory.disk.take(command, self._step)

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing for the device."""
        assert self._planned is None, f"step {self._steps} is not committed"
        self._memory.pins.expire(self._step, now)
        for sequence, verdict in self._door.expired(now):
            self._fail(sequence, now, verdict)
        self._planned = self._planner.plan(self._steps + 1, now)
        if self._planned is None:
            self._waits_for_disk = self._memory.disk.is_reading
            return None
        self._steps += 1
        for sequence in self._planned.admitted:
            if not sequence.parks and sequence.request.counts:
                self._meters.request_queue.observe(now - sequence.submitted_at)
        return self._planned.plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Take in what the device answered to `plan`. Takes the result's payloads."""
        planned = self._take_planned(plan)
        self._lost = 0
        # Ends all promises, so slices come after it.
        store_captures(planned, result, self._roster, self._memory)
        self._count_step(planned, now - planned.planned_at)
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

    # Commands.

    def _submit(self, request: Request, now: float) -> None:
        if self._roster.find(request.id) is not None:
            return
        rows, entered = request.rows, list[Sequence]()
        for row in rows:
            sequence = self._new_sequence(row, now)
            refusal = SHUTTING_DOWN if self._draining else self._door.refusal(sequence, now)
            if refusal is not None:
                self._turn_away(entered, rows[len(entered) :], refusal, now)
                return
            for displaced, verdict in self._door.displaced(row):
                self._fail(displaced, now, verdict)
            self._roster.waiting.add(sequence)
            entered.append(sequence)

    def _turn_away(
        self, entered: list[Sequence], rest: abc.Sequence[Request], why: Verdict, now: float
    ) -> None:
        """One of a request's rows is refused: so are all."""
        for sequence in entered:
            self._fail(sequence, now, why)
        for row in rest:
            self._tell_end(row, why)

    def _new_sequence(self, request: Request, now: float) -> Sequence:
        assert request.prompt and request.max_tokens > 0, f"request {request.id} asks for nothing"
        assert request.weight > 0, f"request {request.id} weighs nothing"
        drafting = self._depth.drafting()
        sequence = Sequence(request, self._facts, self._token_bytes, drafting, now)
        sequence.queue_expires_at = now + self._limits.queue_s_max
        sequence.expires_at = now + self._limits.request_s_max
        if request.deadline is not None:
            sequence.expires_at = min(sequence.expires_at, request.deadline)
        return sequence

    def _cancel(self, id: int, why: CancelReason, now: float) -> None:
        """A late or duplicate cancel finds nobody and is a no-op."""
        sequence = self._roster.find(id)
        if sequence is not None:
            self._fail(sequence, now, Verdict(why.outcome, why.reason, why.message))

    def _clear(self, order: Clear) -> None:
        """Of who reads from disk nothing may come back; who asked hears when the files are gone."""
        memory = self._memory
        memory.disk.stop_reading(self._step)
        cleared = memory.pins.clear(order, self._roster.holders)
        self._effects += memory.disk.clear(order, cleared)

    def _drain(self, now: float) -> None:
        self._draining = True
        for sequence in self._roster.waiting.queued:
            self._fail(sequence, now, SHUTTING_DOWN)

    def _fail(self, sequence: Sequence, now: float, verdict: Verdict) -> None:
        self._roster.end(sequence, now, verdict.outcome)
        self._memory.pins.give_up(sequence.id)
        self._memory.disk.give_up(sequence.id, self._step)
        self._tell_end(sequence.request, verdict)

    def _tell_end(self, request: Request, verdict: Verdict) -> None:
        if request.counts:
            self._meters.count_end(verdict.outcome, verdict.reason)
        told = Failed(request.id, verdict.reason, verdict.message, verdict.retry_after_s)
        self._effects.append(told)

    def _break(self, sequence: Sequence, now: float, why: str) -> None:
        """Its constraint cannot be kept: what this step drew for it counts nowhere."""
        self._fail(sequence, now, Verdict(Outcome.FAILED, Reason.BAD_CONSTRAINT, why))

    # Results.

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
        self._depth.observe_row(sequence.drafting, decoded.drafted, decoded.accepted)
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
            told = Progress(sequence.id, sequence.cached, end, sequence.prompt_tokens, logprobs)
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
        self._effects.append(Delta(sequence.id, text, tokens, thinking, calls, logprobs))
        if reply.reason:
            self._reply_length.observe(sequence.emitted)
            usage = sequence.usage(now)
            if sequence.request.counts:
                self._meters.request_decode.observe(usage.decode_seconds)
                self._meters.request_duration.observe(now - sequence.submitted_at)
                self._meters.count_end(reply.reason.outcome)
            self._roster.end(sequence, now, reply.reason)
            self._effects.append(Finished(sequence.id, reply.reason, reply.stop_sequence, usage))
