"""CacheService: what the tree holds, what is pinned in it, and what is taken out.

- It is for operators. Users have pins of their own, and see and give up no others.
- What is read is asked of the engine thread between two steps: what a reply stored is in the answer
  to whoever has read its finish, and the answers agree with each other. Roots are not nodes.
- What changes something goes to the core as a command (`Gate.ordered`).
- A pin whose caller leaves before it is told of it is given up.
- Token text is never sent: there is no caller yet who could be authorised to see it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from sapwood.cache.prefix.catalogue import Kind
from sapwood.cache.prefix.describe import NodeView
from sapwood.daemon.engine.loaded import Loaded, TreeView
from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.principals import Principal
from sapwood.daemon.rpc.times import timestamp_of
from sapwood.scheduler.events import (
    Cancel,
    Clear,
    Cleared,
    Pinned,
    PinView,
    Submit,
    Unpin,
    Unpinned,
)
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.v1 import cache_pb2 as pb


class CacheService:
    """Looks into and steers the prefix tree; for operators, all principals' parts of it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def behaviours(self) -> dict[str, Behaviour]:
        """By method: all of the contract."""
        return {
            "GetCacheStats": self._get_cache_stats,
            "DescribeTree": self._describe_tree,
            "PinPrefix": self._pin_prefix,
            "ListPins": self._list_pins,
            "UnpinPrefix": self._unpin_prefix,
            "EvictPrefix": self._evict_prefix,
            "ClearCache": self._clear_cache,
        }

    async def _get_cache_stats(
        self, _request: pb.GetCacheStatsRequest, _call: Call
    ) -> pb.GetCacheStatsResponse:
        self._gate.enter()
        stats, memory = await self._gate.ask(Loaded.view_account)
        return pb.GetCacheStatsResponse(
            nodes=stats.tree_nodes,
            depth_tokens=stats.tree_depth_tokens,
            stored=[
                *_stored(stats.tree_full_bytes, stats.tree_sliding_bytes),
                *_on_disk(stats.disk.bytes),
            ],
            leased_bytes=stats.tree_leased_bytes,
            pinned_bytes=stats.tree_pinned_bytes,
            splits=stats.tree_splits,
            merges=stats.tree_merges,
            evictions=sum(stats.tree_evictions.values()),
            hit_tokens=stats.prefix_cached_tokens,
            miss_tokens=sum(stats.prefix_recomputed_tokens.values()),
            memory=pb.Memory(
                budget_bytes=memory.budget,
                weights_bytes=memory.weights,
                live_bytes=memory.live,
                segments_bytes=memory.segments,
                snapshots_bytes=memory.snapshots,
                workspace_bytes=memory.workspace,
                mlx_cache_bytes=memory.mlx_cache,
                other_bytes=memory.other,
                free_bytes=memory.free,
            ),
        )

    async def _describe_tree(self, request: pb.DescribeTreeRequest, call: Call) -> None:
        self._gate.enter()
        view = await self._gate.ask(partial(Loaded.view_tree, tokens=request.include_tokens))
        roots = {node.id for node in view.nodes if node.parent is None}
        for node in view.nodes:
            if node.parent is not None:
                told = _node(node, roots, view)
                if node.tokens is not None:  # what users wrote: the method is operators' alone
                    told.token_ids.extend(node.tokens)
                    told.text = await self._gate.admission.detokenize(node.tokens)
                message = pb.DescribeTreeResponse(node=told)
                await call.write_in_time(message, self._gate.limits.write_s_max)

    async def _pin_prefix(self, request: pb.PinPrefixRequest, call: Call) -> pb.PinPrefixResponse:
        self._gate.enter()
        admission = self._gate.admission
        deadline = self._gate.deadline(call)
        admitted = await admission.admit_pin(request, deadline, call.principal)
        self._gate.enter()  # again: a drain may have begun while the prompt was tokenised
        assert admitted.pin is not None, "admit_pin made a request without a pin"
        undone = Cancel(admitted.id), Unpin(admission.draw_id(), admitted.pin.name)
        answer = await self._gate.ordered(Submit(admitted), admitted.id, Pinned, undone)
        return pb.PinPrefixResponse(pin=_pin(answer.pin))

    async def _list_pins(self, request: pb.ListPinsRequest, call: Call) -> pb.ListPinsResponse:
        self._gate.enter()
        limits = self._gate.limits
        size = min(request.page_size or limits.pins_page_default, limits.pins_page_max)
        after = _pins_before(request.page_token)
        pins = await self._pins_of(call.principal)
        rest = [pin for pin in pins if pin.number > after]
        page = rest[:size]
        token = str(page[-1].number) if len(rest) > len(page) else ""
        return pb.ListPinsResponse(pins=map(_pin, page), next_page_token=token)

    async def _unpin_prefix(
        self, request: pb.UnpinPrefixRequest, call: Call
    ) -> pb.UnpinPrefixResponse:
        self._gate.enter()
        own = await self._pins_of(call.principal)
        if not any(pin.name == request.pin_id for pin in own):
            raise _no_such_pin()
        id = self._gate.admission.draw_id()
        answer = await self._gate.ordered(Unpin(id, request.pin_id), id, Unpinned)
        if not answer.found:
            raise _no_such_pin()
        return pb.UnpinPrefixResponse()

    async def _pins_of(self, principal: Principal) -> list[PinView]:
        """Its own, and all of them for an operator; oldest first."""
        pins = await self._gate.ask(partial(Loaded.view_pins, now=time.monotonic()))
        return [p for p in pins if principal.is_operator or p.principal == principal.name]

    async def _evict_prefix(
        self, request: pb.EvictPrefixRequest, _call: Call
    ) -> pb.EvictPrefixResponse:
        self._gate.enter()
        order = await self._gate.admission.prefix_to_clear(request)
        self._gate.enter()
        answer = await self._gate.ordered(order, order.id, Cleared)
        return pb.EvictPrefixResponse(
            nodes=answer.nodes, freed_bytes=answer.freed_bytes, held_bytes=answer.held_bytes
        )

    async def _clear_cache(
        self, _request: pb.ClearCacheRequest, _call: Call
    ) -> pb.ClearCacheResponse:
        self._gate.enter()
        id = self._gate.admission.draw_id()
        answer = await self._gate.ordered(Clear(id), id, Cleared)
        return pb.ClearCacheResponse(
            nodes=answer.nodes, freed_bytes=answer.freed_bytes, held_bytes=answer.held_bytes
        )


def _node(node: NodeView, roots: set[int], view: TreeView) -> pb.TreeNode:
    return pb.TreeNode(
        id=node.id,
        parent_id=None if node.parent in roots else node.parent,
        start=node.start,
        end=node.end,
        stored=[
            *_stored(node.full_bytes, node.sliding_bytes),
            *_on_disk(view.on_disk.get(node.id, {})),
        ],
        leases=node.leases,
        age_steps=max(0, view.step - node.age),
        pinned=node.pinned,
        hit_count=node.hits,
        readers=view.readers.get(node.id, 0),
    )


def _stored(full_bytes: int, sliding_bytes: int) -> list[pb.StoredBytes]:
    return [
        pb.StoredBytes(tier=pb.TIER_DEVICE, layer=pb.LAYER_KIND_FULL, bytes=full_bytes),
        pb.StoredBytes(tier=pb.TIER_DEVICE, layer=pb.LAYER_KIND_SLIDING, bytes=sliding_bytes),
    ]


def _on_disk(sizes: Mapping[Kind, int]) -> list[pb.StoredBytes]:
    """Nothing where nothing is."""
    layers = {"full": pb.LAYER_KIND_FULL, "sliding": pb.LAYER_KIND_SLIDING}
    return [
        pb.StoredBytes(tier=pb.TIER_DISK, layer=layers[kind], bytes=size)
        for kind, size in sizes.items()
        if size
    ]


def _pin(pin: PinView) -> pb.Pin:
    ends = None if pin.expires_at is None else timestamp_of(pin.expires_at)
    size, public = pin.size, pin.public
    return pb.Pin(id=pin.name, tokens=pin.tokens, expire_time=ends, bytes=size, public=public)


def _no_such_pin() -> Refused:
    return Refused(Reason.PIN_NOT_FOUND, "there is no such pin", field="pin_id")


def _pins_before(token: str) -> int:
    """The number of the last pin of the page before; 0 for none. Raises Refused."""
    if not token:
        return 0
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        problem = "page_token is not one of a page before"
        raise Refused(Reason.BAD_REQUEST, problem, field="page_token")
    return int(token)
