"""CacheService for operators: what the tree holds and what memory is used for.

- Both are asked of the engine thread between two steps: what a reply stored is in the answer to
  whoever has read its finish, and the two answers agree with each other. Roots are not nodes.
- Token text is never sent: there is no caller yet who could be authorised to see it.
"""

from __future__ import annotations

from sapwood.cache.prefix.describe import NodeView
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.rules import unsupported
from sapwood.v1 import cache_pb2 as pb


class CacheService:
    """Looks into the prefix tree that all requests share."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def behaviours(self) -> dict[str, Behaviour]:
        """By method; those of the contract that are missing answer UNIMPLEMENTED."""
        return {"GetCacheStats": self._get_cache_stats, "DescribeTree": self._describe_tree}

    async def _get_cache_stats(
        self, _request: pb.GetCacheStatsRequest, _call: Call
    ) -> pb.GetCacheStatsResponse:
        self._gate.enter()
        stats, memory = await self._gate.ask(Loaded.view_account)
        return pb.GetCacheStatsResponse(
            nodes=stats.tree_nodes,
            depth_tokens=stats.tree_depth_tokens,
            stored=_stored(stats.tree_full_bytes, stats.tree_sliding_bytes),
            leased_bytes=stats.tree_leased_bytes,
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
        if request.include_tokens:
            raise unsupported("include_tokens")
        view = await self._gate.ask(Loaded.view_tree)
        roots = {node.id for node in view.nodes if node.parent is None}
        for node in view.nodes:
            if node.parent is not None:
                message = pb.DescribeTreeResponse(node=_node(node, roots, view.step))
                await call.write_in_time(message, self._gate.limits.write_s_max)


def _node(node: NodeView, roots: set[int], step: int) -> pb.TreeNode:
    return pb.TreeNode(
        id=node.id,
        parent_id=None if node.parent in roots else node.parent,
        start=node.start,
        end=node.end,
        stored=_stored(node.full_bytes, node.sliding_bytes),
        leases=node.leases,
        age_steps=max(0, step - node.age),
        hit_count=node.hits,
    )


def _stored(full_bytes: int, sliding_bytes: int) -> list[pb.StoredBytes]:
    return [
        pb.StoredBytes(tier=pb.TIER_DEVICE, layer=pb.LAYER_KIND_FULL, bytes=full_bytes),
        pb.StoredBytes(tier=pb.TIER_DEVICE, layer=pb.LAYER_KIND_SLIDING, bytes=sliding_bytes),
    ]
