"""The calls that are no stream: model, health, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

import sapwood
from sapwood.v1 import cache_pb2
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import FakeDaemon, done, each, serving

pytestmark = pytest.mark.anyio


async def test_calls_over_a_unix_socket(
    connect: Connect, daemon: FakeDaemon, tmp_path: Path
) -> None:
    with serving(daemon, f"unix:{tmp_path}/d.sock") as address:
        async with connect(address) as client:
            assert await done(client.tokenize("seven nine")) == [2, 7, 9]
            assert await done(client.detokenize([7, 9])) == "seven nine"
            assert await done(client.get_model()) == sapwood.Model(
                name="demo",
                family="gemma4",
                fingerprint="c0ffee",
                context_tokens_max=4096,
                vocabulary_size=1024,
                eos_token_ids=(1, 106),
                drafter="demo-assistant",
                quantization="",
                numerics="fast",
                device="cpu",
                self_check="count",
            )
    tokenize, detokenize = daemon.requests
    assert tokenize.text == "seven nine"
    assert list(detokenize.token_ids) == [7, 9]


async def test_health(connect: Connect, daemon: FakeDaemon, address: str) -> None:
    async with connect(address) as client:
        assert await done(client.is_serving()) is True
        daemon.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await done(client.is_serving()) is False


STORED = [
    cache_pb2.StoredBytes(tier=cache_pb2.TIER_DEVICE, layer=cache_pb2.LAYER_KIND_FULL, bytes=64),
    cache_pb2.StoredBytes(tier=cache_pb2.TIER_DISK, layer=cache_pb2.LAYER_KIND_SLIDING, bytes=8),
    # Of a daemon that knows more tiers.
    cache_pb2.StoredBytes(tier=77, layer=cache_pb2.LAYER_KIND_FULL, bytes=1),  # type: ignore[arg-type]
]
STORED_VALUES = {
    (sapwood.Tier.DEVICE, sapwood.LayerKind.FULL): 64,
    (sapwood.Tier.DISK, sapwood.LayerKind.SLIDING): 8,
}


async def test_cache_stats(connect: Connect, daemon: FakeDaemon, address: str) -> None:
    counts = {"nodes": 1, "depth_tokens": 2, "leased_bytes": 3, "splits": 4, "merges": 5}
    counts |= {"evictions": 6, "hit_tokens": 7, "miss_tokens": 8}
    memory = {"budget_bytes": 15, "weights_bytes": 1, "live_bytes": 2, "snapshots_bytes": 3}
    memory |= {"workspace_bytes": 4, "free_bytes": 5, "segments_bytes": 6, "mlx_cache_bytes": 7}
    memory |= {"other_bytes": 8}
    daemon.stats = cache_pb2.GetCacheStatsResponse(
        stored=STORED, memory=cache_pb2.Memory(**memory), **counts
    )
    async with connect(address) as client:
        assert await done(client.cache_stats()) == sapwood.CacheStats(
            stored=STORED_VALUES, memory=sapwood.Memory(**memory), **counts
        )


async def test_describe_tree(connect: Connect, daemon: FakeDaemon, address: str) -> None:
    root: dict[str, Any] = {
        "id": 1,
        "start": 0,
        "end": 3,
        "leases": 2,
        "age_steps": 0,
        "pinned": True,
    }
    leaf: dict[str, Any] = {
        "id": 2,
        "start": 3,
        "end": 5,
        "leases": 0,
        "age_steps": 9,
        "pinned": False,
    }
    daemon.nodes = [
        cache_pb2.TreeNode(hit_count=4, stored=STORED, **root),
        cache_pb2.TreeNode(hit_count=0, parent_id=1, token_ids=[5, 6], text="ab", **leaf),
    ]
    async with connect(address) as client:
        nodes = [node async for node in each(client.describe_tree(include_tokens=True))]
    assert nodes == [
        sapwood.TreeNode(
            parent_id=None, hit_count=4, stored=STORED_VALUES, token_ids=(), text=None, **root
        ),
        sapwood.TreeNode(parent_id=1, hit_count=0, stored={}, token_ids=(5, 6), text="ab", **leaf),
    ]
    assert daemon.requests[0].include_tokens is True
