"""Principals under quotas, played from a seed: production's accounts, before production's core.

- One event loop whose time is a number: where it would wait it jumps. A seed is the same run
  everywhere, and nothing sleeps.
- What each principal has is counted a second time, from what its own clients sent and saw (R10):
  it is never above a quota, and who is refused was at one, of its own.
- At the end all is given back.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sapwood.daemon.rpc.principals import Directory, Principal
from sapwood.daemon.rpc.quotas import Accounts, Stake
from sapwood.daemon.settings.principals import PrincipalSettings, Quotas
from sapwood.scheduler.events import Delta, Effect, Failed, Finished, Pinned, Progress
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.session_events import CreateSession, DeleteSession, SessionKey, SessionTold
from tests.scheduler.house import Stream
from tests.scheduler.session_house import SessionHouse
from tests.sim.world import pool

MINUTE_S, QUEUE_S_MAX, IDLE_S = 60.0, 30.0, 0.05
ROUNDING = 1e-6
BEGUN = 1000.0


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time goes on where nobody has anything to do."""

    def __init__(self) -> None:
        self.now = BEGUN
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "L2: everybody waits, for nothing"
            self._loop.now += timeout
        return ready


@dataclass(eq=False)
class Asked:
    """A request that was let in, from its client's side."""

    stream: Stream
    stake: Stake
    ended: asyncio.Event
    unread: int  # tokens of the prompt that nothing was told of


@dataclass(eq=False)
class Tenant:
    """A principal and its own books: of what it asked for who runs, and who waits in line.

    level: what it has used of a minute. largest: request of all that were let in.
    """

    principal: Principal
    running: int = 0
    line: deque[object] = field(default_factory=deque)
    reserved: int = 0
    level: float = 0.0
    level_at: float = BEGUN
    largest: int = 0
    sessions: set[str] = field(default_factory=set)
    pins: list[int] = field(default_factory=list)  # bytes

    @property
    def quotas(self) -> Quotas:
        return self.principal.quotas

    def use(self, tokens: int, now: float) -> None:
        """R10: what was used is forgotten evenly, and is never more than a minute's."""
        most = self.quotas.tokens_per_minute_max
        self.reserved -= tokens
        if most is None:
            return
        self.level = self.left(now) + tokens
        self.level_at = now
        may = max(most, self.largest)
        assert self.level <= may + ROUNDING, f"R10: {self.level} tokens used, {may} may be"

    def left(self, now: float) -> float:
        """What is left of what was used."""
        most = self.quotas.tokens_per_minute_max or 0
        return max(0.0, self.level - most / MINUTE_S * (now - self.level_at))

    @property
    def is_free(self) -> bool:
        """Whether the scheduler may have one more of its requests."""
        most = self.quotas.running_max
        return most is None or (not self.line and self.running < most)

    @property
    def is_full(self) -> bool:
        """Whether one more is more than it may have, with the scheduler and in line."""
        return not self.is_free and len(self.line) >= (self.quotas.queued_max or 0)

    def come(self, who: object) -> None:
        """It was taken in."""
        if self.is_free:
            self.running += 1
        else:
            self.line.append(who)

    def go(self, who: object) -> None:
        """It is over, wherever it was; the next in line has its place."""
        if who in self.line:
            self.line.remove(who)
            return
        self.running -= 1
        if self.line and self.running < (self.quotas.running_max or 0):
            self.line.popleft()
            self.running += 1

    def at_its_minute(self, tokens: int, now: float) -> bool:
        most = self.quotas.tokens_per_minute_max
        if most is None:
            return False
        return self.left(now) + self.reserved + min(tokens, most) > most + ROUNDING


class Tenants(SessionHouse):
    """Some principals, their clients, the accounts before one core, and its loop."""

    def __init__(self, seed: int, loop: JumpingLoop) -> None:
        self._random, self._loop = Random(seed), loop
        super().__init__(limits=Limits(slots_max=4, prefill_tokens_max=32))
        self.now = BEGUN
        names = [f"tenant {n}" for n in range(self._random.randint(1, 3))]
        table = {name: PrincipalSettings(quotas=self._quotas()) for name in names}
        directory = Directory(table)
        self.tenants = [Tenant(directory.named(name)) for name in names]
        self.accounts = Accounts(QUEUE_S_MAX, loop.time)
        self.refused: list[Refused] = []
        self._asked: dict[int, Asked] = {}
        self._clients = 0

    async def play(self) -> None:
        """Everybody comes, and all comes to rest."""
        random = self._random
        clients: list[Coroutine[Any, Any, None]] = []
        for tenant in self.tenants:
            clients += [self._client(tenant, Random(random.random())) for _ in range(8)]
            clients.append(self._keeper(tenant, Random(random.random())))
        self._clients = len(clients)
        await asyncio.gather(self._engine(), *clients)
        assert not self.accounts.waiting, "R10: somebody waits still"
        for tenant in self.tenants:
            assert not (tenant.running or tenant.line or tenant.reserved), f"R10: {tenant}"
            with self.accounts.stake(tenant.principal) as stake:
                holding = stake._holding
                assert not holding.running and not holding._reserved, "R10: not given back"
                assert not holding.unbegun and holding.places == 1, "R10: not given back"
        self.close()

    def deliver(self) -> tuple[Effect, ...]:
        """What the engine tells goes to who asked, and into the accounts."""
        effects = super().deliver()
        for effect in effects:
            asked = self._asked.get(effect.id)
            if asked is None:
                continue
            asked.stake.observe(effect)
            tenant = self._tenant(asked)
            if isinstance(effect, Progress) and asked.unread:
                tenant.use(asked.unread, self._loop.now)
                asked.unread = 0
            elif isinstance(effect, Delta):
                tenant.use(len(effect.token_ids), self._loop.now)
            elif isinstance(effect, Finished | Failed | Pinned):
                asked.ended.set()
        return effects

    async def _engine(self) -> None:
        while self._clients or self.core.has_work:
            self.now = max(self.now, self._loop.now)
            if self.core.has_work:
                self.step()
                self._look()
            self.deliver()
            await asyncio.sleep(max(IDLE_S * (not self.core.has_work), self.now - self._loop.now))

    def _look(self) -> None:
        """R10: what the core has of whom, between two steps."""
        for tenant in self.tenants:
            name, most = tenant.principal.name, tenant.quotas.running_max
            of = [a.stream for a in self._asked.values() if a.stream.request.principal == name]
            rows = sum(stream.end is None for stream in of)
            assert most is None or rows <= most, f"R10: {rows} rows, {most} may run"
            waiting, queued = len(tenant.line), tenant.quotas.queued_max or 0
            assert waiting <= queued, f"R10: {waiting} wait, {queued} may"

    async def _client(self, tenant: Tenant, random: Random) -> None:
        for _ in range(random.randint(1, 5)):
            await asyncio.sleep(random.choice((0.0, 0.1, 1.0, 20.0)))
            prompt = pool(random.randrange(8), random.choice((3, 20, 60)))
            most = random.choice((1, 10, 40, 120))
            patience_s = random.choice((None, None, None, 0.2, 3.0))
            await self._ask(tenant, prompt, most, patience_s)
        self._clients -= 1

    async def _ask(
        self, tenant: Tenant, prompt: tuple[int, ...], most: int, patience_s: float | None
    ) -> None:
        """A request, from the door to its end, or until its client has no patience left."""
        tokens, who, began = len(prompt) + most, object(), self._loop.now
        with self.accounts.stake(tenant.principal) as stake:
            full = tenant.is_full
            if self._is_refused(stake.enter) or full:
                assert full and stake._turn is None, f"R10: let in or refused wrongly: {tenant}"
                return
            tenant.come(who)
            spent = tenant.at_its_minute(tokens, began)
            if not spent:
                tenant.reserved += tokens
                tenant.largest = max(tenant.largest, tokens)
            refused = await self._turned_away(stake, len(prompt), most)
            late = self._loop.now - began >= QUEUE_S_MAX - ROUNDING
            assert refused == spent or late, f"R10: let in or refused wrongly: {tenant}"
            if refused:
                tenant.reserved -= tokens * (not spent)
            else:
                await self._served(tenant, stake, prompt, most, patience_s)
        tenant.go(who)

    def _is_refused(self, enter: Callable[[], None]) -> bool:
        try:
            enter()
        except Refused as why:
            self.refused.append(why)
            return True
        return False

    async def _turned_away(self, stake: Stake, prompt_tokens: int, most: int) -> bool:
        try:
            await stake.turn(prompt_tokens, most)
        except Refused as why:
            self.refused.append(why)
            return True
        return False

    async def _served(
        self,
        tenant: Tenant,
        stake: Stake,
        prompt: tuple[int, ...],
        most: int,
        patience_s: float | None,
    ) -> None:
        name = tenant.principal.name
        self.now = max(self.now, self._loop.now)
        stream = self.submit(prompt, most, principal=name, root=name.encode(), ignore_eos=True)
        asked = Asked(stream, stake, asyncio.Event(), len(prompt))
        self._asked[stream.request.id] = asked
        try:
            async with asyncio.timeout(patience_s):
                await asked.ended.wait()
        except TimeoutError:
            self.cancel(stream, CancelReason.CANCELLED)
            self.deliver()
        assert stream.end is not None, "R1: an end is told of at once"
        tenant.reserved -= asked.unread + most - len(stream.tokens)
        asked.unread = 0
        del self._asked[stream.request.id]

    async def _keeper(self, tenant: Tenant, random: Random) -> None:
        """Pins and sessions."""
        for n in range(6):
            await asyncio.sleep(random.choice((0.0, 0.5, 5.0)))
            self.now = max(self.now, self._loop.now)
            await random.choice((self._open, self._pin))(tenant, n, random)
        self._clients -= 1

    async def _open(self, tenant: Tenant, n: int, random: Random) -> None:
        key, most = SessionKey(tenant.principal.name, f"s{n}"), tenant.quotas.sessions_max
        full = most is not None and len(tenant.sessions) >= most
        told = self._ordered(CreateSession(next(self.ids), key, 1e6, most))
        assert isinstance(told, SessionTold) != full, f"R10: {told}, of {len(tenant.sessions)}"
        if full:
            gone = SessionKey(key.owner, tenant.sessions.pop()) if tenant.sessions else key
            self._ordered(DeleteSession(next(self.ids), gone))
        else:
            tenant.sessions.add(key.name)

    async def _pin(self, tenant: Tenant, n: int, random: Random) -> None:
        name, most = tenant.principal.name, tenant.quotas.pin_bytes_max
        prompt = pool(random.randrange(8), random.choice((10, 40)))
        stream = self.pin(prompt, bytes_max=most, principal=name, root=name.encode())
        while stream.end is None:
            await asyncio.sleep(IDLE_S)
            self.deliver()
        if isinstance(stream.end, Pinned):
            tenant.pins.append(stream.end.pin.size)
            kept = sum(tenant.pins)
            assert most is None or kept <= most, f"R10: {kept} bytes pinned, {most} may be"
        else:
            assert most is not None and stream.end.reason is Reason.CLIENT_QUOTA, f"R10: {stream}"

    def _tenant(self, asked: Asked) -> Tenant:
        name = asked.stream.request.principal
        return next(tenant for tenant in self.tenants if tenant.principal.name == name)

    def _quotas(self) -> Quotas:
        pick = self._random.choice
        running = pick((None, 1, 2, 4))
        return Quotas(
            running_max=running,
            queued_max=None if running is None else pick((None, 1, 4)),
            tokens_per_minute_max=pick((None, None, 60, 400)),
            pin_bytes_max=pick((None, 1, 600, 2000)),
            sessions_max=pick((None, 0, 1, 3)),
        )


def play_tenants(seed: int) -> Tenants:
    """Raises AssertionError at the first thing that should not be."""
    loop = JumpingLoop()
    try:
        tenants = Tenants(seed, loop)
        loop.run_until_complete(tenants.play())
        return tenants
    finally:
        loop.close()
