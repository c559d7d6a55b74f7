"""The real core, runner and model on one thread, under a virtual clock: the engine's loop.

Everything that must hold at every step is checked at every step, whatever a test is about: the
core's own invariants, the offsets of the live caches, who has a slot, and the order of each stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sapwood.cache.geometry import ROW_TOKENS_MIN, row_tokens
from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.model.pair import Pair, model_facts
from sapwood.model.runner import Runner
from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.events import (
    Cancel,
    Delta,
    Drain,
    Effect,
    Failed,
    Finished,
    Pinned,
    Progress,
    Request,
    Submit,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.policy.depth import DepthPolicy
from sapwood.scheduler.result import StepLost, TokenLogprobs
from sapwood.scheduler.sampling import Sampling
from tests.system.oracle import Oracle, Verdict, check_usage, end_of

GIB = 1 << 30
GREEDY = Sampling()


def budget_bytes(
    pair: Pair, limits: Limits, slots: int, tokens_max: int, snapshot_tokens: int = 0
) -> int:
    """Room for `slots` live sequences of up to `tokens_max` tokens, and for as many stored."""
    model = model_facts(pair, limits.draft_depth_max)
    rows = 1 + (limits.draft_depth_max if model.has_drafter else 0)
    slot = model.live_bytes(tokens_max) + model.round_bytes(rows, tokens_max)
    stored = snapshot_tokens * (model.full_bytes_per_token + model.sliding_bytes_per_token)
    prefill = model.prefill_bytes(limits.prefill_tokens_max, tokens_max)
    late = model.late_bytes(slots * rows + limits.prefill_tokens_max)
    return model.weights_bytes + slots * slot + prefill + late + stored


@dataclass
class Stream:
    """What one client has received."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text: str = ""
    progress: list[Progress] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: Finished | Failed | Pinned | None = None

    @property
    def cached(self) -> int:
        return self.progress[0].cached

    @property
    def finished(self) -> Finished:
        assert isinstance(self.end, Finished), self.end
        return self.end

    def take(self, effect: Effect) -> None:
        assert self.end is None, f"R1: {effect} after {self.end}"
        match effect:
            case Progress():
                assert not self.tokens, "progress after the first delta"
                assert effect.cached < effect.processed <= effect.total == len(self.request.prompt)
                self.progress.append(effect)
                self.prompt_logprobs += effect.logprobs
            case Delta():
                if self.request.fork_of is None:
                    assert self.progress[-1].processed == len(self.request.prompt)
                self.tokens += effect.token_ids
                self.logprobs += effect.logprobs
                asked = bool(self.request.top_logprobs)
                assert len(effect.logprobs) == asked * len(effect.token_ids), "one for each id"
                self.text += effect.text
            case _:
                assert isinstance(effect, Finished | Failed | Pinned), f"{effect} to a stream"
                self.end = effect


class Stack:
    """Submit, cancel, step; `streams` holds what every client saw."""

    def __init__(
        self,
        pair: Pair,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        budget_bytes: int = 4 * GIB,
        before_step: Callable[[Stack], object] = lambda stack: None,
        check_steps: bool = True,
        row_tokens_min: int = ROW_TOKENS_MIN,
    ) -> None:
        """row_tokens_min: below the product's own, rows grow within replies of a few tokens."""
        self.pair, self.limits = pair, limits
        # The oracle knows text only, and a random model opens channels as it likes.
        self.facts = replace(
            model_facts(pair, limits.draft_depth_max),
            control_tokens=ControlTokens(),
            row_tokens_min=row_tokens_min,
        )
        self.ledger = Ledger(budget_bytes, self.facts.weights_bytes)
        self.tree = Tree(self.facts.window_tokens, limits.nodes_max(self.ledger.free))
        depth_max = limits.draft_depth_max if self.facts.has_drafter else 0
        self.core = Core(
            self.facts,
            limits,
            self.tree,
            self.ledger,
            pair.tokenizer.token_bytes,
            DepthPolicy(depth_max),
        )
        self.runner = Runner(pair, limits.slots_max, limits.draft_depth_max)
        self.runner.caches.rows.capacity_for = partial(row_tokens, tokens_min=row_tokens_min)
        self.now = 1000.0
        self.streams: list[Stream] = []
        self._before_step, self._check_steps = before_step, check_steps
        self._by_id: dict[int, Stream] = {}
        self._ids = itertools.count(1)

    def submit(self, prompt: Sequence[int], max_tokens: int = 16, **options: Any) -> Stream:
        """Greedy, past any EOS, unless `options` (fields of Request) say otherwise."""
        request = replace(
            Request(next(self._ids), b"root", tuple(prompt), max_tokens, Sampling()),
            **{"ignore_eos": True} | options,
        )
        stream = self._by_id[request.id] = Stream(request)
        self.streams.append(stream)
        self.core.handle(Submit(request), self.now)
        return stream

    def cancel(self, stream: Stream, reason: CancelReason = CancelReason.CANCELLED) -> None:
        self.core.handle(Cancel(stream.request.id, reason), self.now)
        self.core.check()
        self._deliver()

    def step(self) -> StepPlan | None:
        """One turn of the engine's loop; None where there was nothing for the device."""
        self._before_step(self)
        plan = self.core.plan(self.now)
        self.runner.make_copies(self.core.spare_bytes)
        if plan is None:
            self._deliver()
            return None
        try:
            ticket = self.runner.submit(plan)
            self._deliver()
            result = self.runner.wait(ticket)
        except StepLost:
            self._lose(plan)
            return plan
        # Steps that grow little with their tokens, so that drafts pay; tests know no other time.
        self.now += 0.02 + 0.0005 * plan.tokens
        self.core.commit(plan, result, self.now)
        self.runner.make_copies(self.core.spare_bytes)
        if self._check_steps:
            self.check_step()
        return plan

    def _lose(self, plan: StepPlan) -> None:
        assert not self.runner.caches.arrays, "live K/V of nobody"
        self.now += 0.02
        self.core.lose(plan, self.now)
        self.core.check()
        self._deliver()

    def run(self, steps_max: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(steps_max):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError(f"L2: still at work after {steps_max}: {self.core.stories()}")

    def generate(self, prompt: Sequence[int], max_tokens: int = 16, **options: Any) -> Stream:
        """Submit and run until everybody is done."""
        stream = self.submit(prompt, max_tokens, **options)
        self.run()
        return stream

    def close(self) -> None:
        """M3: drain, and find no lease, no slot and every byte where it was."""
        self.core.handle(Drain(), self.now)
        self.run()
        assert self.core.finished
        assert all(stream.end is not None for stream in self.streams), "R1"
        assert not self.runner.caches.arrays, "live K/V of nobody"
        assert self.tree.leased_bytes == 0 and not any(n.leases for n in self.tree.describe())
        assert self.ledger.held("live") == self.ledger.held("workspace") == 0
        self.core.close()
        assert self.ledger.free == self.ledger.budget_bytes - self.ledger.weights_bytes
        self.runner.close()

    def check(self, oracle: Oracle) -> list[Verdict]:
        """Judge every stream: its ids, its text, its end, its usage. Returns the verdicts."""
        return [v for stream in self.streams if (v := self._judge(stream, oracle)) is not None]

    def _judge(self, stream: Stream, oracle: Oracle) -> Verdict | None:
        request, tokens = stream.request, stream.tokens
        self._check_end(stream)
        if not tokens or not (request.sampling.greedy or request.sampling.seeded):
            return None
        verdict = oracle.judge(request.prompt, tokens, request.sampling)
        assert not verdict.faults, f"places {verdict.faults} of {request}: {tokens}"
        return verdict

    def _check_end(self, stream: Stream) -> None:
        request, tokens, end = stream.request, stream.tokens, stream.end
        token_bytes, eos = self.pair.tokenizer.token_bytes, self.facts.eos_token_ids
        expected = end_of(request, tokens, token_bytes, eos)
        if not isinstance(end, Finished):
            assert expected is None, f"{end} after a reply that was complete: {expected}"
            return
        assert expected is not None, f"{end} for {tokens}"
        assert (stream.text, end.reason, end.stop_sequence) == (
            expected.text,
            expected.reason,
            expected.stop_sequence,
        )
        check_usage(request, end.usage, len(tokens), stream.cached, end.reason)

    def _deliver(self) -> None:
        for effect in self.core.take_effects():
            self._by_id[effect.id].take(effect)

    def check_step(self) -> None:
        """L1, M1 and the tree's own; C1; R2: a slot is held exactly by who lives or just ended."""
        self.core.check()
        roster, caches = self.core._roster, self.runner.caches
        for sequence in roster.live.values():
            assert caches.offset(sequence.slot) == sequence.evaluated, f"C1: {sequence.tell()}"
            room = caches.rows.places[sequence.slot]
            assert sequence.demand.tokens <= room.base + room.capacity, (
                f"{room} of {sequence.tell()}"
            )
        holders = {s.slot for s in (*roster.live.values(), *roster.leaving)}
        held = {slot for slot in range(self.limits.slots_max) if caches.holds(slot)}
        assert held == holders, f"R2: slots {held} are held, {holders} should be"
