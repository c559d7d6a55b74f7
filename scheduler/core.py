"""The pure core: events in, step plans and effects out. The engine's loop is

    for event in inbox: core.handle(event, now)
    plan = core.plan(now)               # captures, releases, admits, one forward
    effects = core.take_effects()       # leave while the device works
    core.commit(plan, result, now)      # only where there was a plan

- Sessions, the queue and pending effects have this one writer; tree and ledger move in Memory.
- plan() is a function of the events, results and times that came before, nothing else (L8).
- A session that ends is DONE at once and tells its end at once; its slot leaves with the next
  plan, which first captures what the tree lacks of it.
- Every DECODE session is in every step (L3); plan() is None only when no session has a slot or
  waits for one.
- Order inside plan(): whatever may evict comes before the first path is taken out of the tree.
- A step's duration for the depth policy is commit's now - plan's now: submit, emission and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from cache.ledger import Ledger
from cache.tree import Tree
from scheduler import stats
from scheduler.cost import StepShape
from scheduler.depth import DepthPolicy, Row
from scheduler.events import (
    Cancel,
    Delta,
    Drain,
    Effect,
    Event,
    Failed,
    Finished,
    Progress,
    Request,
    Submit,
)
from scheduler.limits import Limits
from scheduler.memory import Memory
from scheduler.plan import (
    Admit,
    Capture,
    Decode,
    Decoded,
    ModelFacts,
    Prefill,
    Prefilled,
    StepPlan,
    StepResult,
)
from scheduler.policy import prefill_budget, prefill_shares, retry_after_s
from scheduler.session import Session, State
from scheduler.stats import Meters, Stats
from scheduler.waiting import Waiting

# What a Cancel's reason becomes: status or reason of api.md, and a message for the client.
_CANCELLED = {
    stats.CANCELLED: ("CANCELLED", "cancelled"),
    stats.DEADLINE: ("DEADLINE_EXCEEDED", "the deadline passed"),
    stats.FAILED: ("SLOW_READER", "the client read too slowly"),
}


@dataclass(frozen=True, slots=True)
class _Flight:
    """A plan on the device, and whose its parts are, in plan order."""

    plan: StepPlan
    planned_at: float
    captured: tuple[Session, ...]
    admitted: tuple[Session, ...]
    decoding: tuple[Session, ...]
    prefilling: tuple[Session, ...]


class Core:
    """Decides who computes what in each step. Single-threaded, deterministic, without I/O."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        tree: Tree,
        ledger: Ledger,
        token_bytes: Sequence[bytes],
        depth: DepthPolicy | None = None,
    ) -> None:
        """`token_bytes[id]` are a token's bytes, b"" for specials, for the whole vocabulary.

        The core owns tree and ledger from here on. `depth` learns across sessions; None makes a
        fresh one that fits the model.
        """
        assert len(token_bytes) == facts.vocabulary, f"{len(token_bytes)} of {facts.vocabulary}"
        depth_max = limits.draft_depth_max if facts.has_drafter else 0
        self._facts = facts
        self._limits = limits
        self._tree = tree
        self._ledger = ledger
        self._token_bytes = token_bytes
        self._depth = depth or DepthPolicy(depth_max)
        assert self._depth.depth_max == depth_max, f"{self._depth.depth_max} != {depth_max}"
        self._memory = Memory(facts, limits, tree, ledger)
        self._waiting = Waiting(limits, self._memory)
        self._live: dict[int, Session] = {}  # all and only PREFILL and DECODE, as admitted
        self._leaving: list[Session] = []  # DONE, with a slot until the next plan
        self._storing: list[Session] = []  # DONE, with a lease until their capture is committed
        self._free_slots = list(range(limits.slots_max))
        heapify(self._free_slots)
        self._effects: list[Effect] = []
        self._meters = Meters(depth_max)
        self._flight: _Flight | None = None
        self._steps = 0
        self._draining = False

    # What the engine asks.

    @property
    def has_work(self) -> bool:
        """Whether the loop must go on without waiting for an event."""
        return bool(self._live or self._waiting or self._leaving or self._effects or self._flight)

    @property
    def finished(self) -> bool:
        """After Drain, when every session has ended, left its slot, and told so."""
        return self._draining and not self.has_work

    def take_effects(self) -> tuple[Effect, ...]:
        """What happened since the last call, in order; each effect is handed out once."""
        effects = tuple(self._effects)
        self._effects.clear()
        return effects

    def handle(self, event: Event, now: float) -> None:
        """Take in one event, between a commit and the next plan."""
        assert self._flight is None, f"{type(event).__name__} while step {self._steps} runs"
        match event:
            case Submit(request):
                self._submit(request, now)
            case Cancel(id, reason):
                self._cancel(id, reason, now)
            case Drain():
                self._drain(now)

    # Ends that come from outside the device.

    def _submit(self, request: Request, now: float) -> None:
        if self._find(request.id) is not None:
            return
        if self._draining:
            self._refuse(request.id, "DRAINING", "the daemon is shutting down")
        elif not self._memory.servable(len(request.prompt) + request.max_tokens):
            self._refuse(
                request.id, "OUT_OF_MEMORY", "prompt and max_tokens need more than all the memory"
            )
        elif self._waiting.full:
            message = f"{len(self._waiting)} requests are waiting already"
            self._refuse(request.id, "QUEUE_FULL", message, self._retry_after())
        else:
            self._waiting.add(self._new_session(request, now))

    def _new_session(self, request: Request, now: float) -> Session:
        assert request.prompt and request.max_tokens > 0, f"request {request.id} asks for nothing"
        drafting = self._depth.drafting()
        session = Session(request, self._facts, self._token_bytes, drafting, now)
        session.queue_expires_at = now + self._limits.queue_s_max
        session.expires_at = now + self._limits.request_s_max
        if request.deadline is not None:
            session.expires_at = min(session.expires_at, request.deadline)
        return session

    def _refuse(
        self, id: int, reason: str, message: str, retry_after_s: float | None = None
    ) -> None:
        self._meters.requests[stats.REJECTED] += 1
        self._effects.append(Failed(id, reason, message, retry_after_s))

    def _cancel(self, id: int, reason: str, now: float) -> None:
        session = self._find(id)
        if session is not None:
            status, message = _CANCELLED[reason]
            self._fail(session, reason, status, message, now)

    def _drain(self, now: float) -> None:
        self._draining = True
        for session in list(self._waiting):
            self._fail(
                session, stats.REJECTED, "DRAINING", "the daemon is shutting down", now
            )

    def _expire(self, now: float) -> None:
        expired = [s for s in self._waiting if now >= s.expires_at]
        expired += [s for s in self._live.values() if now >= s.expires_at]
        for session in expired:
            self._fail(
                session, stats.DEADLINE, "DEADLINE_EXCEEDED", "the request took too long", now
            )
        for session in [s for s in self._waiting if now >= s.queue_expires_at]:
            message = f"no place was free for {self._limits.queue_s_max:g} s"
            self._fail(
                session, stats.REJECTED, "QUEUE_FULL", message, now, self._retry_after()
            )

    def _fail(
        self,
        session: Session,
        outcome: str,
        reason: str,
        message: str,
        now: float,
        retry_after_s: float | None = None,
    ) -> None:
        self._end(session, outcome, now)
        self._effects.append(Failed(session.id, reason, message, retry_after_s))

    def _end(self, session: Session, outcome: str, now: float) -> None:
        """The one edge to DONE. The slot, if there is one, leaves with the next plan."""
        if session.state is State.QUEUED:
            self._waiting.remove(session)
        else:
            del self._live[session.id]
            self._leaving.append(session)
        session.move(State.DONE, now, outcome)
        self._meters.requests[outcome] += 1

    def _find(self, id: int) -> Session | None:
        """The session, unless it is DONE or never was: late and duplicate events are no-ops."""
        return self._live.get(id) or self._waiting.get(id)

    def _retry_after(self) -> float:
        duration = self._meters.request_duration.view().mean
        return retry_after_s(
            len(self._waiting), self._limits.slots_max, duration, self._limits.queue_s_max
        )

    # Planning.

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing for the device."""
        assert self._flight is None, f"step {self._steps} is not committed"
        self._expire(now)
        step = self._steps + 1
        releases = tuple(session.slot for session in self._leaving)
        captured, captures = self._plan_leaving(step)
        admitted = self._admit(now, step)
        decoding = self._in(State.DECODE)
        decodes = self._plan_decodes(decoding)
        prefilling, shares = self._share_prefill(decodes)
        captures_slice = self._promise_slices(prefilling, shares, step)
        admits = tuple(self._restore(session, step) for session in admitted)
        prefills = tuple(
            self._slice(session, share, capture, step)
            for session, share, capture in zip(prefilling, shares, captures_slice, strict=True)
        )
        if not (releases or decodes or prefills):
            assert not (self._live or self._waiting), "sessions wait for nothing"
            return None
        plan = StepPlan(step, captures, releases, admits, decodes, prefills)
        self._steps = step
        self._flight = _Flight(
            plan, now, captured, tuple(admitted), decoding, prefilling
        )
        return plan

    def _in(self, state: State) -> tuple[Session, ...]:
        return tuple(session for session in self._live.values() if session.state is state)

    def _plan_leaving(self, step: int) -> tuple[tuple[Session, ...], tuple[Capture, ...]]:
        """Free the slots of ended sessions, after copying out what the tree lacks of them."""
        captured, captures = [], []
        for session in self._leaving:
            start, end = session.stored, session.storable
            sliding = min(end - start, self._memory.ring_tokens())
            if start < end and self._memory.promise(end - start, sliding, step):
                captured.append(session)
                captures.append(Capture(session.slot, start, end))
            else:
                self._memory.forget(session, step)
            self._memory.free_slot(session)
            heappush(self._free_slots, session.slot)
        self._leaving.clear()
        self._storing.extend(captured)
        return tuple(captured), tuple(captures)

    def _admit(self, now: float, step: int) -> list[Session]:
        admitted: list[Session] = []
        while self._free_slots and len(self._waiting):
            session = self._next(step)
            if session is None:
                break
            self._waiting.take(session)
            session.move(State.PREFILL, now, "admitted")
            session.slot = heappop(self._free_slots)
            session.admitted_at = now
            session.storing = session.lease is not None
            session.cached = session.processed = session.stored
            session.served_step = step
            self._live[session.id] = session
            admitted.append(session)
            self._meters.request_queue.observe(now - session.submitted_at)
        return admitted

    def _next(self, step: int) -> Session | None:
        for session in self._waiting.candidates(self._in(State.PREFILL)):
            if self._memory.admit(session, step):
                return session
        return None

    def _plan_decodes(self, decoding: Sequence[Session]) -> tuple[Decode, ...]:
        rows = [self._row(session) for session in decoding]
        rests = sum(
            session.prompt_tokens - session.processed for session in self._in(State.PREFILL)
        )
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

    def _share_prefill(
        self, decodes: Sequence[Decode]
    ) -> tuple[tuple[Session, ...], tuple[int, ...]]:
        """Who has a slice in this step, and of how many tokens."""
        sessions = self._in(State.PREFILL)
        limits = self._limits
        shares = prefill_shares(
            [session.prompt_tokens - session.processed for session in sessions],
            [session.served_step for session in sessions],
            prefill_budget(sum(d.depth + 1 for d in decodes), limits.prefill_tokens_max),
            limits.prefill_slices_max,
        )
        given = [(session, n) for session, n in zip(sessions, shares, strict=True) if n]
        return tuple(session for session, _ in given), tuple(n for _, n in given)

    def _promise_slices(
        self, prefilling: Sequence[Session], shares: Sequence[int], step: int
    ) -> tuple[bool, ...]:
        """Whether each slice is captured. After one that is not, the rest of a prompt has no place
        to hang on in the tree before the session ends."""
        for session, share in zip(prefilling, shares, strict=True):
            session.storing = session.storing and self._memory.promise(share, share, step)
        return tuple(session.storing for session in prefilling)

    def _restore(self, session: Session, step: int) -> Admit:
        """Fix what the session restores, now that nothing of this plan evicts any more."""
        path = self._memory.settle(session, step)
        session.cached = session.processed = session.stored
        session.causes = _causes(session)
        return Admit(
            session.slot, session.cached, path, session.request.sampling, session.tokens_max
        )

    def _slice(self, session: Session, share: int, capture: bool, step: int) -> Prefill:
        start, end = session.processed, session.processed + share
        session.served_step = step
        tokens = session.request.prompt[start:end]
        return Prefill(session.slot, start, tokens, end == session.prompt_tokens, capture)

    # Committing.

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Take in what the device answered to `plan`. Takes the result's payloads."""
        flight = self._flight
        assert flight is not None and flight.plan is plan, f"step {plan.number} was not planned"
        self._flight = None
        self._memory.end_promises()
        for session, payload in zip(flight.captured, result.captured, strict=True):
            if payload is not None:
                self._memory.insert(session, payload, plan.number, turn_end=True)
            self._memory.forget(session, plan.number)
        self._storing.clear()
        for session in flight.admitted:
            self._meters.count_restored(session.cached)
        self._learn(flight, now)
        for session, row, decoded in zip(
            flight.decoding, plan.decodes, result.decoded, strict=True
        ):
            self._commit_round(session, row, decoded, now)
        for session, piece, prefilled in zip(
            flight.prefilling, plan.prefills, result.prefilled, strict=True
        ):
            self._commit_slice(session, piece, prefilled, plan.number, now)
        self._meters.parked_rows = self._depth.parked_rows

    def _learn(self, flight: _Flight, now: float) -> None:
        """Steps that also copied a prefix in or out tell nothing about rows and drafts."""
        plan = flight.plan
        rows = len(plan.decodes)
        if plan.tokens:
            self._meters.rows_per_step.observe(rows + len(plan.prefills))
            self._meters.tokens_per_step.observe(plan.tokens)
        if plan.captures or plan.admits:
            return
        depths = [row.depth for row in plan.decodes]
        shape = StepShape(
            rows=rows,
            drafted=sum(depths),
            iterations=max(depths, default=0),
            context_tokens=sum(row.start for row in plan.decodes),
            prefill_tokens=plan.tokens - rows - sum(depths),
        )
        self._depth.observe_step(shape, now - flight.planned_at)

    def _commit_round(self, session: Session, row: Decode, decoded: Decoded, now: float) -> None:
        assert decoded.drafted <= row.depth, f"{decoded} for {row}"
        self._depth.observe_row(session.drafting, decoded.drafted, decoded.accepted)
        emitted = session.reply.push_round(decoded)
        self._meters.count_round(decoded.drafted, min(emitted, decoded.accepted))
        self._meters.inter_token_latency.observe((now - session.emitted_at) / emitted, emitted)
        self._emit(session, decoded.tokens[:emitted], now)

    def _commit_slice(
        self, session: Session, piece: Prefill, prefilled: Prefilled, step: int, now: float
    ) -> None:
        assert (prefilled.token is not None) == piece.draws, f"{piece.slot} draws {piece.draws}"
        assert prefilled.payload is None or piece.capture, f"a payload nobody asked for: {piece}"
        if prefilled.payload is not None:
            self._memory.insert(session, prefilled.payload, step, turn_end=piece.draws)
        session.storing = prefilled.payload is not None
        session.processed = piece.end
        self._meters.count_computed(piece.start, piece.end, session.causes)
        self._effects.append(
            Progress(session.id, session.cached, session.processed, session.prompt_tokens)
        )
        if prefilled.token is not None:
            self._begin_reply(session, prefilled.token, now)

    def _begin_reply(self, session: Session, token: int, now: float) -> None:
        session.move(State.DECODE, now, "first token")
        session.first_token_at = now
        self._meters.time_to_first_token.observe(now - session.submitted_at)
        self._meters.request_prefill.observe(now - session.admitted_at)
        session.reply.push_first(token)
        self._emit(session, (token,), now)

    def _emit(self, session: Session, tokens: tuple[int, ...], now: float) -> None:
        """The step's one Delta of a session, and its end if the reply ended."""
        reply = session.reply
        session.emitted_at = now
        self._meters.generated_tokens += len(tokens)
        self._effects.append(Delta(session.id, reply.take_text(), tokens))
        if reply.reason:
            usage = session.usage(now)
            self._meters.request_decode.observe(usage.decode_seconds)
            self._meters.request_duration.observe(now - session.submitted_at)
            self._end(session, reply.reason, now)
            self._effects.append(Finished(session.id, reply.reason, reply.stop_sequence, usage))

    # Looking in.

    def stats(self) -> Stats:
        """All counts of this moment; cheap enough for every step."""
        meters, tree = self._meters, self._tree
        return Stats(
            steps=self._steps,
            time_to_first_token=meters.time_to_first_token.view(),
            inter_token_latency=meters.inter_token_latency.view(),
            request_queue=meters.request_queue.view(),
            request_prefill=meters.request_prefill.view(),
            request_decode=meters.request_decode.view(),
            request_duration=meters.request_duration.view(),
            rows_per_step=meters.rows_per_step.view(),
            tokens_per_step=meters.tokens_per_step.view(),
            draft_depth=meters.draft_depth.view(),
            requests=dict(meters.requests),
            requests_running=len(self._live),
            requests_waiting=len(self._waiting),
            prompt_tokens=meters.prompt_tokens,
            generated_tokens=meters.generated_tokens,
            prefix_cached_tokens=meters.prefix_cached_tokens,
            prefix_recomputed_tokens=dict(meters.prefix_recomputed_tokens),
            draft_rounds=meters.draft_rounds,
            draft_tokens=tuple(meters.draft_tokens),
            accepted_tokens=tuple(meters.accepted_tokens),
            parked_rows=meters.parked_rows,
            tree_nodes=tree.nodes,
            tree_depth_tokens=tree.depth_tokens,
            tree_full_bytes=tree.full_bytes,
            tree_sliding_bytes=tree.sliding_bytes,
            tree_leased_bytes=tree.leased_bytes,
            tree_evictions={str(cause): count for cause, count in tree.evictions.items()},
            tree_splits=tree.splits,
            tree_merges=tree.merges,
            memory=self._ledger.view(),
        )

    def check(self) -> None:
        """Assert L1, M1 and what the session's range map says. O(sessions + tree)."""
        for session in self._waiting:
            assert session.state is State.QUEUED and session.slot < 0, session.tell()
        for session in self._live.values():
            assert session.state in (State.PREFILL, State.DECODE), session.tell()
            assert session.stored <= session.evaluated, session.tell()
            assert (session.state is State.DECODE) == bool(session.emitted), session.tell()
        for session in self._leaving + self._storing:
            assert session.state is State.DONE, session.tell()
        holders = [*self._live.values(), *self._leaving]
        slots = sorted([session.slot for session in holders] + self._free_slots)
        assert slots == list(range(self._limits.slots_max)), f"L1: slots {slots}"
        assert len(self._waiting) <= self._limits.queued_max
        self._memory.check(len(holders))

    def stories(self) -> list[str]:
        """What every session that is not gone yet went through, without any of its text."""
        sessions = [*self._waiting, *self._live.values(), *self._leaving, *self._storing]
        return [session.tell() for session in sessions]


def _causes(session: Session) -> tuple[tuple[str, int], ...]:
    """Why the prompt has to be computed from `cached` on: (cause, where it ends), ascending."""
    match, end = session.match, session.prompt_tokens
    assert match is not None
    if match.evicted:
        rest = stats.EVICTED
    else:
        rest = stats.DIVERGED if match.matched else stats.COLD
    # The one token that is evaluated again in any case is nobody's loss, so it counts to the rest.
    thinned_end = min(match.matched, end - 1)
    return (
        (stats.EVICTED, match.tokens),  # given up for memory between match and restore
        (stats.THINNED, thinned_end),
        (rest, end),
    )
