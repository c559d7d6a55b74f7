"""A whole core on a fake device under a virtual clock: the engine's loop as tests drive it.

Every effect is checked as it comes: order, exactly one end, progress before the first delta, ids
and text against the naive reference, usage against what was seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.disk import DiskFolder
from sapwood.scheduler.events import (
    Cancel,
    Clear,
    Cleared,
    Command,
    Delta,
    Drain,
    Effect,
    Failed,
    Finished,
    Fork,
    Pinned,
    PinTerms,
    Progress,
    Request,
    Resumed,
    Submit,
    Unpin,
    Unpinned,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.policy.depth import DepthPolicy
from sapwood.scheduler.result import StepLost
from sapwood.scheduler.sampling import Sampling
from sapwood.scheduler.session_events import SessionTold
from tests.fakes import toy_logprobs
from tests.scheduler.computed_again import ComputedAgain
from tests.scheduler.fake_device import TOKEN_BYTES, FakeDevice, toy_facts
from tests.scheduler.reference import expected_reply

ROOMY = 10**7

SMALL = Limits(slots_max=2, prefill_tokens_max=16, share_tokens_min=8, queued_max=2)


@dataclass
class Stream:
    """What one client has received."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    progress: list[Progress] = field(default_factory=list)
    end: Finished | Failed | Pinned | None = None
    deltas_by_step: dict[int, int] = field(default_factory=dict)

    def take(self, effect: Effect, step: int) -> None:
        assert self.end is None, f"R1: {effect} after {self.end}"
        if isinstance(effect, Progress):
            self._take_progress(effect)
        elif isinstance(effect, Resumed):
            self._take_resumed(effect)
        elif isinstance(effect, Delta):
            if self.request.fork_of is None:
                assert self.progress, "progress comes before the first delta"
                assert self.progress[-1].processed == len(self.request.prompt)
            assert effect.token_ids, "a delta without ids"
            assert self.deltas_by_step.setdefault(step, 0) == 0, "two deltas in one step"
            self.deltas_by_step[step] += 1
            self.tokens += effect.token_ids
            self.text += effect.text
            told = toy_logprobs(effect.token_ids, self.request.top_logprobs)
            assert effect.logprobs == told, "each id's own, in its own delta"
            assert len(self.tokens) <= self.request.max_tokens, "S3"
        elif isinstance(effect, Pinned):
            self._check_pin(effect)
            self.end = effect
        else:
            assert isinstance(effect, Finished | Failed), f"{effect} to a stream"
            self.end = effect
            self._check_end()

    def _take_resumed(self, effect: Resumed) -> None:
        """N3: what was emitted and this client has not got yet."""
        self.progress = [] if effect.read is None else [effect.read]
        for delta in effect.deltas:
            if delta is not None:
                assert self.progress[-1].processed == len(self.request.prompt), f"N3: {delta}"
                self.tokens += delta.token_ids
                self.text += delta.text

    def _take_progress(self, effect: Progress) -> None:
        assert not self.tokens, "progress after the first delta"
        assert self.request.fork_of is None, "its leader tells of the prompt"
        assert effect.total == len(self.request.prompt)
        assert effect.cached < effect.processed <= effect.total
        if self.progress:
            assert effect.cached >= self.progress[-1].cached
            assert effect.processed > self.progress[-1].processed
            seen = self.progress[-1].processed + 1
        else:
            seen = 1
        asked, prompt = self.request.prompt_logprobs, self.request.prompt
        told = toy_logprobs(prompt[seen : effect.processed + 1], asked)
        assert effect.logprobs == told, "each prompt token's but the first's, once"
        assert not asked or not effect.cached, "what is scored is read"
        self.progress.append(effect)

    def _check_pin(self, effect: Pinned) -> None:
        """R1: it is told of once all of it was read, and nothing was drawn."""
        request, pin = self.request, effect.pin
        assert request.pin is not None and pin.name == request.pin.name, f"{effect}"
        assert pin.tokens == len(request.prompt) == self.progress[-1].processed, f"{effect}"
        assert not self.tokens and pin.size > 0, f"{effect}"

    def _check_end(self) -> None:
        """S4 and the usage equations; a reply cut short is a beginning of the reference."""
        expected = expected_reply(self.request)
        if isinstance(self.end, Failed):
            assert tuple(self.tokens) == expected.tokens[: len(self.tokens)]
            assert expected.text.startswith(self.text)
            return
        assert isinstance(self.end, Finished)
        assert tuple(self.tokens) == expected.tokens, "S4: other tokens than alone"
        assert self.text == expected.text
        assert (self.end.reason, self.end.stop_sequence) == (
            expected.reason,
            expected.stop_sequence,
        )
        usage = self.end.usage
        if self.request.fork_of is None:
            assert usage.prompt_tokens == len(self.request.prompt)
            assert usage.cached_tokens == self.progress[-1].cached < usage.prompt_tokens
        else:
            told = usage.prompt_tokens, usage.cached_tokens, usage.prefill_seconds
            assert told == (0, 0, 0.0), "the prompt stands in its leader's usage"
        assert usage.completion_tokens == len(self.tokens)
        produced = 1 + usage.decode_steps + usage.accepted_tokens
        assert usage.completion_tokens in (produced, produced - 1)
        if self.end.reason == "length":
            assert usage.completion_tokens == produced
        assert 0 <= usage.accepted_tokens <= usage.draft_tokens, "S3"
        assert usage.rounds <= min(usage.decode_steps, usage.draft_tokens)
        assert min(usage.queue_seconds, usage.prefill_seconds, usage.decode_seconds) >= 0


class House(ComputedAgain):
    """Submit, cancel, step; `streams` holds what every client saw."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        facts: ModelFacts | None = None,
        budget_bytes: int = ROOMY,
        quality: float = 0.7,
        depth: DepthPolicy | None = None,
        ledger: Ledger | None = None,
        device: FakeDevice | None = None,
        tree: Tree | None = None,
        folder: DiskFolder | None = None,
    ) -> None:
        self.limits = limits or Limits(slots_max=4, prefill_tokens_max=32)
        self.facts = facts or toy_facts(depth_max=self.limits.draft_depth_max)
        self.ledger = ledger or Ledger(budget_bytes, self.facts.weights_bytes)
        nodes_max = self.limits.nodes_max(self.ledger.free)
        self.tree = tree or Tree(self.facts.window_tokens, nodes_max)
        made_of = self.facts, self.limits, self.tree, self.ledger, TOKEN_BYTES, depth
        self.core = Core(*made_of, folder)
        self.device = device or FakeDevice(self.facts, self.limits, quality)
        self.now = 1000.0
        self.streams: dict[int, Stream] = {}
        self.plans: list[StepPlan] = []
        self.lost_steps = 0
        self.stimuli: list[tuple[str, float, object]] = []
        self.answers: list[Unpinned | Cleared | SessionTold | Failed] = []
        self.ids = itertools.count(1)

    def submit(self, prompt: tuple[int, ...], max_tokens: int = 8, **options: object) -> Stream:
        """`forks` among the options: how many further replies; `rows` has their streams."""
        forks = options.pop("forks", 0)
        assert isinstance(forks, int), forks
        request = Request(
            id=next(self.ids),
            root=b"root",
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=Sampling(),
            forks=tuple(Fork(next(self.ids), 1000 + n) for n in range(forks)),
        )
        request = replace(request, **options)  # type: ignore[arg-type]
        for row in request.rows:
            self.streams[row.id] = Stream(row)
        self.handle(Submit(request))
        return self.streams[request.id]

    def rows(self, stream: Stream) -> list[Stream]:
        """The streams of all replies to a request, its own first."""
        return [self.streams[row.id] for row in stream.request.rows]

    def pin(
        self,
        prompt: tuple[int, ...],
        ttl_s: float | None = None,
        bytes_max: int | None = None,
        public: bool = False,
        **options: object,
    ) -> Stream:
        """Named after the stream's request."""
        name = f"pin {len(self.streams)}"
        return self.submit(prompt, 1, pin=PinTerms(name, ttl_s, bytes_max, public), **options)

    def unpin(self, stream: Stream) -> bool:
        """Whether it was pinned still."""
        assert stream.request.pin is not None
        self.handle(Unpin(next(self.ids), stream.request.pin.name))
        answer = self.answered()
        assert isinstance(answer, Unpinned)
        return answer.found

    def clear(self, tokens: tuple[int, ...] = (), root: bytes | None = None) -> Cleared:
        """What begins with `tokens`, or lies under a root."""
        answer = self.order(Clear(next(self.ids), tokens, root))
        assert isinstance(answer, Cleared)
        return answer

    def order(self, command: Command) -> Unpinned | Cleared | SessionTold | Failed:
        """What a command is told."""
        self.handle(command)
        return self.answered()

    def answered(self) -> Unpinned | Cleared | SessionTold | Failed:
        """What the command before this was told."""
        self.deliver()
        return self.answers[-1]

    def cancel(self, stream: Stream, reason: CancelReason = CancelReason.CANCELLED) -> None:
        self.handle(Cancel(stream.request.id, reason))

    def handle(self, event: Command) -> None:
        self.stimuli.append(("event", self.now, event))
        self.core.handle(event, self.now)
        self.core.check()

    def step(self) -> StepPlan | None:
        """One turn of the engine's loop."""
        plan = self.core.plan(self.now)
        self.stimuli.append(("plan", self.now, bare(plan)))
        self.deliver()
        self.planned(plan)
        if plan is None:
            return None
        self.plans.append(plan)
        try:
            result = self.device.run(plan)
        except StepLost:
            self._lose(plan)
            return plan
        self.now += self.device.seconds(plan)
        self.stimuli.append(("commit", self.now, None))
        self.core.commit(plan, result, self.now)
        self.core.check()
        self.committed(plan)
        self.compute_again()
        return plan

    def _lose(self, plan: StepPlan) -> None:
        self.now += self.device.seconds(plan)
        self.stimuli.append(("lose", self.now, None))
        self.core.lose(plan, self.now)
        self.core.check()
        self.lost_steps += 1
        self.lost(plan)

    def planned(self, plan: StepPlan | None) -> None:
        """For who checks more: after each plan."""

    def committed(self, plan: StepPlan) -> None:
        """For who checks more: after each commit."""

    def lost(self, plan: StepPlan) -> None:
        """For who checks more: after each step that was lost."""

    def run(self, steps_max: int = 5000) -> None:
        """Until nothing is left to do."""
        for _ in range(steps_max):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError(f"L2: still at work after {steps_max}: {self.core.stories()}")

    def close(self) -> None:
        """M3, T7, D1: drain, drop the tree, and find every byte where it was."""
        self.handle(Drain())
        self.run()
        assert self.core.finished
        assert all(stream.end is not None for stream in self.streams.values()), "R1"
        assert not self.device.slots, f"slots {sorted(self.device.slots)} were never released"
        assert self.ledger.held("live") == self.ledger.held("workspace") == 0
        self.core.close()
        assert self.ledger.free == self.ledger.budget_bytes - self.ledger.weights_bytes
        assert not self.device.tracker.live, f"T7: {len(self.device.tracker.live)} not closed"

    def deliver(self) -> tuple[Effect, ...]:
        """Hand what happened to the streams."""
        effects = self.core.take_effects()
        for effect in effects:
            if effect.id in self.streams:
                self.streams[effect.id].take(effect, len(self.plans))
            else:
                assert isinstance(effect, Unpinned | Cleared | SessionTold | Failed), f"{effect}"
                self.answers.append(effect)
        return effects


def bare(plan: StepPlan | None) -> tuple[object, ...] | None:
    """A plan as plain values that outlive its payloads."""
    if plan is None:
        return None
    spans = [[(payload.start, payload.end) for payload in admit.path] for admit in plan.admits]
    referred = [each.path for each in plan.repoints] + [each.path for each in plan.seals]
    spans += [[(payload.start, payload.end) for payload in path] for path in referred]
    admits = tuple(replace(a, path=()) for a in plan.admits)
    repoints = tuple(replace(r, path=()) for r in plan.repoints)
    seals = tuple(replace(s, path=()) for s in plan.seals)
    return replace(plan, admits=admits, repoints=repoints, seals=seals), spans


def prompt(tokens: int, seed: int = 0) -> tuple[int, ...]:
    """`tokens` ids that differ for different seeds from the first on."""
    return tuple(4 + (seed * 7 + i * i + 3 * i * (seed + 1)) % 40 for i in range(tokens))


def failed(stream: Stream) -> Failed:
    assert isinstance(stream.end, Failed)
    return stream.end


def finished(stream: Stream) -> Finished:
    assert isinstance(stream.end, Finished)
    return stream.end
