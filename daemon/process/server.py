"""One daemon in an event loop: listeners, engine, and the order of starting and stopping them.

- Start: bind everything, answer MODEL_LOADING, load on the engine thread, then SERVING, ready file
  and ready line. A port in use is known before minutes of loading.
- Drain (D1): NOT_SERVING, watches end, new requests get DRAINING; what runs may finish for
  `drain_s_max`, the rest gets DRAINING too; then server, engine thread, files. Exit 0.
- Fault (D3) and stall (D4): every open RPC gets ENGINE_FAILED within a second, then exit 1.
- A second call of drain() cuts a drain short. Our sockets' files go while the listeners are still
  open: from then on the paths are the next daemon's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

import anyio
import anyio.to_thread

from sapwood.daemon.engine.account import MemoryUse
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.engine import Engine, Fault
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.faults import described
from sapwood.daemon.http.endpoint import HttpAnswer, ScrapeEndpoint
from sapwood.daemon.http.metrics import registry
from sapwood.daemon.page.feed import Feed
from sapwood.daemon.page.places import page_places
from sapwood.daemon.process.credentials import Credentials
from sapwood.daemon.process.scrape_door import scrape_door
from sapwood.daemon.process.servers import Servers
from sapwood.daemon.rpc.callers import Callers
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.guard import Entry, Guard
from sapwood.daemon.rpc.health_service import Health
from sapwood.daemon.rpc.principals import Directory
from sapwood.daemon.rpc.refusals import draining, engine_failed
from sapwood.daemon.rpc.revoked import Revoked
from sapwood.daemon.rpc.services import built_services, make_handlers
from sapwood.daemon.rpc.watch import CallWatch
from sapwood.daemon.settings.addresses import Address, TcpAddress, is_loopback
from sapwood.daemon.settings.config import Config, names_without_tokens
from sapwood.daemon.telemetry.request_log import log_call
from sapwood.daemon.telemetry.tracing import spans_from
from sapwood.scheduler.events import Drain, Effect

FLUSH_S = 0.3  # for statuses on their way to clients once their handlers have returned
FAILED_S = 0.5  # for handlers to return once their mailboxes failed
SPANS_S = 0.3  # for spans that no collector has yet
# All of the above and the engine's last step. D1 promises 2 s past the drain: the rest is for what
# comes before and after, the signal's way to the loop and the process's end with all its memory.
LEAVE_S = 1.2
_ANY_PORT = TcpAddress("127.0.0.1", 0)

_log = logging.getLogger(__name__)


class Ending(Enum):
    """Why the daemon stops."""

    DRAIN = "drain"
    FAULT = "fault"


class Daemon:
    """One daemon in this event loop."""

    def __init__(self, config: Config, load: Callable[[], Loaded]) -> None:
        self._config = config
        self._limits = config.limits
        self._engine = Engine(load, self, config.limits)
        self._health = Health(built_services())
        self._gate = Gate(self._engine, config.limits, config.draft_depth)
        self._spans = spans_from(os.environ)
        if self._spans is not None:
            self._gate.telemetry.add_sink(self._spans.export)  # first: others tell of its trace
        self._gate.telemetry.add_sink(log_call)
        self._scrape = ScrapeEndpoint(
            registry(self._engine, self._gate),
            self.is_healthy,
            lambda: self._gate.serving,
            config.limits,
            self._page() if config.page else {},
        )
        handlers = make_handlers(self._gate, self._health, reflection=config.reflection)
        self._watch = CallWatch(self._gate.telemetry, config.limits.deadline_slack_s)
        self._servers = Servers(config, handlers, self._watch)
        self._credentials = Credentials(None, None)
        self._following: asyncio.Future[None] | None = None
        self._reread = anyio.Event()
        self._loaded = anyio.Event()
        self._ending: Ending | None = None
        self._leave_by = 0.0
        self._ended = anyio.Event()
        self._forced = anyio.Event()
        self._fault: Fault | None = None
        self.grpc_addresses: tuple[Address, ...] = ()
        self.gateway_address: TcpAddress | None = None
        self.metrics_address: TcpAddress | None = None

    # What serve() and tests do with a daemon, in this order.

    async def start(self) -> None:
        """Bind, listen and begin to load. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        self._credentials = Credentials.of(self._config)
        directory = Directory(self._config.principals, self._credentials.tokens)
        self._callers = Callers(directory)
        self._revoked = Revoked(self._gate, directory, names_without_tokens(self._config))
        self.grpc_addresses = self._servers.bind(self._callers, self._credentials)
        self.gateway_address = self._bind_worker()
        door = scrape_door(self._config.metrics, directory, self._credentials.tls)
        self.metrics_address = await self._scrape.start(self._config.metrics, door)
        await self._servers.start()
        self._following = asyncio.ensure_future(self._follow_files())
        self._following.add_done_callback(_not_followed)
        if self._ending is None:  # a drain asked for meanwhile
            self._engine.start()

    async def wait_loaded(self) -> bool:
        """True once requests are served; False if the daemon ends before that."""
        async with anyio.create_task_group() as tasks:

            async def until(event: anyio.Event) -> None:
                await event.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until, self._loaded)
            tasks.start_soon(until, self._ended)
        return self._ending is None

    async def wait_ended(self) -> None:
        """Until somebody asked for a drain, or the engine failed or stalled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_for_stalls)
            await self._ended.wait()
            tasks.cancel_scope.cancel()

    @property
    def served(self) -> tuple[ModelCard, MemoryUse]:
        """What is loaded and what memory is used for, once wait_loaded() said so."""
        published = self._engine.published
        assert published is not None, "asked before it was loaded"
        return self._gate.card, published.memory

    def drain(self) -> None:
        """Stop taking requests; a second call stops waiting for those that run."""
        if self._ending is None:
            self._end(Ending.DRAIN)
        else:
            self._leave_by = _now() + LEAVE_S
            self._forced.set()

    def reload(self) -> bool:
        """Read certificates and tokens again now; False where none are in use."""
        self._reread.set()
        return self._credentials.any

    async def stop(self) -> int:
        """Finish or fail what runs, release everything; returns the exit code."""
        if self._ending is None:
            self._end(Ending.DRAIN)
        with anyio.CancelScope(shield=True):
            if self._ending is Ending.DRAIN:
                await self._finish_running()
            self._gate.mailboxes.fail_all(draining() if self._fault is None else engine_failed())
            with anyio.move_on_after(FAILED_S):
                await self._gate.mailboxes.wait_empty()
            self._servers.remove_sockets()
            # Left alone when time is up, not cancelled: grpc.aio may answer that with a
            # CancelledError of its own, which no scope knows, and the exit would be a traceback.
            closing = asyncio.ensure_future(self._servers.stop(FLUSH_S))
            await asyncio.wait([closing], timeout=self._left_s)
            self._scrape.close()
            if self._following is not None:
                self._following.cancel()
            await anyio.to_thread.run_sync(self._engine.join, self._left_s)
            self._gate.close()
            await self._flush_spans()
        if self._fault is not None:
            return 2 if self._fault.usage else 1
        return 1 if self._forced.is_set() else 0

    @property
    def fault(self) -> Fault | None:
        """Why the engine failed or stalled; None where it did neither."""
        return self._fault

    def is_healthy(self) -> bool:
        """Whether the engine steps, or has nothing to do."""
        return self._fault is None and self._engine.quiet_s <= self._limits.stall_s_max

    @property
    def engine_alive(self) -> bool:
        """After stop(): the thread hangs in the device, and the process has to leave without it."""
        return self._engine.alive

    @property
    def model_folder(self) -> Path | None:
        """The loaded target's; None: it is in none."""
        return self._gate.card.folder

    # The engine's Listener: called on the engine thread, each posts to the loop.

    def loaded(self, card: ModelCard) -> None:
        """Listener.loaded: the gate opens, unless the daemon is ending already."""
        self._post(self._on_loaded, card)

    def effects(self, effects: tuple[Effect, ...]) -> None:
        """Listener.effects: into the mailboxes."""
        self._post(self._gate.mailboxes.deliver, effects)

    def ended(self, fault: Fault | None) -> None:
        """Listener.ended: RPCs still open get DRAINING, or ENGINE_FAILED for a fault."""
        self._post(self._on_ended, fault)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            # The loop closed without us: the process is leaving a stuck engine behind.
            _log.warning("the engine outlived the event loop")

    # On the loop.

    def _on_loaded(self, card: ModelCard) -> None:
        if self._ending is None:
            self._gate.open(card)
            self._health.set_serving(True)
            self._loaded.set()

    def _on_ended(self, fault: Fault | None) -> None:
        if fault is not None:
            self._fail(fault)
        else:
            self._gate.mailboxes.fail_all(draining())

    def _fail(self, fault: Fault) -> None:
        if self._fault is None:
            self._fault = fault
            self._end(Ending.FAULT)
            self._gate.mailboxes.fail_all(engine_failed())

    def _end(self, ending: Ending) -> None:
        self._ending = ending
        # A thread that loads or hangs in the device cannot be waited for, one that drains can.
        drains = ending is Ending.DRAIN and self._gate.serving
        self._leave_by = _now() + LEAVE_S
        self._leave_by += self._limits.drain_s_max if drains else 0.0
        self._gate.shut(draining if ending is Ending.DRAIN else engine_failed)
        self._health.close()
        self._engine.send(Drain())
        self._ended.set()

    @property
    def _left_s(self) -> float:
        return max(0.0, self._leave_by - _now())

    async def _flush_spans(self) -> None:
        if self._spans is not None:
            with anyio.move_on_after(min(SPANS_S, self._left_s)):
                await anyio.to_thread.run_sync(self._spans.close, abandon_on_cancel=True)

    async def _finish_running(self) -> None:
        async with anyio.create_task_group() as tasks:

            async def until_forced() -> None:
                await self._forced.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_forced)
            with anyio.move_on_after(self._limits.drain_s_max):
                await self._gate.mailboxes.wait_empty()
            tasks.cancel_scope.cancel()

    async def _watch_for_stalls(self) -> None:
        stall_s_max = self._limits.stall_s_max
        while True:
            await anyio.sleep(min(1.0, stall_s_max / 4))
            if self._engine.quiet_s > stall_s_max:
                _log.critical("no step ended for %g s while there is work", stall_s_max)
                self._fail(Fault("the engine stalled"))

    async def _follow_files(self) -> None:
        """Certificates and tokens that change hold from the next look on."""
        while self._credentials.any:
            with anyio.move_on_after(self._limits.reload_s):
                await self._reread.wait()
            self._reread = anyio.Event()
            await anyio.to_thread.run_sync(self._credentials.follow, abandon_on_cancel=True)
            self._callers.end_revoked()
            self._revoked.look()

    def _page(self) -> Mapping[str, HttpAnswer]:
        return page_places(
            Feed(self._engine, self._gate, self._limits),
            lambda request: self._scrape.refusal(request),
            loopback=is_loopback(self._config.metrics.host),
        )

    def _bind_worker(self) -> TcpAddress | None:
        """Its contract is in an extra: imported where it is asked for."""
        address = self._config.gateway or (_ANY_PORT if self._config.http else None)
        if address is None:
            return None
        from sapwood.daemon.gateway.listener import worker_server

        entry = Entry(self._config.gateway_principal)
        guard = Guard(self._callers, entry, self._limits)
        server = worker_server(self._gate, (self._watch, guard))
        return self._servers.bind_plain(server, address)


def _not_followed(following: asyncio.Future[None]) -> None:
    if not following.cancelled() and (bug := following.exception()) is not None:
        _log.error("tokens and certificates are not read again: %s", described(bug))


def _now() -> float:
    """The loop's clock, also for what the engine posts: anyio does not know its loop there where
    sniffio is installed beside it."""
    return asyncio.get_running_loop().time()
