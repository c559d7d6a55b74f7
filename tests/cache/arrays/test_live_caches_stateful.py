"""Random lives of sequences over shared stores, against plain token lists.

C1 (every layer at one offset), C4 (packed rows equal each sequence's own attention), C6 (captures
are the live content bit for bit and restore to it), M3 (nothing is left when all have gone).
"""

from __future__ import annotations

from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sapwood.cache.arrays.ranges import EdgePayload, window_of
from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from tests.cache.arrays.world import ROUND, WINDOW, Feed, World, live_bytes
from tests.quick import for_long

SLOTS = 5
TOKEN = st.integers(0, 9)


class Lives(RuleBasedStateMachine):
    """Slots are admitted, fed, rewound, captured and released in any order."""

    window = WINDOW
    kernels = CPU_KERNELS

    def __init__(self) -> None:
        super().__init__()
        self.world = World(window=self.window, kernels=self.kernels)
        #: paths root to leaf and the tokens they spell
        self.stored: list[tuple[list[EdgePayload], list[int]]] = []
        #: by slot what it was admitted from, or sealed to: [0, base) of it is held by reference
        self.paths: dict[int, list[EdgePayload]] = {}

    @property
    def free(self) -> list[int]:
        return [s for s in range(SLOTS) if s not in self.world.tokens]

    @rule(data=st.data())
    def admit_cold(self, data: st.DataObject) -> None:
        if self.free:
            self.world.admit(data.draw(st.sampled_from(self.free)))

    @precondition(lambda self: self.stored and self.free)
    @rule(data=st.data())
    def admit_from_a_path(self, data: st.DataObject) -> None:
        (path, tokens), window = data.draw(st.sampled_from(self.stored)), self.window
        target = data.draw(st.integers(0, len(tokens)))
        portions = window_of([p.sliding for p in path], target, window)
        covered = target == 0 or (bool(portions) and portions[0][1] == max(0, target - window))
        if covered:
            slot = data.draw(st.sampled_from(self.free))
            base = data.draw(st.integers(0, target) | st.just(target))
            base -= base % self.kernels.tile_tokens
            self.paths[slot] = [p for p in path if p.start < target]
            self.world.admit(slot, tokens[:target], self.paths[slot], base)

    @precondition(lambda self: self.world.tokens)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        """What a row holds is stored behind what was held by reference, and held so as well."""
        slot = data.draw(st.sampled_from(sorted(self.world.tokens)))
        caches, path = self.world.caches, self.paths.setdefault(slot, [])
        base, offset = caches.rows.base(slot), caches.offset(slot)
        if offset == base or not caches.full:
            return
        over = [p for p in path if p.start < base < p.end]
        if over:
            self.cut(over[0], base)
        kept = [p for p in self.paths[slot] if p.end <= base]
        payload = caches.capture(slot, base, offset)
        assert payload is not None
        self.paths[slot] = [*kept, payload]
        caches.seal(slot, self.paths[slot], offset)
        caches.settle()

    @precondition(lambda self: any(self.paths.values()))
    @rule(data=st.data())
    def cut_what_is_referred_to(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from([path for path in self.paths.values() if path]))
        payload = data.draw(st.sampled_from(path))
        if payload.end - payload.start > 1:
            self.cut(payload, data.draw(st.integers(payload.start + 1, payload.end - 1)))

    def cut(self, payload: EdgePayload, at: int) -> None:
        """The tree splits it; whoever refers to it is told where it lies now."""
        halves = [cast("EdgePayload", half) for half in payload.split(at)]
        self.world.caches.copies.make(0)
        for path in [path for path, _ in self.stored] + list(self.paths.values()):
            for index in [i for i, held in enumerate(path) if held is payload]:
                path[index : index + 1] = halves
        for slot, path in self.paths.items():
            self.world.caches.repoint(slot, path)

    @precondition(lambda self: self.world.tokens)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        slots = sorted(data.draw(st.sets(st.sampled_from(sorted(self.world.tokens)), min_size=1)))
        feeds = {}
        for slot in data.draw(st.permutations(slots)):
            prefill = data.draw(st.booleans())
            tokens = data.draw(st.lists(TOKEN, min_size=1, max_size=14 if prefill else ROUND))
            kept = None if prefill else data.draw(st.integers(0, len(tokens)))
            feeds[slot] = Feed(tuple(tokens), kept, data.draw(st.booleans()))
        self.world.step(feeds, data.draw(st.sampled_from([None, 0, 1, 2])))

    @precondition(lambda self: any(self.world.tokens.values()))
    @rule(data=st.data())
    def draft(self, data: st.DataObject) -> None:
        keep = data.draw(st.integers(1, self.window + 1))
        held = [s for s, tokens in self.world.tokens.items() if tokens]
        self.world.check_view(
            data.draw(st.lists(st.sampled_from(held), min_size=1, unique=True)), keep
        )

    @precondition(lambda self: self.world.tokens)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.world.tokens)))
        offset, floor = len(self.world.tokens[slot]), self.world.floors[slot]
        target = data.draw(st.integers(-1, offset + 1))
        base = self.world.caches.rows.base(slot)
        for store in self.world.caches.full:
            assert store.can_restore(slot, None, target) == (base <= target <= offset)
        reachable = target == 0 or (0 < target <= offset and max(0, target - self.window) >= floor)
        for ring in self.world.caches.sliding:
            assert ring.can_restore(slot, None, target) == reachable
            assert reachable or not ring.restore(slot, None, target)
        if reachable and target >= base:
            self.world.rewind(slot, target)

    @precondition(lambda self: self.world.tokens)
    @rule(data=st.data())
    def capture(self, data: st.DataObject) -> None:
        slots = [s for s in self.world.tokens if not self.world.caches.rows.base(s)]
        if not slots:
            return
        slot = data.draw(st.sampled_from(sorted(slots)))
        tokens = self.world.tokens[slot]
        cuts = data.draw(st.sets(st.integers(0, len(tokens)), max_size=2)) | {0, len(tokens)}
        edges = list(zip(sorted(cuts), sorted(cuts)[1:], strict=False))
        path = [p for a, b in edges if (p := self.world.caches.capture(slot, a, b)) is not None]
        for payload in path:
            self.world.check_payload(payload, tokens)
        if path:
            self.stored.append((path, list(tokens)))

    @precondition(lambda self: self.world.tokens)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.world.tokens)))
        self.world.release(slot)
        self.paths.pop(slot, None)

    @invariant()
    def content(self) -> None:
        """C1: every layer of a slot at one offset, with exactly what was committed."""
        for slot in self.world.tokens:
            self.world.check_content(slot)
            self.world.check_prefix(slot)

    @invariant()
    def rooms(self) -> None:
        caches = self.world.caches
        for placement in (caches.rows, caches.rings):
            places = list(placement.places.values())
            assert len(set(places)) == len(places) == len(self.world.tokens)
        for store in caches.stores:
            for capacity, pool in store.pools.by_capacity.items():
                assert pool[0].shape[0] == store.pools.placement.rows(capacity) > 0

    def teardown(self) -> None:
        for slot in list(self.world.tokens):
            self.world.release(slot)
        assert live_bytes(self.world.caches) == 0


class LivesInAWindowOfOne(Lives):
    """A sliding layer sees a token and nothing before it: no tail, a restore of one token."""

    window = 1


class StrictLives(Lives):
    """Attention over tiles of positions, here of so few that every life has several."""

    kernels = Kernels("cpu", tile_tokens=4)


Lives.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestLives = Lives.TestCase
LivesInAWindowOfOne.TestCase.settings = settings(max_examples=12, stateful_step_count=25)
StrictLives.TestCase.settings = settings(max_examples=15, stateful_step_count=25)
TestStrictLives = StrictLives.TestCase
TestLivesInAWindowOfOne = LivesInAWindowOfOne.TestCase
TestLivesForLong = for_long(Lives, 60)
TestLivesInAWindowOfOneForLong = for_long(LivesInAWindowOfOne, 30)
TestStrictLivesForLong = for_long(StrictLives, 40)
