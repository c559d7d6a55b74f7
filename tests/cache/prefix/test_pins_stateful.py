"""The model of the tree with operators: what is pinned stays whole, what is cleared is gone."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.node import Lease
from tests.cache.prefix.test_tree_stateful import ROOTS, Path, TreeMachine
from tests.quick import for_long


class PinMachine(TreeMachine):
    """No path that is pinned here is longer than what a pin keeps of sliding layers."""

    def __init__(self) -> None:
        super().__init__()
        self.pins: list[tuple[bytes, Path, Lease]] = []

    @rule(root=st.sampled_from(ROOTS), data=st.data())
    def pin(self, root: bytes, data: st.DataObject) -> None:
        """T13: where all of it is there."""
        tokens = self.said_so_far(root, data)[:PIN_MARGIN_TOKENS]
        found = self.tree.pin(root, tokens, self.step()) if tokens else None
        assert (found is not None) == (bool(tokens) and self.is_whole(root, tokens))
        if found is not None:
            self.pins.append((root, tokens, found))
            self.lost_only_what_may_go()  # nothing, unless its cuts have crowded the tree

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.pins:
            _, _, lease = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
            self.tree.release(lease, self.step())
            self.lost_only_what_may_go()

    @rule(root=st.sampled_from(ROOTS), data=st.data())
    def clear(self, root: bytes, data: st.DataObject) -> None:
        """T14: what begins so and nobody holds, under whatever root."""
        tokens = self.said_so_far(root, data)
        self.lost_by(lambda: self.tree.clear(tokens).freed_bytes)
        for _, prefix, view in self.nodes():
            assert prefix[: len(tokens)] != tokens or view.leases or view.pinned, "T14"

    def is_whole(self, root: bytes, tokens: Path) -> bool:
        model = self.models[root]
        prefixes = {tokens[:end] for end in range(1, len(tokens) + 1)}
        return prefixes <= model.full and (not self.tree.window or prefixes <= model.sliding)

    def lost_only_what_may_go(self) -> int:
        lost = super().lost_only_what_may_go()
        for root, tokens, _ in self.pins:
            assert self.is_whole(root, tokens), f"T13: {tokens} is pinned"
        return lost

    def teardown(self) -> None:
        for _, _, lease in self.pins:
            self.tree.release(lease, self.step())
        super().teardown()


PinMachine.TestCase.settings = settings(TreeMachine.TestCase.settings, max_examples=40)
TestPins = PinMachine.TestCase
TestPinsForLong = for_long(PinMachine, 100)
