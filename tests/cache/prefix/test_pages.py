"""Devices that give whole pages and count buffers: what a cut adds, what may go, M1 and T6."""

from __future__ import annotations

from random import Random

import pytest

from sapwood.cache.geometry import buffer_bytes
from sapwood.cache.prefix.node import Lease
from sapwood.cache.prefix.tree import Tree
from tests.fakes import Tracker

PAGE_BYTES = 64
KINDS = 2


@pytest.mark.parametrize(
    ("asked", "taken"), [(0, 0), (1, 16384), (16384, 16384), (16385, 32768), (40_960, 49_152)]
)
def test_a_buffer_is_whole_pages(asked: int, taken: int) -> None:
    assert buffer_bytes(asked, 16384) == taken
    assert buffer_bytes(asked, 1) == asked


class Grove:
    """Random lives over one tree, in pages."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.tracker = Tracker(page_bytes=PAGE_BYTES)
        self.tree = Tree(window=4, nodes_max=1000)
        self.now = 0
        self.live: list[tuple[Lease, tuple[int, ...]]] = []
        self.grown = 0

    def step(self) -> int:
        self.now += 1
        return self.now

    def turn(self) -> None:
        random = self.random
        if random.random() < 0.3 or not self.live:
            tokens = tuple(random.randint(0, 1) for _ in range(random.randint(4, 40)))
            end = random.randint(0, self.tree.match(b"", tokens).matched)
            self.live.append((self.tree.lease(b"", tokens, end, self.step()), tokens))
        elif random.random() < 0.25:
            lease, _ = self.live.pop(random.randrange(len(self.live)))
            held = self.tree.bytes, self.tree.buffers
            self.tree.release(lease, self.step())
            assert (self.tree.bytes, self.tree.buffers) <= held, "a merge took more than its parts"
        elif random.random() < 0.1:
            self.tree.evict(self.tree.evictable().bytes // 2, self.step())
        else:
            self.extend(*random.choice(self.live))
        self.tree.check()
        assert self.tree.bytes == self.tracker.bytes
        assert self.tree.buffers == self.tracker.buffers

    def extend(self, lease: Lease, tokens: tuple[int, ...]) -> None:
        start = self.random.randint(0, min(lease.end, len(tokens) - 1))
        end = self.random.randint(start + 1, len(tokens))
        payload = self.tracker.log(tokens, start, end, self.random.choice((start, end)))
        cuts, _ = self.tree.cuts_max(lease, tokens, payload)
        weight = payload.full_bytes + payload.sliding_bytes
        held, buffers, splits = self.tree.bytes, self.tree.buffers, self.tree.splits
        turn_end = self.random.random() < 0.5
        self.tree.extend(lease, tokens, payload, self.step(), turn_end=turn_end)
        grown, more = self.tree.bytes - held, self.tree.buffers - buffers
        assert grown <= weight + cuts * KINDS * (PAGE_BYTES - 1), f"{cuts} cuts grew {grown}"
        assert more <= (1 + cuts) * KINDS, f"{cuts} cuts made {more} buffers"
        assert self.tree.splits - splits <= cuts
        self.grown = max(self.grown, grown - weight)


@pytest.mark.parametrize("seed", range(6))
def test_m1_cuts_take_no_more_than_is_reserved_for_them(seed: int) -> None:
    grove = Grove(seed)
    for _ in range(300):
        grove.turn()
    assert grove.grown > 0, "no cut ever took a page"


@pytest.mark.parametrize("seed", range(6))
def test_t6_buffers_are_evicted_as_bytes_are(seed: int) -> None:
    grove = Grove(seed)
    for _ in range(200):
        grove.turn()
    tree = grove.tree
    leased, spare = tree.buffers - tree.evictable().buffers, tree.evictable().buffers
    assert 0 < spare < tree.buffers
    assert tree.evict(0, grove.step(), spare + 1) == 0
    assert tree.evictable().buffers == spare, "what cannot be freed was begun"
    for wanted in (1, spare // 2):
        held = tree.buffers
        tree.evict(0, grove.step(), wanted)
        assert held - tree.buffers >= wanted
        tree.check()
    tree.evict(0, grove.step(), tree.evictable().buffers)
    assert tree.buffers == leased
    tree.check()
    assert tree.buffers == grove.tracker.buffers
