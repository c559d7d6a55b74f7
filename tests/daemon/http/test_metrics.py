"""/metrics against what the clients saw, the names of the contract, and the health pages."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import Counter

import anyio
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sapwood.model.prompt.errors import GivenUp, never
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.stats import Stats
from sapwood.v1 import cache_pb2
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import Running, collect, open_rpcs, prompt_of, running, stats, until
from tests.daemon.fakes import ByteTokenizer, FakeDevice

pytestmark = pytest.mark.anyio

HISTOGRAMS = {
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_queue_seconds",
    "request_prefill_seconds",
    "request_decode_seconds",
    "request_duration_seconds",
    "step_duration_seconds",
    *("rows_per_step", "tokens_per_step", "draft_depth"),
}
COUNTERS = {
    *("requests", "requests_rejected", "rpcs"),
    "prompt_tokens",
    "generated_tokens",
    "prefix_cached_tokens",
    "prefix_recomputed_tokens",
    *("draft_rounds", "draft_tokens", "accepted_tokens"),
    *("tree_evictions", "tree_splits", "tree_merges"),
    *("page_in_bytes", "page_out_bytes", "disk_quarantined"),
    *("self_check_rounds", "self_check_mismatches"),
}
GAUGES = {
    "requests_running",
    "requests_waiting",
    "requests_parked",
    *("parked_rows", "tree_nodes"),
    "tree_depth_tokens",
    *("tree_bytes", "disk_state"),
    *("tree_leased_bytes", "tree_pinned_bytes"),
    *("build_info", "model_info", "drafter_info", "uptime_seconds", "model_loading"),
    *("memory_bytes", "memory_budget_bytes"),
    "memory_buffers",
    "memory_unaccounted_bytes",
}
# Not a counter by type: in OpenMetrics its family would be the gauge's.
UNTYPED = {"requests_parked_total"}
LABELS = {
    "outcome": {"stop", "length", "stop_sequence", "cancelled", "deadline", "rejected", "failed"},
    "reason": {
        *("BAD_REQUEST", "BAD_SAMPLING", "BAD_CONSTRAINT", "BAD_TOKEN_ID", "EMPTY_PROMPT"),
        *("CONTEXT_TOO_LONG", "SESSION_NOT_FOUND", "PIN_NOT_FOUND", "SESSION_BUSY", "NO_DRAFTER"),
        *("UNSUPPORTED", "SESSION_EXISTS", "QUEUE_FULL", "CLIENT_QUOTA", "OUT_OF_MEMORY"),
        *("SLOW_READER", "MODEL_LOADING", "DRAINING", "ENGINE_FAILED"),
    },
    "position": {str(n) for n in range(1, 9)},
    "tier": {"device", "disk"},
    "state": {"off", "ok", "degraded"},
    "layer": {"full", "sliding"},
    "kind": {
        *("weights", "live", "segments", "snapshots", "workspace", "mlx_cache", "other", "free"),
        *("near_tie", "fault"),
    },
    "phase": {"plan", "emit", "build", "device", "commit"},
}
PROCESS_LABELS = ("version", "name", "family", "fingerprint", "method", "code")


async def get(run: Running, request: bytes) -> tuple[int, str, str]:
    """Status, head and body of one exchange with the scrape endpoint."""
    reader, writer = await asyncio.open_connection(run.metrics.host, run.metrics.port)
    writer.write(request)
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]) if head else 0, head, body


async def scrape(run: Running) -> str:
    status, head, body = await get(run, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200 and "text/plain" in head
    return body


def values(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{v}}}" for v in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_counters_equal_what_the_clients_saw() -> None:
    async with running() as run:
        prompts = [tuple(range(5, 5 + 40 + n)) for n in range(6)]
        calls = [run.generation.Generate(prompt_of(*p, max_tokens=30)) for p in prompts]
        replies = await asyncio.gather(*(collect(call) for call in calls))
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(run.generation.Generate(pb.GenerateRequest()))
        measured = values(await scrape(run))
    usages = [events[-1].finish.usage for _, _, events in replies]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    cached_tokens = sum(usage.cached_tokens for usage in usages)
    assert measured["sapwood_requests_total{length}"] == 6
    assert measured["sapwood_requests_total{rejected}"] == 1
    assert measured["sapwood_prompt_tokens_total"] == prompt_tokens
    assert measured["sapwood_prefix_cached_tokens_total"] == cached_tokens > 0
    assert measured["sapwood_generated_tokens_total"] == 180
    assert measured["sapwood_draft_rounds_total"] == sum(usage.rounds for usage in usages)
    for name in ("draft_tokens", "accepted_tokens"):
        by_position = [measured[f"sapwood_{name}_total{{{n}}}"] for n in range(1, 9)]
        assert sum(by_position) == sum(getattr(usage, name) for usage in usages)
    assert measured["sapwood_time_to_first_token_seconds_count"] == 6
    phases = {measured[f"sapwood_step_duration_seconds_count{{{p}}}"] for p in LABELS["phase"]}
    assert len(phases) == 1
    recomputed = sum(v for k, v in measured.items() if k.startswith("sapwood_prefix_recomputed"))
    assert recomputed == prompt_tokens - cached_tokens


async def test_what_is_rejected_is_counted_by_its_reason() -> None:
    """At the door and in the core alike; what a bug of ours ends is failed, not rejected."""
    limits = Limits(slots_max=1, queued_max=1, queue_s_max=0.5)
    tokenizer = ByteTokenizer()
    async with running(FakeDevice(gated=True), limits, tokenizer=tokenizer) as run:
        for bad in (
            pb.GenerateRequest(),
            pb.GenerateRequest(text="x", sampling=pb.Sampling(top_p=2)),
            prompt_of(99_999),
            prompt_of(5, json_schema="{}"),
            *[prompt_of(*[5] * 4096)] * 2,
        ):
            await refused(run, bad)
        tokenizer.encode_text = broken  # type: ignore[method-assign, assignment]
        await refused(run, pb.GenerateRequest(text="x"))
        runs = run.generation.Generate(prompt_of(5, max_tokens=4000))
        await until(lambda: stepped(run) and stats(run).requests_running == 1)
        waits = asyncio.ensure_future(refused(run, prompt_of(6)))
        await until(lambda: stepped(run) and stats(run).requests_waiting == 1)
        finds_it_full = asyncio.ensure_future(refused(run, prompt_of(7)))
        await until(lambda: stepped(run) and finds_it_full.done() and waits.done())
        measured = values(await scrape(run))
        runs.cancel()
    prefix, counted = "sapwood_requests_rejected_total{", {}
    for name, value in measured.items():
        if name.startswith(prefix) and value:
            counted[name.removeprefix(prefix)[:-1]] = value
    assert counted == {
        "EMPTY_PROMPT": 1,
        "BAD_SAMPLING": 1,
        "BAD_TOKEN_ID": 1,
        "UNSUPPORTED": 1,
        "CONTEXT_TOO_LONG": 2,
        "QUEUE_FULL": 2,  # one at once, one that waited
    }
    assert measured["sapwood_requests_total{rejected}"] == sum(counted.values())
    assert measured["sapwood_requests_total{failed}"] == 1


async def refused(run: Running, request: pb.GenerateRequest) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await collect(run.generation.Generate(request))


def broken(text: str, tokens_max: int | None = None, given_up: GivenUp = never) -> list[int]:
    raise RuntimeError(text, tokens_max, given_up)


def stepped(run: Running) -> bool:
    """One more step: between two the core takes requests in, and looks how long they waited."""
    run.device.step()
    return True


async def test_counters_move_before_the_message_is_written() -> None:
    async with running(FakeDevice(gated=True)) as run:
        events = aiter(run.generation.Generate(prompt_of(5, max_tokens=50)))
        seen = 0
        for _ in range(10):
            run.device.step()
            event = await anext(events)
            seen += len(event.delta.token_ids)
            assert values(await scrape(run))["sapwood_generated_tokens_total"] >= seen


async def test_the_names_and_label_values_are_those_of_the_contract() -> None:
    """All of them from the first scrape on, and no `_created` series."""
    async with running() as run:
        text = await scrape(run)
    ours = [f for f in text_string_to_metric_families(text) if not f.name.startswith("process_")]
    families = {family.name.removeprefix("sapwood_"): family for family in ours}
    kinds = Counter(family.type for family in families.values())
    assert families.keys() == HISTOGRAMS | COUNTERS | GAUGES | UNTYPED
    assert kinds == {
        "histogram": len(HISTOGRAMS),
        "counter": len(COUNTERS),
        "gauge": len(GAUGES),
        "unknown": len(UNTYPED),
    }
    assert "_created" not in text
    seen: dict[str, set[str]] = {}
    for family in families.values():
        assert family.documentation
        for sample in family.samples:
            assert re.fullmatch(r"sapwood_[a-z_]+", sample.name)
            assert not sample.name.startswith("sapwood_sapwood")
            for label, value in sample.labels.items():
                seen.setdefault(label, set()).add(value)
    assert {label: seen[label] for label in LABELS} == LABELS
    evictions = {"thinned", "evicted", "crowded", "cleared", "expired"}
    assert seen["cause"] == {"diverged", "evicted", "thinned", "cold"} | evictions
    assert seen.keys() == {*LABELS, "cause", "le", *PROCESS_LABELS}


async def test_histograms_are_cumulative_and_end_at_infinity() -> None:
    async with running() as run:
        await collect(run.generation.Generate(prompt_of(5, max_tokens=30)))
        text = await scrape(run)
    for family in text_string_to_metric_families(text):
        if family.type == "histogram":
            series: dict[str, list[float]] = {}
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    series.setdefault(sample.labels.get("phase", ""), []).append(sample.value)
            for counts in series.values():
                assert counts == sorted(counts)


async def test_promtool_finds_nothing_to_say() -> None:
    async with running() as run:
        await collect(run.generation.Generate(prompt_of(5, max_tokens=5)))
        text = await scrape(run)
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = await anyio.run_process(
            [promtool, "check", "metrics"], input=text.encode(), check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    # What promtool checks that matters to us, for machines without it.
    for family in text_string_to_metric_families(text):
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_milliseconds"))
        assert family.type == "unknown" or not family.name.endswith("_total")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


async def test_health_pages_follow_the_daemon() -> None:
    async with running() as run:
        assert (await get(run, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        assert (await get(run, b"GET /readyz?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        assert (await get(run, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[2] == ""
        assert (await get(run, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 404
        assert (await get(run, b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 405
        assert (await get(run, b"x" * 10_000 + b"\r\n\r\n"))[0] == 400
        run.device.fault = RuntimeError()
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(run.generation.Generate(prompt_of(5)))
        assert (await get(run, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 503
        assert (await get(run, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 503


async def test_cache_stats_tell_the_same_story() -> None:
    async with running() as run:
        prompt = tuple(range(5, 60))
        for _ in range(2):
            await collect(run.generation.Generate(prompt_of(*prompt, max_tokens=3)))
        await until(lambda: settled(stats(run)))
        reply = await run.cache.GetCacheStats(cache_pb2.GetCacheStatsRequest())
        measured = values(await scrape(run))
    assert reply.hit_tokens == measured["sapwood_prefix_cached_tokens_total"] == 54
    assert reply.hit_tokens + reply.miss_tokens == 110
    assert reply.nodes == measured["sapwood_tree_nodes"] > 0
    memory = reply.memory
    assert sum(value for field, value in memory.ListFields() if field.number > 1) == (
        memory.budget_bytes
    )
    assert sum(stored.bytes for stored in reply.stored) == memory.snapshots_bytes


async def test_cache_stats_and_tree_hold_a_reply_whose_finish_was_read() -> None:
    async with running() as run:
        for first in (5, 105, 205):
            await collect(run.generation.Generate(prompt_of(*range(first, first + 40))))
            reply = await run.cache.GetCacheStats(cache_pb2.GetCacheStatsRequest())
            assert reply.leased_bytes == reply.memory.live_bytes == 0
            nodes = run.cache.DescribeTree(cache_pb2.DescribeTreeRequest())
            assert await collect_nodes(nodes) == reply.nodes


async def test_metrics_of_the_last_step_are_there_before_the_engine_sleeps() -> None:
    async with running(limits=Limits(idle_s_max=3600)) as run:
        await collect(run.generation.Generate(prompt_of(*range(5, 45))))
        with anyio.fail_after(5):
            await until(lambda: settled(stats(run)))
        measured = values(await scrape(run))
    assert measured["sapwood_tree_depth_tokens"] == 40 + 511
    assert measured["sapwood_tree_leased_bytes"] == 0


def settled(now: Stats) -> bool:
    """Nothing runs, and no bytes are promised to a capture under way."""
    tree_bytes = now.tree_full_bytes + now.tree_sliding_bytes
    return now.memory.live == 0 and now.memory.snapshots == tree_bytes


async def test_describe_tree_streams_parents_before_children_and_no_tokens() -> None:
    async with running() as run:
        shared = tuple(range(5, 60))
        for last in (100, 101, 102):
            await collect(run.generation.Generate(prompt_of(*shared, last, 9, max_tokens=3)))
        nodes = [r.node async for r in run.cache.DescribeTree(cache_pb2.DescribeTreeRequest())]
    seen: set[int] = set()
    for node in nodes:
        assert not node.HasField("parent_id") or node.parent_id in seen
        assert node.HasField("parent_id") == (node.start > 0)
        assert node.end > node.start
        assert not node.token_ids
        seen.add(node.id)
    assert len(seen) == len(nodes) >= 4


async def test_a_tree_is_described_while_the_device_works() -> None:
    async with running(FakeDevice(gated=True), Limits()) as run:
        call = run.generation.Generate(prompt_of(*range(5, 60), max_tokens=900))
        described = asyncio.ensure_future(
            collect_nodes(run.cache.DescribeTree(cache_pb2.DescribeTreeRequest()))
        )
        while not described.done():
            run.device.step()
            await asyncio.sleep(0.002)
        assert described.result() >= 0
        assert open_rpcs(run) == 1
        call.cancel()


async def collect_nodes(
    call: grpc.aio.UnaryStreamCall[cache_pb2.DescribeTreeRequest, cache_pb2.DescribeTreeResponse],
) -> int:
    return len([response async for response in call])
