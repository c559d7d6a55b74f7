"""Looks at the daemon for all who watch its page, and only while somebody does.

- One look a period, whoever and however many watch: each makes one message for all of them. Without
  viewers nothing runs; the history then has one point for all of the time between.
- The engine thread is asked for streams and tree between two steps, in bounded time, and only where
  something was counted since. While it does not answer, what was seen last is told again.
- A viewer gets the newest of each message: who is slow misses some, and nothing piles up.
- Touched on the event loop only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sapwood.daemon.engine.engine import Engine, EngineEnded
from sapwood.daemon.engine.loaded import Glance, Loaded
from sapwood.daemon.faults import described
from sapwood.daemon.page.frame import Point, Snapshot, point, told_first, told_now, told_tree
from sapwood.daemon.rpc.gate import Gate
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.stats import Stats

# Over so many periods speeds are taken, and shares, which there is less to count of.
SPEED_PERIODS, SHARE_PERIODS = 3, 30

_log = logging.getLogger(__name__)


class Feed:
    """The messages of one daemon's page. viewers: how many watch."""

    def __init__(self, engine: Engine, gate: Gate, limits: Limits) -> None:
        self._engine, self._gate, self._limits = engine, gate, limits
        self.viewers = 0
        self._looking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._newest: deque[Snapshot] = deque(maxlen=SHARE_PERIODS)
        self._history: deque[Point] = deque(maxlen=limits.page_history_max)
        self._looks = 0
        self._asked: asyncio.Future[Glance] | None = None
        self._asked_by: Stats | None = None  # what was counted when it was asked last
        self._glance: Glance | None = None
        # By name: the number of the look that it is of, and the message.
        self._messages: dict[str, tuple[int, bytes]] = {}

    @contextmanager
    def viewing(self) -> Iterator[bool]:
        """Watch until the end; False where as many watch as may."""
        if self.viewers >= self._limits.page_viewers_max:
            yield False
            return
        self.viewers += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_on())
            self._looking.add_done_callback(_looked)
        try:
            yield True
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._looking.cancel()
                self._rest()

    def greeting(self) -> bytes:
        """What each who comes is told first."""
        history = tuple(self._history)
        return stream_event("hello", told_first(self._gate.loaded_card, self._limits, history))

    async def after(self, seen: int) -> tuple[int, list[bytes]]:
        """What is newer than look number `seen`, and the number to ask with next."""
        while self._looks <= seen or not self._messages:
            await self._news.wait()
        newer = [text for number, text in self._messages.values() if number > seen]
        return self._looks, newer

    def _rest(self) -> None:
        """Nobody watches: whoever comes next sees what is then."""
        self._looking = None
        self._messages.clear()
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None

    async def _look_on(self) -> None:
        while True:
            due = time.monotonic() + self._limits.page_period_s
            await self._look()
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _look(self) -> None:
        fresh = await self._fresh_glance()
        snapshot = self._snapshot()
        previous = self._newest[-1] if self._newest else None
        if (latest := point(previous, snapshot)) is not None:
            self._history.append(latest)
        speeds_from, shares_from = map(self._since, (SPEED_PERIODS, SHARE_PERIODS))
        self._newest.append(snapshot)
        self._looks += 1
        told = told_now(speeds_from, shares_from, snapshot) | {"point": latest}
        self._messages["now"] = self._looks, stream_event("now", told)
        if fresh is not None and fresh.tree is not None:
            self._messages["tree"] = self._looks, stream_event("tree", told_tree(fresh.tree))
        self._news.set()
        self._news = asyncio.Event()

    def _since(self, periods: int) -> Snapshot | None:
        """The oldest of so many periods; None where nobody looked then."""
        oldest = time.monotonic() - (periods + 1) * self._limits.page_period_s
        return next((old for old in self._newest if old.at >= oldest), None)

    def _snapshot(self) -> Snapshot:
        gate, now = self._gate, time.monotonic()
        state = "loading" if gate.loading else "serving" if gate.serving else "ending"
        return Snapshot(
            at=now,
            state=state,
            uptime_s=now - gate.telemetry.began_at,
            quiet_s=self._engine.quiet_s,
            held_back=gate.accounts.waiting,
            published=self._engine.published,
            glance=self._glance,
        )

    async def _fresh_glance(self) -> Glance | None:
        """What the engine thread answers within a period; None: nothing new is known."""
        if self._asked is None and not self._ask():
            return None
        assert self._asked is not None, "it was asked"
        await asyncio.wait([self._asked], timeout=self._limits.page_period_s)
        if not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        try:
            fresh = asked.result()
        except EngineEnded:
            return None
        old = self._glance
        self._glance = replace(fresh, tree=fresh.tree or (old.tree if old else None))
        return fresh

    def _ask(self) -> bool:
        """Whether there was something to ask."""
        published = self._engine.published
        if published is None:
            return False
        untold = "tree" not in self._messages
        if published.stats == self._asked_by and not untold:
            return False
        turn = self._looks % self._limits.page_tree_periods == 0
        if turn or untold:
            self._asked_by = published.stats  # the tree is owed until it was asked for
        work = partial(Loaded.view_glance, limits=self._limits, tree=turn or untold)
        self._asked = asyncio.wrap_future(self._engine.ask(work))
        return True


def stream_event(name: str, told: Mapping[str, Any]) -> bytes:
    """One event of a stream of server-sent events; JSON has no line breaks."""
    return f"event: {name}\ndata: {json.dumps(told, separators=(',', ':'))}\n\n".encode()


def _looked(looking: asyncio.Task[None]) -> None:
    if not looking.cancelled() and (bug := looking.exception()) is not None:
        _log.error("the page is not told any more: %s", described(bug))
