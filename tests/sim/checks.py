"""What must hold after every step of any scenario, each assertion with its invariant's id.

- Rows are followed from the plans alone; the core is asked only which sequence has which slot and
  who has ended, so that its own books are checked against another's.
- What costs as much as the tree is looked at every few steps, over small trees only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sapwood.cache.prefix.describe import NodeView
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import Admit, StepPlan
from tests.scheduler.fake_device import mix

LOOK_STEPS = 8
LOOK_TOKENS_MAX = 20_000


@dataclass
class Row:
    """One slot as the plans describe it."""

    request: Request
    processed: int
    admitted_step: int
    served_step: int
    prefix_tokens: int
    storing: bool = True
    decoding: bool = False

    @property
    def rest(self) -> int:
        return self.prefix_tokens - self.processed


class RowChecks:
    """L1 to L3, L6, R2 and that no prefix is computed twice, over the plans of one core."""

    def __init__(self, core: Core, tree: Tree, limits: Limits) -> None:
        self.rows: dict[int, Row] = {}
        self.free_rows = 0  # decode rows whose depth is the policy's to choose
        self.free_drafting = 0  # and those of them that drafted
        self._core, self._tree, self._limits = core, tree, limits
        self._evictions = 0

    def planned(self, plan: StepPlan | None) -> None:
        live = {sequence.slot: sequence for sequence in self._core._roster.live.values()}
        kept = {
            slot: row
            for slot, row in self.rows.items()
            if slot in live and live[slot].id == row.request.id
        }
        queued = len(self._core._roster.waiting.queued)
        assert queued <= self._limits.queued_max, f"{queued} wait, {self._limits.queued_max} may"
        if plan is None:
            assert not self.rows and not live, f"L2: no plan for {sorted(self.rows)}"
            return
        left = sorted(self.rows.keys() - kept.keys())
        assert sorted(plan.releases) == left, f"R2: {plan.releases} released, {left} have ended"
        self._check_parked([self.rows[slot].request for slot in left], kept)
        self.rows = kept
        evictions = sum(self._tree.evictions.values())
        for admit in plan.admits:
            prefix = len(admit.prompt) + max(0, len(admit.reply) - 1)
            row = Row(live[admit.slot].request, admit.target, plan.number, plan.number, prefix)
            if evictions == self._evictions:
                self._check_alone(row, admit, plan.number)
            self._check_fork(row.request)
            row.storing = not row.request.cache_bypass
            self.rows[admit.slot] = row
        self._evictions = evictions
        self._check_decodes(plan)
        self._check_prefills(plan)

    def committed(self, plan: StepPlan) -> None:
        self._evictions = sum(self._tree.evictions.values())
        roster = self._core._roster
        live = {s.slot: s for s in (*roster.live.values(), *roster.leaving)}
        for piece in plan.prefills:
            row = self.rows[piece.slot]
            # Captured, and there was room for all that storing it cuts.
            row.storing = piece.capture and live[piece.slot].storing
            row.processed = piece.end
            row.decoding = piece.draws

    def lost(self) -> None:
        """A step was lost, and all slots with it; the tree gave something up."""
        self.rows.clear()
        self._evictions = sum(self._tree.evictions.values())

    def _check_parked(self, left: list[Request], kept: dict[int, Row]) -> None:
        """L7: never the oldest while others live, and nobody more often than it may be."""
        waiting = self._core._roster.waiting
        parked = [waiting.get(request.id) for request in left]
        ids = {row.request.id for row in kept.values()} | {s.id for s in parked if s is not None}
        for sequence in parked:
            if sequence is not None:
                assert not kept or min(ids) < sequence.id, f"L7: {sequence.tell()}"
                assert sequence.forced <= self._limits.parks_max, f"L7: {sequence.tell()}"

    def _check_fork(self, request: Request) -> None:
        """L9: the prompt of several replies is read once, by the first of them."""
        leader = self._core._roster.find(request.fork_of or 0)
        if leader is not None and not request.cache_bypass:
            assert leader.emitted, f"L9: a fork before its prompt is read: {leader.tell()}"

    def _check_alone(self, new: Row, admit: Admit, step: int) -> None:
        """Of two with one prefix the second waits until the first has stored it.

        Unless it reads all for its scores.
        """
        if new.request.cache_bypass or new.request.prompt_logprobs:
            return
        for row in self.rows.values():
            if row.decoding or not row.storing or row.request.root != new.request.root:
                continue
            if row.admitted_step == step:
                continue  # whether it will store is decided after both were admitted
            shared = shared_tokens(row.request.prompt, new.request.prompt[:-1])
            apart = shared <= row.processed or shared - admit.target < self._limits.share_tokens_min
            assert apart, f"computed twice: [{admit.target}, {shared}), {row.processed} are done"

    def _check_decodes(self, plan: StepPlan) -> None:
        rows = {slot for slot, row in self.rows.items() if row.decoding}
        decoded = {row.slot for row in plan.decodes}
        assert decoded == rows, f"L3: {sorted(rows)} decode, {sorted(decoded)} are in the step"
        deepest = self._limits.depth_max(len(plan.decodes))
        assert all(row.depth <= deepest for row in plan.decodes), f"S8: deeper than {deepest}"
        free = [row for row in plan.decodes if self.rows[row.slot].request.depth is None]
        self.free_rows += len(free)
        self.free_drafting += sum(row.iterations > 0 for row in free)

    def check_parked(self) -> None:
        """S8, where no draft is ever accepted: what is tried is for learning, and backs off."""
        # Rounds are what learning takes, and all slots may be in each of them.
        tried_max = max(48, 16 * self._limits.slots_max) + self.free_rows // 8
        assert self.free_drafting <= tried_max, (
            f"S8: {self.free_drafting} of {self.free_rows} rows drafted for nothing"
        )

    def _check_prefills(self, plan: StepPlan) -> None:
        waiting = {slot: row for slot, row in self.rows.items() if not row.decoding}
        for piece in plan.prefills:
            waiting[piece.slot].served_step = plan.number
        for slot, row in waiting.items():
            steps = plan.number - row.served_step
            assert steps <= self._limits.slots_max, f"L2: slot {slot} without a slice for {steps}"
        if waiting:
            rests = [1 if self._may_be_cut(r, plan) else r.rest for r in waiting.values()]
            due = min(LEAST_SHARE, *rests)
            given = sum(len(piece.tokens) for piece in plan.prefills)
            assert given >= due, f"L3: {given} prompt tokens, {due} are their share"

    @staticmethod
    def _may_be_cut(row: Row, plan: StepPlan) -> bool:
        """A share is cut before it is known how much of a new one's prefix is still whole.

        And what is read again for scores ends where they go on.
        """
        return row.admitted_step == plan.number or row.request.prompt_logprobs > 0


class TreeChecks:
    """T2 to T4, T8, T10 and T11 by a naive model, every few steps."""

    def __init__(self, tree: Tree, limits: Limits) -> None:
        self._tree = tree
        self._tried_max = limits.admission_candidates_max  # they lease, and may not fit then
        self._reads_max = limits.page_ins_max  # and lease what they go on from
        self._committed: dict[bytes, dict[int, int]] = {}  # root: state of a prefix: its length
        self._hashed: dict[int, tuple[int, int]] = {}  # request: tokens hashed, their state
        self._stored: set[tuple[bytes, int]] = set()
        self._evictions = 0

    def look(self, plan: StepPlan, streams: Iterable[tuple[Request, list[int]]]) -> None:
        """`streams`: every request that was ever sent, with what was emitted for it."""
        nodes = list(self._tree.describe(tokens=True))
        if sum(node.end - node.start for node in nodes) > LOOK_TOKENS_MAX:
            return
        streams = list(streams)
        for request, emitted in streams:
            self._hash(request, emitted)
        stored = self._states(nodes)
        self._check_content(stored)
        for request, _ in streams[-3:]:
            self._check_match(request, stored)
        self._check_ages(plan, nodes)

    def _hash(self, request: Request, emitted: list[int]) -> None:
        length, state = self._hashed.get(request.id, (0, 0))
        known = self._committed.setdefault(request.root, {})
        for token in (*request.prompt, *emitted)[length:]:
            state, length = mix(state, token), length + 1
            known[state] = length
        self._hashed[request.id] = length, state

    def _states(self, nodes: list[NodeView]) -> dict[tuple[bytes, int], bool]:
        """Every stored position, as its prefix' hash: whether it has sliding K/V too."""
        roots = {top.id: key for key, top in self._tree._roots.items()}
        ends: dict[int, tuple[bytes, int]] = {id: (key, 0) for id, key in roots.items()}
        stored: dict[tuple[bytes, int], bool] = {}
        for node in nodes:
            if node.parent is None:
                continue
            key, state = ends[node.parent]
            for position, token in enumerate(node.tokens or (), node.start):
                state = mix(state, token)
                assert (key, state) not in stored, f"T1: one prefix twice, up to {position + 1}"
                stored[key, state] = position >= node.sliding_start
            ends[node.id] = key, state
        return stored

    def _check_content(self, stored: dict[tuple[bytes, int], bool]) -> None:
        for key, state in stored:
            assert state in self._committed.get(key, {}), "T11: stored, and nobody committed it"
        evictions = sum(self._tree.evictions.values())
        if evictions == self._evictions:
            lost = self._stored - stored.keys()
            assert not lost, f"T4: {len(lost)} positions are gone, and nothing was evicted"
        self._evictions, self._stored = evictions, set(stored)

    def _check_match(self, request: Request, stored: dict[tuple[bytes, int], bool]) -> None:
        """T2, T8, T9: the longest restorable prefix, token by token and from scratch."""
        sliding: list[bool] = []
        state = 0
        for token in request.prompt:
            state = mix(state, token)
            if (request.root, state) not in stored:
                break
            sliding.append(stored[request.root, state])
        cap, window = min(len(sliding), len(request.prompt) - 1), self._tree.window
        best = next(t for t in range(cap, -1, -1) if all(sliding[max(0, t - window) : t]))
        found = self._tree.match(request.root, request.prompt)
        assert (found.tokens, found.matched) == (best, len(sliding)), f"T2: {found}, not {best}"

    def _check_ages(self, plan: StepPlan, nodes: list[NodeView]) -> None:
        """T10: a step freshens ends alone: of what it tries to admit, stores, and lets go."""
        fresh = sum(node.age == plan.number and node.parent is not None for node in nodes)
        ends = 2 * (len(plan.captures) + len(plan.prefills)) + len(plan.releases)
        ends += 2 * len(plan.admits) + self._tried_max + 2 * self._reads_max
        assert fresh <= 2 * ends, f"T10: {fresh} nodes are fresh after {ends} uses"


class WatchedTree(Tree):
    """A tree whose evictions are checked as they happen (T6)."""

    def evict(self, bytes_wanted: int, now: int, buffers_wanted: int = 0) -> int:
        before, possible = self.bytes, self.evictable().bytes
        leased, buffers, spare = self.leased_bytes, self.buffers, self.evictable().buffers
        kept = self.kept_bytes
        freed = super().evict(bytes_wanted, now, buffers_wanted)
        if bytes_wanted <= possible and buffers_wanted <= spare:
            gone = buffers - self.buffers
            assert gone >= buffers_wanted, f"T6: {gone} buffers freed, {buffers_wanted} wanted"
        else:
            possible = -1
        assert before - self.bytes == freed, f"T6: {freed} freed, {before - self.bytes} are gone"
        assert freed >= bytes_wanted or (freed == 0 and bytes_wanted > possible), f"T6: {freed}"
        assert self.leased_bytes == leased, "T6: a leased node lost full K/V"
        assert self.kept_bytes == kept, "T13: a pin lost sliding K/V"
        return freed


LEAST_SHARE = 1  # prompt tokens that a step gives whoever went without the longest, at any price


def shared_tokens(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    count = 0
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            break
        count += 1
    return count
