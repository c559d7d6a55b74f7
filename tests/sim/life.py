"""One daemon's life in the simulator: core, tree and ledger of production, on the fake device.

- Every command and step is checked as it passes; what a client saw, as it comes (house.Stream).
- It ends in order (`finish`: every byte is back), or by a failed allocation (`die`).
"""

from __future__ import annotations

from dataclasses import replace

from sapwood.cache.prefix.ledger import Ledger
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.events import Clear, Cleared, Drain, Effect, Failed, Finished, Request
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.replay import Replay
from tests.fakes import Tracker
from tests.scheduler.disk_house import DiskHouse, FakeDisk
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import ROOMY, Stream, bare
from tests.scheduler.session_house import SessionHouse
from tests.sim.checks import LEAST_SHARE, LOOK_STEPS, RowChecks, TreeChecks, WatchedTree
from tests.sim.device import SimDevice
from tests.sim.disk_checks import DiskChecks, Found, folder_of, found_by_the_next
from tests.sim.limits import limits_of, options_of
from tests.sim.operators import OperatorChecks
from tests.sim.pace_checks import PaceChecks
from tests.sim.replay_checks import ReplayChecks
from tests.sim.share_checks import ShareChecks
from tests.sim.story import Ask, Config, Keep
from tests.sim.talks import Talks, label

LIVE_BUFFERS = 4  # of a slot


class Life(SessionHouse, DiskHouse):
    """One daemon's life: a core, its device and disk, and the checks of all."""

    device: SimDevice

    def __init__(
        self, config: Config, now: float, before: Life | None = None, found: Found = ()
    ) -> None:
        """before: the life before it, whose disk it finds. found: instead, what it knew of it."""
        limits = limits_of(config)
        facts = replace(
            toy_facts(
                config.has_drafter,
                config.window,
                config.full_bytes,
                config.sliding_bytes,
                config.draft_depth_max,
            ),
            page_bytes=config.page_bytes,
            buffers_max=config.buffers_max,
            weights_buffers=2 if config.buffers_max else 0,
            live_buffers=LIVE_BUFFERS if config.buffers_max else 0,
            reuse_bytes=config.page_bytes if config.page_bytes > 1 else 0,  # MLX's rule for a GPU
        )
        ledger = Ledger(config.budget_bytes, facts.weights_bytes)
        disk = FakeDisk(Tracker()) if before is None else before.disk.left()
        self.found = found or found_by_the_next(config, before)
        known = {file.key for file in self.found}  # what no journal knows goes
        disk.files = {key: content for key, content in disk.files.items() if key in known}
        super().__init__(
            disk,
            folder=folder_of(config, self.found),
            limits=limits,
            facts=facts,
            ledger=ledger,
            device=SimDevice(config, facts, limits, ledger),
            tree=WatchedTree(facts.window_tokens, limits.nodes_max(ledger.free)),
        )
        self.config = config
        self.now = now
        self.draining = False
        self.sequences: list[Sequence] = []
        self._too_large: set[int] = set()
        self._left: dict[tuple[bytes, tuple[int, ...]], tuple[int, int]] = {}
        self._rows = RowChecks(self.core, self.tree, limits)
        roomy = config.budget_bytes >= ROOMY and config.buffers_max in (0, 499_000 // 2)
        alone = roomy and not config.disk_bytes  # who waits for a disk wants no share
        self._shares = ShareChecks(self.core, limits) if alone else None
        self._pace = PaceChecks(self.core, self.device, limits)
        self._trees = TreeChecks(self.tree, limits)
        room = config.budget_bytes - facts.weights_bytes
        self._again = ReplayChecks(self.core, limits)
        if config.check_share:
            self.core.check_rounds()
        self._operators = OperatorChecks(self.core, self.tree, limits, room)
        self.talks = Talks(self, lambda: disk.files_left)
        self._disk_checks = DiskChecks(disk, config, now)

    def ask(self, prompt: tuple[int, ...], ask: Ask) -> Stream:
        """Send a request. What can never fit beside the pins is to be refused at once (L5)."""
        room = self._room()
        stream = self.submit(
            prompt, ask.max_tokens, **options_of(ask, self.facts.has_drafter, self.now)
        )
        self._came(stream, room)
        return stream

    def say(self, prompt: tuple[int, ...], ask: Ask) -> Stream | None:
        """Send a turn of a session, where there is one."""
        name = label(ask.session)
        talk, held, room = self.talks.find(name), self.held(name), self._room()
        if talk is None or held is None:
            return None
        stream = self.speak(
            name, prompt, ask.max_tokens, **options_of(ask, self.facts.has_drafter, self.now)
        )
        self.talks.asked(name, stream, self._came(stream, None if talk.busy else room))
        return stream

    def take_up(self, old: Stream) -> Stream | None:
        """Go on with a stream of a session, where nothing else came since."""
        turn, room, ended = old.request.session, self._room(), old.end is not None
        stream = None if turn is None else self.talks.take_up(turn.key.name, old)
        if stream is not None and ended:
            self._came(stream, None if isinstance(old.end, Finished) else room)
        return stream

    def _room(self) -> int:
        """What a request may count on that comes now."""
        pins = self.core._memory.pins
        pins.expire(self.core._steps, self.now)  # as the command does, before it is judged
        self._operators.came()
        return pins.bytes_beside

    def _came(self, stream: Stream, room: int | None) -> bool:
        """Whether it was let in. room: None where it is judged by something else first."""
        for row in stream.request.rows:
            sequence = self.core._roster.find(row.id)
            if sequence is not None:
                self.sequences.append(sequence)
            if self.draining:
                assert sequence is None, "D1: somebody came in behind the drain"
            elif room is not None and self._alone_bytes(row) > room:
                self._too_large.add(row.id)
        return sequence is not None

    def deliver(self) -> tuple[Effect, ...]:
        """What ends now ends in the books of sessions at this time."""
        effects = super().deliver()
        self.talks.settle()
        return effects

    def keep(self, prompt: tuple[int, ...], action: Keep) -> Stream:
        """Ask for a pin."""
        self._operators.came()
        stream = self.pin(prompt, action.ttl_s, public=True, root=b"root %d" % action.root)
        sequence = self.core._roster.find(stream.request.id)
        if sequence is not None:
            self.sequences.append(sequence)
        return stream

    def copy(self) -> bool:
        """A block is copied to be written, where one is due."""
        copied = super().copy()
        self._disk_checks.copied(self.now)
        return copied

    def let_go(self, stream: Stream) -> None:
        """Unpin what the stream has pinned."""
        self._operators.unpinned(stream, self.unpin(stream), self.now)

    def wipe(self, tokens: tuple[int, ...]) -> None:
        """Clear what begins so."""
        held, before = self.tree.bytes, self.tree.evictions["cleared"]
        told = self.order(Clear(next(self.ids), tokens))
        # What expired with it may have merged.
        gone = self.tree.evictions["cleared"] - before
        if isinstance(told, Cleared):
            self._disk_checks.erased(tokens, self.streams.values())
            assert told.nodes == gone, f"T14: {told}, {gone} went"
            assert told.freed_bytes <= held - self.tree.bytes, f"T14: {told}"
        else:
            assert self.disk.files_left, f"T14: {told}"
        self._operators.cleared(tokens)

    def give_up(self, stream: Stream, why: CancelReason) -> None:
        """Cancel, and remember what a prompt that was being read has stored already (T12)."""
        sequence = self.core._roster.live.get(stream.request.id)
        for row in self.rows(stream):
            self.cancel(row, why)
        if sequence is not None and not sequence.emitted and sequence.lease is not None:
            request = stream.request
            # Not all that is stored: the window before its end may have been thinned under the
            # lease, for others.
            kept = self.tree.match(request.root, request.prompt).tokens
            self._left[request.root, request.prompt] = kept, self._evicted()

    def drain(self) -> None:
        """D1: who waits is refused at once, who runs goes on."""
        running = len(self.core._roster.live)
        self.draining = True
        self.handle(Drain())
        assert not self.core._roster.waiting.queued, "D1: somebody still waits"
        assert len(self.core._roster.live) == running, "D1: a running sequence was ended"

    def planned(self, plan: StepPlan | None) -> None:
        """Called by step()."""
        self._rows.planned(plan)
        self._pace.planned(plan)
        if self._shares is not None:
            self._shares.planned(plan)
        for admit in plan.admits if plan else ():
            request = self._rows.rows[admit.slot].request
            stored, evicted = self._left.get((request.root, request.prompt), (0, -1))
            whole = request.cache_bypass or request.pin or request.prompt_logprobs
            if evicted == self._evicted() and not whole:
                resumed = min(stored, len(request.prompt) - 1)
                assert admit.target >= resumed, f"T12: {resumed} were stored, not {admit.target}"

    def replays(self, due: Replay) -> None:
        """Called by compute_again()."""
        self._again.due(due, self.device.replay(due), self.device.replay_s(due))

    def idle(self, seconds: float) -> None:
        """A turn in which nobody has anything to do, but rounds to compute again."""
        super().idle(seconds)
        self.compute_again()

    def committed(self, plan: StepPlan) -> None:
        """Called by step()."""
        self._again.stepped(self.device.seconds(plan))
        self._rows.committed(plan)
        self.deliver()
        self._leave_failed()
        self._operators.look(self.streams, self.now)
        self._disk_checks.look(self.now)
        self.talks.look()
        if self.config.buffers_max:
            slots = len(self.device.slots)
            buffers = self.device.tracker.buffers + slots * LIVE_BUFFERS + 2
            assert buffers <= self.config.buffers_max, f"M1: {buffers} buffers"
        live = len(self.device.tracker.live)
        assert live == self.tree.nodes, f"T7: {live} payloads live, {self.tree.nodes} in the tree"
        if plan.number % LOOK_STEPS == 0:
            self._trees.look(plan, ((s.request, s.tokens) for s in self.streams.values()))

    def _leave_failed(self) -> None:
        """A client that hears that one of its replies failed gives the others up."""
        for stream in list(self.streams.values()):
            if stream.request.forks:
                ends = [row.end for row in self.rows(stream)]
                if None in ends and any(isinstance(end, Failed) for end in ends):
                    self.give_up(stream, CancelReason.CANCELLED)

    def lost(self, plan: StepPlan) -> None:
        """Called by step()."""
        self._rows.lost()
        assert not self.core._roster.live and not self.device.live_bytes, "somebody has a slot"
        live = len(self.device.tracker.live)
        assert live == self.tree.nodes, f"T7: {live} payloads live, {self.tree.nodes} in the tree"

    def finish(self) -> None:
        """M3, T7, R1 at the end of a life that nothing broke, and L5 for all of it."""
        assert self.step() is None, "at work still"
        self._operators.check_idle_pins(self.now)
        self.close()
        if self.config.quality == 0.0:
            self._rows.check_parked()
        for stream in self.streams.values():
            large = getattr(stream.end, "reason", None) is Reason.OUT_OF_MEMORY
            expected = stream.request.id in self._too_large
            assert large == expected or stream.request.pin, f"L5: {stream.end}"

    def die(self) -> None:
        """An allocation failed: what the tree was, it is (M2); every stream ends once (R1)."""
        self.tree.check()
        self.ledger.check()
        for stream in self.streams.values():
            if stream.end is None:
                failed = Failed(stream.request.id, Reason.ENGINE_FAILED, "the engine failed")
                stream.take(failed, len(self.plans))

    def replay(self) -> None:
        """L8: what came in, again, into a fresh core: every plan is the same."""
        twin = Life(self.config, 0.0, found=self.found)
        plan: StepPlan | None = None
        for kind, now, value in self.stimuli:
            if kind == "event":
                twin.core.handle(value, now)  # type: ignore[arg-type]
            elif kind == "paged":
                twin.core.handle(value(twin.device.tracker), now)  # type: ignore[operator]
            elif kind == "page out":
                order = twin.core.page_out(now)
                assert (order and order.file) == value, f"L8: {order} is not {value}"
            elif kind == "replay":
                due = twin.core.take_replay()
                assert due is not None, "L8: nothing is due to be computed again"
                twin.core.replayed(due, twin.device.replay(due), value)  # type: ignore[arg-type]
            elif kind == "plan":
                plan = twin.core.plan(now)
                assert bare(plan) == value, f"L8: {bare(plan)} is not {value}"
            else:
                assert plan is not None
                if kind == "lose":
                    twin.device.forget(plan)
                    twin.core.lose(plan, now)
                else:
                    twin.core.commit(plan, twin.device.run(plan), now)

    def steps_left_max(self) -> int:
        """L2: were all that is left done one after another, by the least that a step gives.

        And read again as often as each may be parked.
        """
        limits = self.limits
        left = [stream.request for stream in self.streams.values() if stream.end is None]
        times = [limits.parks_max + 2 + r.max_tokens // limits.yield_steps_min for r in left]
        read = [n * (3 + r.tokens_max // LEAST_SHARE) for n, r in zip(times, left, strict=True)]
        return 4 + sum(read) + sum(r.max_tokens for r in left)

    def _evicted(self) -> int:
        return sum(self.tree.evictions.values())

    def _alone_bytes(self, request: Request) -> int:
        """What a request takes alone: ring, row, what a slot takes besides, a round and a slice."""
        facts, row = self.facts, self.facts.row_tokens_min
        while row < request.tokens_max:
            row *= 2
        rows = 1 + (self.limits.draft_depth_max if facts.has_drafter else 0)
        step = rows + self.limits.prefill_tokens_max  # a byte each
        return facts.ring_bytes + row * facts.full_bytes_per_token + facts.slot_bytes + step
