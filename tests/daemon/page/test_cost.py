"""What the live page costs: processor time, with 32 streams and as many viewers as there may be.

Of the thread that looks, which here answers for the engine too: everything that the page takes is
in it, from the tree to the last socket, and nothing else. Not counted: waking up the engine's own
thread. Prints what it finds.
"""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from sapwood.daemon.engine.engine import Published
from sapwood.daemon.engine.step_clock import STEPS_KEPT, StepTimes
from sapwood.daemon.page.feed import Feed
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.events import Request, Submit
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.daemon.conftest import until
from tests.daemon.fakes import FakeDevice, make_loader
from tests.daemon.page.viewers import EVENTS, shown

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(900)]

STREAMS = 32
LOOKS = 30
SHARE_MAX = 0.01  # of a core
NODES_LARGE = 20_000


class WorkedEngine:
    """Answers at once, of a core whose streams are all in decode, and publishes what it counts."""

    def __init__(self, limits: Limits, nodes: int) -> None:
        device = FakeDevice()
        self.loaded = make_loader(device, replace(limits, tree_nodes_max=2 * nodes))()
        assert isinstance(self.loaded.core, Core)
        self._grow(self.loaded.core._tree, device, nodes)
        self.quiet_s, self.asked = 0.0, 0
        self._device = device
        for number in range(STREAMS):
            prompt = (*range(5, 60), 60 + number, *range(20))
            request = Request(number, b"root", prompt, 2000, Sampling(), ignore_eos=True)
            self.loaded.core.handle(Submit(request), time.monotonic())
        while self.step() < STREAMS:
            pass

    def _grow(self, tree: Any, device: FakeDevice, nodes: int) -> None:
        random = Random(3)
        while tree.nodes < nodes:
            head = tuple(range(5, 40)) + (random.randrange(40),) * 9
            path = (*head, *(random.randrange(300) for _ in range(6)))
            found = tree.match(b"root", (*path, 0)).tokens
            lease = tree.lease(b"root", path, found, tree.now)
            sliding = max(found, len(path) - 16)
            log = device.tracker.log(path, found, len(path), sliding)
            tree.extend(lease, path, log, tree.now)
            tree.release(lease, tree.now)

    def step(self) -> int:
        """One more; how many rows were in decode."""
        core, now = self.loaded.core, time.monotonic()
        plan = core.plan(now)
        core.take_effects()
        assert plan is not None
        core.commit(plan, self._device.wait(plan), now)
        stats, memory = self.loaded.view_account()
        step = StepTimes(1, 0.0, 0.001, 0.001, 0.01, 0.02, 0.001, STREAMS, 80, 0)
        self.published = Published(stats, {}, memory, (step,) * STEPS_KEPT)
        return len(plan.decodes)

    def ask(self, work: Any) -> Future[Any]:
        self.asked += 1
        answer: Future[Any] = Future()
        answer.set_result(work(self.loaded))
        return answer


def read_all(sockets: list[socket.socket]) -> None:
    """Each in a thread of its own, until the other side closes."""

    def read(one: socket.socket) -> None:
        with suppress(OSError):  # closed here while it waits
            while one.recv(1 << 16):
                pass

    for each in sockets:
        threading.Thread(target=read, args=(each,)).start()


@pytest.mark.parametrize("nodes", [300, NODES_LARGE])
async def test_a_page_takes_a_hundredth_of_a_core_at_most(
    nodes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = Limits(page_period_s=0.05, http_request_s_max=300.0)
    engine = WorkedEngine(limits, nodes)
    gate = SimpleNamespace(
        loading=False,
        serving=True,
        loaded_card=engine.loaded.card,
        telemetry=SimpleNamespace(began_at=0.0),
        accounts=SimpleNamespace(waiting=0),
    )
    feed = Feed(engine, gate, limits)  # type: ignore[arg-type]
    async with shown(feed, limits) as address:
        with ExitStack() as stack:
            viewers = [
                stack.enter_context(socket.create_connection((address.host, address.port)))
                for _ in range(limits.page_viewers_max)
            ]
            for viewer in viewers:
                viewer.sendall(EVENTS)
            read_all(viewers)
            await until(lambda: feed.viewers == len(viewers) and feed._looks > 2)
            stepped_s, begun_s, looks = 0.0, time.thread_time(), feed._looks
            while feed._looks < looks + LOOKS:
                before, at = feed._looks, time.thread_time()
                engine.step()  # so that there is something new each time
                stepped_s += time.thread_time() - at
                await feed.after(before)
            spent_s = time.thread_time() - begun_s - stepped_s
            for viewer in viewers:
                viewer.shutdown(socket.SHUT_RDWR)
    period_s = spent_s / (feed._looks - looks)
    share = period_s / Limits().page_period_s
    with capsys.disabled():
        print(f"\n{nodes} nodes: {1000 * period_s:.2f} ms a look, {share:.2%} of a core")
    assert share <= SHARE_MAX
