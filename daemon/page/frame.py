"""What the live page is told, as a pure function of what the daemon has published.

- Rates are differences of two snapshots, so they need no counters of their own. Where nobody looked
  for a while, a rate is the mean of that while.
- Rows travel as lists, by columns that are told once (`columns`).
- No prompt, no token id, no name of a principal, a session or a request is in it: `Published` and
  `Glance` have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sapwood import __version__
from sapwood.daemon.engine.account import MEMORY_KINDS
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.engine import Published
from sapwood.daemon.engine.loaded import Glance, TreeGlance
from sapwood.daemon.engine.step_clock import StepTimes
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.stats import Stats
from sapwood.scheduler.stream_view import StreamView


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a daemon. Times in seconds, `at` by the engine's clock.

    state: loading, serving or ending. quiet_s: since a step ended, while there is work.
    held_back: requests that wait for a quota of their principal, before the queue.
    """

    at: float
    state: str
    uptime_s: float
    quiet_s: float
    held_back: int
    published: Published | None
    glance: Glance | None


class StreamRow(NamedTuple):
    """A StreamView, and what it did since the snapshot before, or since it came; None: nothing that
    can be told."""

    id: int
    state: str
    slot: int
    prompt: int
    cached: int
    processed: int
    emitted: int
    tokens_max: int
    parks: int
    age_s: float
    tokens_s: float | None
    depth: float | None
    accepted: float | None


class NodeRow(NamedTuple):
    """A SketchNode, with bytes on disk, slots that read it where it lies, and steps since used."""

    id: int
    parent: int | None
    start: int
    end: int
    full: int
    sliding: int
    disk: int
    below: int
    leases: int
    readers: int
    pinned: bool
    age: int
    hits: int
    hidden: int


class StepRow(NamedTuple):
    """StepTimes in milliseconds. begun: before the newest of the steps ended."""

    number: int
    begun: float
    plan: float
    emit: float
    draft: float
    target: float
    commit: float
    rows: int
    drafted: int
    read: int


class Point(NamedTuple):
    """Of the history: the `span_s` seconds up to `at`. cached: of prompt tokens; None: of none."""

    at: float
    span_s: float
    tokens_s: float
    cached: float | None


COLUMNS = {
    "streams": StreamRow._fields,
    "nodes": NodeRow._fields,
    "steps": StepRow._fields,
    "history": Point._fields,
}


def told_first(
    card: ModelCard | None, limits: Limits, history: tuple[Point, ...]
) -> dict[str, Any]:
    """What is told once to each who comes."""
    return {
        "version": __version__,
        "period_s": limits.page_period_s,
        "streams_max": limits.page_streams_max,
        "columns": COLUMNS,
        "model": None if card is None else _model(card),
        "history": history,
    }


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "family": card.family,
        "drafter": card.drafter,
        "quantization": card.quantization,
        "device": card.device,
        "context": card.facts.context_tokens_max,
    }


def point(before: Snapshot | None, now: Snapshot) -> Point | None:
    """Of the history, between two snapshots; None where there are no two."""
    if before is None or before.published is None or now.published is None:
        return None
    tokens_s = _speeds(before, now)["tokens_s"] or 0.0
    span_s = round(now.at - before.at, 2)
    return Point(round(now.at, 2), span_s, tokens_s, _shares(before, now)["cached"])


def told_now(
    before: Snapshot | None, long_before: Snapshot | None, now: Snapshot
) -> dict[str, Any]:
    """What changes all the time. before: what speeds are taken from, long_before: what shares of
    all streams are; None: there are none."""
    told: dict[str, Any] = {
        "at": round(now.at, 2),
        "state": now.state,
        "uptime_s": round(now.uptime_s, 1),
        "quiet_s": round(now.quiet_s, 1),
    }
    published = now.published
    if published is None:
        return told
    stats, memory = published.stats, published.memory
    told["counts"] = {
        "running": stats.requests_running,
        "waiting": stats.requests_waiting + now.held_back,
        "parked": stats.requests_parked,
        "steps": stats.steps,
    }
    told["rates"] = _speeds(before, now) | _shares(long_before, now)
    told["memory"] = {
        "budget": memory.budget,
        "kinds": [(kind, getattr(memory, kind)) for kind in MEMORY_KINDS],
    }
    told["tree"] = _tree_totals(stats)
    told["steps"] = _steps(published.steps)
    told["streams"] = _streams(before, now)
    return told


def told_tree(tree: TreeGlance) -> dict[str, Any]:
    """What is drawn of the tree, and how much of it that is."""
    sketch = tree.sketch
    nodes = [
        NodeRow(
            id=node.id,
            parent=node.parent,
            start=node.start,
            end=node.end,
            full=node.full_bytes,
            sliding=node.sliding_bytes,
            disk=sum(tree.on_disk.get(node.id, {}).values()),
            below=node.below_bytes,
            leases=node.leases,
            readers=tree.readers.get(node.id, 0),
            pinned=node.pinned,
            age=max(0, tree.step - node.age),
            hits=node.hits,
            hidden=node.hidden,
        )
        for node in sketch.nodes
    ]
    return {"nodes": nodes, "seen": sketch.nodes_seen, "total": sketch.nodes_total}


def _tree_totals(stats: Stats) -> dict[str, int]:
    return {
        "nodes": stats.tree_nodes,
        "full": stats.tree_full_bytes,
        "sliding": stats.tree_sliding_bytes,
        "disk": sum(stats.disk.bytes.values()),
        "leased": stats.tree_leased_bytes,
        "pinned": stats.tree_pinned_bytes,
        "evicted": sum(stats.tree_evictions.values()),
    }


def _speeds(before: Snapshot | None, now: Snapshot) -> dict[str, float | None]:
    """Over the time between the two."""
    old, new = _stats(before), _stats(now)
    if before is None or old is None or new is None or now.at <= before.at:
        return {"tokens_s": None, "prompt_s": None}
    seconds = now.at - before.at
    return {
        "tokens_s": round((new.generated_tokens - old.generated_tokens) / seconds, 1),
        "prompt_s": round((new.prompt_tokens - old.prompt_tokens) / seconds, 1),
    }


def _shares(before: Snapshot | None, now: Snapshot) -> dict[str, float | None]:
    """Likewise; a share of nothing is None."""
    old, new = _stats(before), _stats(now)
    if old is None or new is None:
        return {"cached": None, "accepted": None, "depth": None}
    prompt = new.prompt_tokens - old.prompt_tokens
    drafted = sum(new.draft_tokens) - sum(old.draft_tokens)
    return {
        "cached": _share(new.prefix_cached_tokens - old.prefix_cached_tokens, prompt),
        "accepted": _share(sum(new.accepted_tokens) - sum(old.accepted_tokens), drafted),
        "depth": _share(drafted, new.draft_depth.count - old.draft_depth.count),
    }


def _stats(snapshot: Snapshot | None) -> Stats | None:
    return snapshot.published.stats if snapshot and snapshot.published else None


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 3) if whole else None


def _steps(steps: tuple[StepTimes, ...]) -> list[StepRow]:
    if not steps:
        return []
    last = steps[-1]
    seconds = last.plan_s + last.emit_s + last.draft_s + last.target_s + last.commit_s
    ended_at = last.begun_at + seconds
    return [
        StepRow(
            number=step.number,
            begun=_ms(step.begun_at - ended_at),
            plan=_ms(step.plan_s),
            emit=_ms(step.emit_s),
            draft=_ms(step.draft_s),
            target=_ms(step.target_s),
            commit=_ms(step.commit_s),
            rows=step.rows,
            drafted=step.drafted,
            read=step.read_tokens,
        )
        for step in steps
    ]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _streams(before: Snapshot | None, now: Snapshot) -> list[StreamRow]:
    if now.glance is None:
        return []
    known = () if before is None or before.glance is None else before.glance.streams
    seconds = 0.0 if before is None else now.at - before.at
    old = {stream.id: stream for stream in known}
    return [_stream(old.get(stream.id), stream, seconds) for stream in now.glance.streams]


def _stream(old: StreamView | None, new: StreamView, seconds: float) -> StreamRow:
    if old is None and new.age_s < seconds:  # it came since
        old, seconds = _before_anything(new), new.age_s
    moved = _moved(old, new) if old is not None and seconds > 0 else {}
    return StreamRow(
        id=new.id,
        state=new.state,
        slot=new.slot,
        prompt=new.prompt_tokens,
        cached=new.cached_tokens,
        processed=new.processed_tokens,
        emitted=new.emitted_tokens,
        tokens_max=new.tokens_max,
        parks=new.parks,
        age_s=round(new.age_s, 1),
        tokens_s=round(moved["emitted"] / seconds, 1) if moved else None,
        depth=_share(moved["drafted"], moved["steps"]) if moved else None,
        accepted=_share(moved["accepted"], moved["drafted"]) if moved else None,
    )


def _before_anything(stream: StreamView) -> StreamView:
    return stream._replace(emitted_tokens=0, decode_steps=0, draft_tokens=0, accepted_tokens=0)


def _moved(old: StreamView, new: StreamView) -> Mapping[str, int]:
    return {
        "emitted": new.emitted_tokens - old.emitted_tokens,
        "steps": new.decode_steps - old.decode_steps,
        "drafted": new.draft_tokens - old.draft_tokens,
        "accepted": new.accepted_tokens - old.accepted_tokens,
    }
