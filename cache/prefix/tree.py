"""The prefix tree: which tokens have stored K/V, who lives on them, and what may go.

- One compressed radix tree per root key; different keys never meet.
- Every non-root node owns one Payload: full K/V of its whole edge, sliding K/V of its newest part.
- A lease protects its whole path: full K/V stays, sliding K/V is thinned only in need.
- match changes nothing. Using a path refreshes the age of its landing node only; ages are steps.
- Payloads go in by extend and never come out; path() lends them until the tree's next change.
- The tree counts its own bytes; the ledger's "snapshots" follows it, by adjust() after each change.
- A pin is a lease that nobody lives on: what it keeps, no eviction takes and no clearing.
- What is cleared goes at once, or with the last lease that lived on it then (clearing.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sapwood.cache.prefix.clearing import Swept, bury, sweep
from sapwood.cache.prefix.eviction import Eviction
from sapwood.cache.prefix.ghosts import Ghosts
from sapwood.cache.prefix.leases import advance, grant, keep_for_good, kept_tokens, revoke
from sapwood.cache.prefix.node import Lease, Node, Room
from sapwood.cache.prefix.radix import attach, climb, compact, descend, pack, split, trail
from sapwood.cache.prefix.renewal import cut, renew
from sapwood.cache.prefix.restore import longest_restorable, restorable
from sapwood.cache.prefix.snapshot import Payload
from sapwood.cache.prefix.views import TreeViews
from sapwood.cache.prefix.worth import ReuseRates


@dataclass(frozen=True, slots=True)
class Match:
    """What the tree has of a prompt: [0, tokens) can be restored, [0, matched) has its full K/V.

    [tokens, matched) has to be computed again because sliding K/V was thinned; what lies past
    `matched` because it was evicted (`evicted`), because the prompt left every known path
    (matched > 0), or because nothing like it was ever here.
    """

    tokens: int
    matched: int
    evicted: bool


class Tree(TreeViews):
    """Prefix trees of stored K/V under one count of bytes. `now` is the step, never decreasing."""

    def __init__(self, window: int, nodes_max: int, merge_tokens_max: int = 4096) -> None:
        """window: tokens of sliding K/V that a restore needs.

        nodes_max bounds what nobody leases; leased nodes are bounded by slots and context.
        merge_tokens_max: edges of one path merge up to this length when its lease ends, or settles.
        """
        assert window >= 0 and nodes_max > 0, f"window {window}, nodes_max {nodes_max}"
        super().__init__()
        self.window = window
        self._nodes_max = nodes_max
        self._merge_tokens_max = merge_tokens_max
        self._ghosts = Ghosts(nodes_max)
        self._rates = ReuseRates()
        self._eviction = Eviction(self._totals, self._ghosts, self._rates, window)
        self._due: list[Lease] = []
        self._now = 0

    @property
    def now(self) -> int:
        """The newest step that anything was done in."""
        return self._now

    # Finding and holding a path.

    def match(self, root: bytes, tokens: Sequence[int], limit: int | None = None) -> Match:
        """The longest prefix to restore, at most `limit` and len(tokens) - 1. Changes nothing.

        One token at least is left to evaluate: it makes the drafter's frontier row. Tokens packed
        once by `pack` are matched without converting them again.
        """
        top = self._roots.get(root)
        if top is None:
            return Match(0, 0, self._ghosts.at_root(root, tokens))
        node, matched = descend(top, tokens, 0, len(tokens))
        cap = max(0, min(matched, len(tokens) - 1, matched if limit is None else limit))
        evicted = matched == node.end and self._ghosts.at(node, tokens)
        return Match(longest_restorable(node, cap, self.window), matched, evicted)

    def lease(
        self, root: bytes, tokens: Sequence[int], end: int, now: int, margin: int = 0
    ) -> Lease:
        """Hold the path that covers [0, end), which the tree must have; end 0: just the root.

        `end` may lie inside an edge. In need, evict thins even the window that a lease stands on,
        unless keep() says that it is due to be restored. margin: of a lease that becomes a pin.
        """
        self._tick(now)
        top = self._roots.get(root)
        if top is None:
            top = Node(self._totals.draw_id(), None, pack(()), 0, 0, None, now, root=root)
            self._roots[root] = top
        node, matched = descend(top, tokens, 0, end)
        assert matched == end, f"cannot lease [0, {end}): only [0, {matched}) is here"
        node.age = now
        node.marked = node.marked or end == node.end
        return grant(node, end, self._totals, margin)

    def keep(self, lease: Lease) -> None:
        """A prompt is about to be served from what the lease covers: until hit() or release() no
        eviction takes anything of its path."""
        lease.due = True
        self._due.append(lease)

    def hit(self, lease: Lease) -> None:
        """Count a prompt that is served from what the lease covers, in every node on its way."""
        self._no_longer_due(lease)
        lease.hit_end, lease.used = lease.end, True
        self._rates.hit(lease)
        for node in trail(lease.node):
            node.hits += 1

    def path(self, lease: Lease) -> tuple[Payload, ...]:
        """The payloads that cover [0, lease.end), root to leaf; the last may reach past it.

        Lent until the next extend, release, evict or drop: each may consume them. Their full K/V
        lies in the same arrays until `reshaped` changes, as long as the lease lives.
        """
        assert lease.live, f"{lease}"
        return tuple(node.stored for node in trail(lease.node))

    def release(self, lease: Lease, now: int) -> None:
        """End the lease. What it computed stays; its path's small edges merge.

        Frees bytes only where more than nodes_max nodes are left.
        """
        assert lease.live, f"{lease}"
        self._tick(now)
        self._no_longer_due(lease)
        node = lease.node
        node.age = now
        node.marked = node.marked or lease.end == node.end
        if lease.used:
            self._rates.tick()
            self._rates.touch(node)
        revoke(lease, self._totals)
        node = bury(lease, self._totals, self._eviction)
        chain = trail(node)
        top = chain[0].above if chain else node
        compact(chain, self._merge_tokens_max, self._totals)
        self._forget_if_empty(top)
        self._make_room()

    # Pins, and what operators take away.

    def pin(self, root: bytes, tokens: Sequence[int], now: int) -> Lease | None:
        """Keep [0, len(tokens)) until release(), to be gone on from at its end or shortly before.

        All of its full K/V, and the sliding K/V of its last window and the margin before that.
        None, with nothing changed, where some of it is not here. Cuts two edges at most.
        """
        top, end = self._roots.get(root), len(tokens)
        kept = kept_tokens(end, self.window)
        if top is None:
            return None
        node, matched = descend(top, tokens, 0, end)
        if matched < end or not restorable(node, end, kept):
            return None
        if end < node.end:
            node = split(node, end, self._totals)
        first = end - kept
        upper = climb(node, first)
        if upper.start < first < upper.end:
            split(upper, first, self._totals)
        lease = self.lease(root, tokens, end, now)
        keep_for_good(lease, first, self._totals)
        self._make_room()
        return lease

    def unpinned_tokens(self, root: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """How many tokens a pin of a prompt would keep that none keeps yet: of full layers, of
        sliding ones."""
        full, top = len(tokens), self._roots.get(root)
        sliding = kept_tokens(full, self.window)
        first = full - sliding
        node, matched = (None, 0) if top is None else descend(top, tokens, 0, full)
        for each in trail(node) if node is not None else ():
            end = min(each.end, matched)
            full -= (end - each.start) * bool(each.pins)
            sliding -= max(0, end - max(each.start, first)) * bool(each.windows)
        return full, sliding

    def clear(self, tokens: Sequence[int] = (), running: Iterable[Lease] = ()) -> Swept:
        """Drop what begins with `tokens` and nobody holds, under whatever root; pins stay.

        What sequences hold of it goes when they end. The edge in which `tokens` end goes whole, and
        those above it that lead nowhere else. running: leases of sequences whose tokens begin so,
        which may have stored less.
        """
        ends = [descend(top, tokens, 0, len(tokens)) for top in self._roots.values()]
        tops = [node for node, matched in ends if matched == len(tokens)]
        swept = sweep(tops, running, self._totals, self._eviction)
        self._forget_empty_roots()
        return swept

    def clear_root(self, root: bytes, running: Iterable[Lease]) -> Swept:
        """Drop what lies under one root as clear() does. running: leases of all who are there."""
        top = self._roots.get(root)
        if top is None:
            return Swept()
        swept = sweep([top], running, self._totals, self._eviction)
        self._forget_empty_roots()
        return swept

    # Growing and shrinking.

    def extend(
        self,
        lease: Lease,
        tokens: Sequence[int],
        payload: Payload,
        now: int,
        *,
        turn_end: bool = False,
    ) -> None:
        """Store [payload.start, payload.end) of the leased path; the lease then covers it.

        Takes `payload`, which may begin before the lease's end and repeat what others stored: the
        tree keeps one copy, the one with more sliding K/V. `tokens` is the path from 0 to
        payload.end or further. turn_end marks the end as worth a window later (a prompt's end).
        """
        start, end = payload.start, payload.end
        assert lease.live and start <= lease.end, f"[{start}, {end}) does not extend {lease}"
        assert start < end <= len(tokens), f"[{start}, {end}) of {len(tokens)} tokens"
        self._totals.taken_bytes += payload.full_bytes + payload.sliding_bytes
        self._tick(now)
        node, matched = descend(climb(lease.node, start), tokens, start, end)
        assert matched >= min(end, lease.end), f"tokens leave {lease} at {matched}"
        known, fresh = cut(payload, matched)
        # Shape first, while `node` is where descend left it: renewing splits nodes too, and the
        # fresh leaf hangs below them, so it stays right whatever is split above it.
        if fresh is not None:
            if matched < node.end:
                node = split(node, matched, self._totals)
            leaf = attach(node, pack(tokens[matched:end]), fresh, now, self._totals)
            leaf.doomed = lease.doomed
            self._totals.doomed += leaf.doomed
            self._rates.begin(leaf)
        if known is not None:
            renew(node, known, self._totals)
        # Sought only now: a renewal may have put a new node where the end lies.
        landing = climb(node, end - 1) if fresh is None else leaf
        # The lease moves before room is made, or the leaf that it comes for could be crowded out.
        self._land(lease, landing, end, now, turn_end)
        self._make_room()

    def settle(self, lease: Lease) -> None:
        """Merge the small edges of a live lease's path, as release() does."""
        compact(trail(lease.node), self._merge_tokens_max, self._totals)

    def evict(self, bytes_wanted: int, now: int, buffers_wanted: int = 0) -> int:
        """Free at least so many bytes and buffers, or nothing where less can go; bytes freed.

        May free somewhat more, so that not every call is a pass of its own.
        """
        self._tick(now)
        evictable = self.evictable()
        wanted = Room(max(0, bytes_wanted), max(0, buffers_wanted))
        if wanted == (0, 0) or wanted.bytes > evictable.bytes or wanted.buffers > evictable.buffers:
            return 0
        freed = self._eviction.free(wanted, evictable)
        self._forget_empty_roots()
        return freed

    def evictable(self) -> Room:
        """All that evict can free in need: windows that live leases stand on count.

        But for those of pins, and those that are due to be restored.
        """
        due, totals = self._due_room(), self._totals
        return Room(
            totals.bytes - totals.leased_bytes - totals.kept_bytes - due.bytes,
            totals.buffers - totals.leased_buffers - totals.kept_buffers - due.buffers,
        )

    def cuts_max(self, lease: Lease, tokens: Sequence[int], payload: Payload) -> tuple[int, int]:
        """How often extend() may cut what is stored, or `payload`, in two; and what pins keep.

        A cut makes a buffer, and begins a page, of either kind of layer. Changes nothing.
        """
        # Where it leaves what is known, where it parts from it, at a turn's end.
        start, cuts, pinned = payload.start, 3, 0
        node, _ = descend(climb(lease.node, start), tokens, start, payload.end)
        while node.end > start:
            cuts += 3  # a renewal's own, and those around it
            pinned += 3 * bool(node.pins)
            node = node.above
        return cuts, pinned

    # Inside.

    def _tick(self, now: int) -> None:
        assert now >= self._now, f"step {now} after step {self._now}"
        self._now = now

    def _due_room(self) -> Room:
        """Sliding K/V of paths that are due."""
        held = {
            node.id: node.stored.sliding_bytes
            for lease in self._due
            for node in trail(lease.node)
            if not node.windows
        }
        return Room(sum(held.values()), sum(map(bool, held.values())))

    def _no_longer_due(self, lease: Lease) -> None:
        if lease.due:
            lease.due = False
            self._due.remove(lease)

    def _make_room(self) -> None:
        if self._totals.nodes > self._nodes_max:
            self._eviction.shrink(self._nodes_max)
            self._forget_empty_roots()

    def _forget_empty_roots(self) -> None:
        for top in list(self._roots.values()):
            self._forget_if_empty(top)

    def _forget_if_empty(self, top: Node) -> None:
        if not top.children and not top.leases:
            del self._roots[top.root]

    def _land(self, lease: Lease, node: Node, end: int, now: int, turn_end: bool) -> None:
        """`node` holds [.., end), which extend just stored: move lease, age and mark there."""
        if turn_end and end < node.end:
            node = split(node, end, self._totals)
        node.marked = node.marked or turn_end
        lease.used = True
        if turn_end:
            lease.turn_ends += 1
            if node.end_kind == "parted":
                node.end_kind = "prompt" if lease.turn_ends == 1 else "reply"
        self._rates.touch(node)
        if end >= lease.end:
            node.age = now
            advance(lease, node, end, self._totals)
