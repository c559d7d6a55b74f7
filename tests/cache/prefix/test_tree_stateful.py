"""The tree against a model that is slow, small and obviously right.

The model knows, per root key, two sets of prefixes: those whose last token has full K/V stored,
and those whose last token has sliding K/V stored. What eviction may take away is checked against
the rules, then taken from the model as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from sapwood.cache.prefix import eviction
from sapwood.cache.prefix.describe import NodeView
from sapwood.cache.prefix.node import Lease
from sapwood.cache.prefix.tree import Tree
from tests.fakes import FULL_BYTES, SLIDING_BYTES, TokenLog, Tracker
from tests.quick import for_long

Path = tuple[int, ...]
ROOTS = [b"salt a", b"salt b"]
PATHS = st.lists(st.integers(0, 1), min_size=4, max_size=14).map(tuple)


@dataclass
class Model:
    """One root's prefixes."""

    full: set[Path] = field(default_factory=set)
    sliding: set[Path] = field(default_factory=set)
    ever: set[Path] = field(default_factory=set)

    def matched(self, tokens: Path) -> int:
        ends = range(len(tokens) + 1)
        return max(end for end in ends if end == 0 or tokens[:end] in self.full)

    def restorable(self, tokens: Path, cap: int, window: int) -> int:
        for end in range(cap, 0, -1):
            read = range(max(0, end - window) + 1, end + 1)
            if all(tokens[:position] in self.sliding for position in read):
                return end
        return 0


@dataclass(eq=False)
class Sequence:
    root: bytes
    tokens: Path
    lease: Lease


class TreeMachine(RuleBasedStateMachine):
    sequences = Bundle("sequences")

    @initialize(
        window=st.integers(0, 5),
        nodes_max=st.sampled_from([6, 1000]),
        merge_tokens_max=st.sampled_from([1, 4, 100]),
    )
    def start(self, window: int, nodes_max: int, merge_tokens_max: int) -> None:
        self.tracker = Tracker()
        self.tree = Tree(window, nodes_max, merge_tokens_max)
        self.nodes_max = nodes_max
        self.models = {root: Model() for root in ROOTS}
        self.live: list[Sequence] = []
        self.now = 0

    # What the tree shows, as the model's sets.

    def shown(self) -> dict[bytes, Model]:
        """Read back through describe; payload content is checked by `paths_hold_their_tokens`."""
        shown = {root: Model() for root in ROOTS}
        for root, prefix, view in self.nodes():
            for end in range(view.start + 1, view.end + 1):
                shown[root].full.add(prefix[:end])
                if end > view.sliding_start:
                    shown[root].sliding.add(prefix[:end])
        return shown

    def nodes(self) -> list[tuple[bytes, Path, NodeView]]:
        """Non-root nodes with the whole path to their end."""
        paths: dict[int, tuple[bytes, Path]] = {}
        keys = {top.id: root for root, top in self.tree._roots.items()}
        nodes = []
        for view in self.tree.describe(tokens=True):
            assert view.tokens is not None
            if view.parent is None:
                paths[view.id] = keys[view.id], ()
                continue
            root, above = paths[view.parent]
            assert len(above) == view.start
            paths[view.id] = root, above + view.tokens
            nodes.append((*paths[view.id], view))
        return nodes

    def said_so_far(self, root: bytes, data: st.DataObject) -> Path:
        ends = [()] + [prefix for at, prefix, _ in self.nodes() if at == root]
        said = data.draw(st.sampled_from(ends), label="said so far")
        return said[: len(said) - data.draw(st.integers(0, min(4, len(said))), label="taken back")]

    def ages(self) -> dict[int, int]:
        return {view.id: view.age for view in self.tree.describe()}

    def step(self) -> int:
        self.now += 1
        return self.now

    def lost_only_what_may_go(self) -> int:
        """After eviction: full K/V that is leased is there, nothing new is. Returns bytes lost."""
        shown, lost = self.shown(), 0
        for root, model in self.models.items():
            assert shown[root].full <= model.full, "T6: eviction added full K/V"
            assert shown[root].sliding <= model.sliding, "T6: eviction added sliding K/V"
            assert all(len(p) == 1 or p[:-1] in shown[root].full for p in shown[root].full)
            lost += FULL_BYTES * (len(model.full) - len(shown[root].full))
            lost += SLIDING_BYTES * (len(model.sliding) - len(shown[root].sliding))
            model.full, model.sliding = shown[root].full, shown[root].sliding
        for sequence in self.live:
            held = self.models[sequence.root].full
            for end in range(1, sequence.lease.end + 1):
                assert sequence.tokens[:end] in held, f"T6: [0, {end}) was leased"
        return lost

    # Rules.

    @rule(root=st.sampled_from(ROOTS), tokens=PATHS, limit=st.none() | st.integers(0, 14))
    def match(self, root: bytes, tokens: Path, limit: int | None) -> None:
        """T2, T8: the longest restorable prefix of this root, and nothing changes."""
        before = list(self.tree.describe(tokens=True))
        match = self.tree.match(root, tokens, limit)
        assert list(self.tree.describe(tokens=True)) == before
        model = self.models[root]
        assert match.matched == model.matched(tokens)
        cap = min(match.matched, len(tokens) - 1, len(tokens) if limit is None else limit)
        assert match.tokens == model.restorable(tokens, cap, self.tree.window)
        if match.evicted:
            assert tokens[: match.matched + 1] in model.ever - model.full

    @rule(target=sequences, root=st.sampled_from(ROOTS), more=PATHS, data=st.data())
    def lease(self, root: bytes, more: Path, data: st.DataObject) -> Sequence:
        """T10: only the landing node's age moves."""
        tokens = self.said_so_far(root, data) + more
        matched = self.tree.match(root, tokens).matched
        end = data.draw(st.integers(0, matched), label="end")
        ages = self.ages()
        sequence = Sequence(root, tokens, self.tree.lease(root, tokens, end, self.step()))
        self.live.append(sequence)
        after = self.ages()
        changed = {id for id in after if after[id] != ages.get(id, self.now)}
        assert changed <= {sequence.lease.node.id}
        assert after[sequence.lease.node.id] == self.now
        return sequence

    @rule(
        sequence=sequences,
        more=PATHS,
        back=st.integers(0, 4),
        thin=st.integers(0, 6),
        data=st.data(),
    )
    def extend(
        self, sequence: Sequence, more: Path, back: int, thin: int, data: st.DataObject
    ) -> None:
        """T3, T12: any overlap with what is stored ends as one copy, the one with more sliding."""
        lease, root = sequence.lease, sequence.root
        if data.draw(st.booleans(), label="leave the path"):
            sequence.tokens = sequence.tokens[: lease.end] + more
        tokens = sequence.tokens
        start = max(0, min(lease.end - back, len(tokens) - 1))
        end = data.draw(st.integers(start + 1, len(tokens)), label="end")
        sliding_start = min(start + thin, end)
        turn_end = data.draw(st.booleans(), label="turn_end")
        ages = self.ages()
        self.tree.extend(
            lease,
            tokens,
            self.tracker.log(tokens, start, end, sliding_start),
            self.step(),
            turn_end=turn_end,
        )
        model = self.models[root]
        model.full |= {tokens[:position] for position in range(start + 1, end + 1)}
        model.sliding |= {tokens[:position] for position in range(sliding_start + 1, end + 1)}
        model.ever |= model.full
        assert lease.end >= end
        self.lost_only_what_may_go()  # nothing, unless the tree was crowded
        after = self.ages()
        assert all(
            after[id] == age for id, age in ages.items() if id in after and id != lease.node.id
        )

    @rule(root=st.sampled_from(ROOTS), more=PATHS, slice=st.integers(1, 8), data=st.data())
    def turn(self, root: bytes, more: Path, slice: int, data: st.DataObject) -> None:
        """A whole turn, often the next one of a conversation: match, lease, compute, release."""
        tokens = self.said_so_far(root, data) + more
        start = self.tree.match(root, tokens).tokens
        lease = self.tree.lease(root, tokens, start, self.step())
        while lease.end < len(tokens):
            end = min(lease.end + slice, len(tokens))
            log = self.tracker.log(tokens, lease.end, end)
            self.tree.extend(lease, tokens, log, self.step())
        assert self.tree.match(root, (*tokens, 0)).tokens == len(tokens)
        self.tree.release(lease, self.step())
        model = self.models[root]
        model.full |= {tokens[:position] for position in range(start + 1, len(tokens) + 1)}
        model.sliding |= {tokens[:position] for position in range(start + 1, len(tokens) + 1)}
        model.ever |= model.full
        self.lost_only_what_may_go()  # nothing, unless the tree was crowded

    @rule(sequence=consumes(sequences))
    def release(self, sequence: Sequence) -> None:
        self.tree.release(sequence.lease, self.step())
        self.live.remove(sequence)
        self.lost_only_what_may_go()  # nothing, unless the tree was crowded

    @rule(share=st.floats(0, 1.1))
    def evict(self, share: float) -> None:
        """T6: at least what was asked, or nothing at all."""
        before, evictable = list(self.tree.describe(tokens=True)), self.tree.evictable().bytes
        wanted = int(share * evictable)
        causes = sum(self.tree.evictions.values())
        freed = self.tree.evict(wanted, self.step())
        if wanted > evictable or wanted == 0:
            assert (freed, sum(self.tree.evictions.values())) == (0, causes)
            assert list(self.tree.describe(tokens=True)) == before
        else:
            assert wanted <= freed <= evictable
            assert sum(self.tree.evictions.values()) > causes
        assert self.lost_only_what_may_go() == freed

    @rule(by_drop=st.booleans())
    def empty(self, by_drop: bool) -> None:
        """Exactly evictable() can go by eviction; a clearing takes only what nobody holds."""
        leased, evictable = self.tree.leased_bytes, self.tree.evictable().bytes
        kept = leased + self.tree.kept_bytes
        if by_drop:
            assert self.lost_by(lambda: self.tree.clear().freed_bytes) <= evictable
            assert all(view.leases or view.pinned for view in self.tree.describe() if view.end)
        elif evictable:
            freed = self.lost_by(lambda: self.tree.evict(evictable, self.step()))
            assert (freed, self.tree.bytes, self.tree.full_bytes) == (evictable, kept, leased)

    def lost_by(self, action: Callable[[], int]) -> int:
        freed = action()
        assert self.lost_only_what_may_go() == freed
        return freed

    # Invariants.

    @invariant()
    def structure(self) -> None:
        """T1, T5, T7, T9 by the tree's own check, and the model's sets."""
        self.tree.check()
        shown = self.shown()
        for root, model in self.models.items():
            assert (shown[root].full, shown[root].sliding) == (model.full, model.sliding), "T8"
        assert self.tree.depth_tokens == max((view.end for view in self.tree.describe()), default=0)

    @invariant()
    def leases(self) -> None:
        """T5: a node counts exactly the leases whose path contains it."""
        for root, prefix, view in self.nodes():
            on_it = [
                s
                for s in self.live
                if s.root == root
                and s.lease.end > view.start
                and s.tokens[: min(s.lease.end, view.end)] == prefix[: s.lease.end]
            ]
            assert view.leases == len(on_it), f"T5: [{view.start}, {view.end})"

    @invariant()
    def paths_hold_their_tokens(self) -> None:
        """T3, T9: the content along every leased path."""
        for sequence in self.live:
            payloads = self.tree.path(sequence.lease)
            position = 0
            for payload in payloads:
                assert isinstance(payload, TokenLog) and payload.start == position
                stop = min(payload.end, sequence.lease.end)
                assert payload.full[: stop - position] == sequence.tokens[position:stop], "T3"
                assert payload.sliding == payload.full[payload.sliding_start - position :], "T9"
                position = payload.end
            assert position >= sequence.lease.end

    @invariant()
    def closed_once(self) -> None:
        """T7: what is live is what the tree owns."""
        assert self.tracker.created == self.tracker.closed + len(self.tracker.live)
        assert len(self.tracker.live) == self.tree.nodes

    @invariant()
    def crowd(self) -> None:
        unleased = [v for _, _, v in self.nodes() if not v.leases and not v.pinned]
        assert self.tree.nodes <= self.nodes_max or not unleased

    def teardown(self) -> None:
        """M3: no leases and a dropped tree is the empty tree."""
        for sequence in self.live:
            self.tree.release(sequence.lease, self.step())
        self.tree.clear()
        assert list(self.tree.describe()) == []
        assert (self.tree.nodes, self.tree.bytes, self.tracker.live) == (0, 0, set())


class LargeTreeMachine(TreeMachine):
    """Every tree counts as one of many nodes: passes look at a few and remember the best."""

    def __init__(self) -> None:
        super().__init__()
        self.patched = patch.multiple(eviction, EXACT_NODES=1, LOOKED_NODES=1, POOL_NODES=2)
        self.patched.start()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.patched.stop()


TreeMachine.TestCase.settings = LargeTreeMachine.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTree, TestLargeTree = TreeMachine.TestCase, LargeTreeMachine.TestCase
TestTreeForLong, TestLargeTreeForLong = for_long(TreeMachine, 150), for_long(LargeTreeMachine, 150)
