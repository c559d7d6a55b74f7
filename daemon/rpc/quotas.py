"""What each principal has under way, and what is refused of it: CLIENT_QUOTA, with a time to retry.

- `running_max` of its requests are with the scheduler at once; `queued_max` more wait here for one
  of these to end, in the order they came (0 where it is not set). What waits here takes no place
  in the scheduler's queue, which all share.
- Without `running_max`, `queued_max` bounds those of its requests that no step has begun.
- `tokens_per_minute_max` is of prompts and replies. A request is let in where its prompt and its
  max_tokens fit into what is left; what the reply does not use is given back when it ends. What is
  used is forgotten evenly, all within a minute. More than a minute's worth needs a whole one, and
  is paid off by waiting longer: so nothing is too large for ever.
- Touched on the event loop only. The clock is an argument.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import anyio

from sapwood.daemon.engine.engine import Clock
from sapwood.daemon.rpc.principals import Principal
from sapwood.daemon.rpc.refusals import RETRY_AFTER_S
from sapwood.daemon.settings.principals import Quotas
from sapwood.scheduler.events import Delta, Effect, Failed, Progress
from sapwood.scheduler.reasons import Reason, Refused

_MINUTE_S = 60.0
_KNOWN_MAX = 1024  # holdings that are kept before idle ones are looked for
_AS_MANY = "{} of this client's requests run and {} wait, as many as it may have"


class Accounts:
    """One holding for each principal that has something under way, or used tokens lately."""

    def __init__(self, queue_s_max: float, clock: Clock = time.monotonic) -> None:
        self._queue_s_max = queue_s_max
        self._clock = clock
        self._holdings: dict[str, Holding] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait for others of their own principal."""
        return sum(holding.waiting for holding in self._holdings.values())

    @contextmanager
    def stake(self, principal: Principal) -> Iterator[Stake]:
        """For one request; what it takes of its principal's quotas is given back at the end."""
        holding = self._holdings.get(principal.name)
        if holding is None:
            self._sweep()
            holding = self._holdings[principal.name] = Holding(self._clock)
        stake = Stake(holding, principal.quotas, self._queue_s_max)
        try:
            yield stake
        finally:
            stake.leave()

    def close(self, refusal: Callable[[], Refused]) -> None:
        """Whoever waits is refused, with what this makes."""
        for holding in self._holdings.values():
            holding.close(refusal)

    def _sweep(self) -> None:
        if len(self._holdings) >= _KNOWN_MAX:
            idle = [name for name, holding in self._holdings.items() if holding.idle]
            for name in idle:
                del self._holdings[name]


class Holding:
    """What one principal has under way and has used."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used_at = clock()
        self._used = 0.0  # tokens of the last minute, forgotten evenly
        self._reserved = 0  # tokens that requests under way may still use
        self._rate = 0.0  # tokens forgotten in a second
        self._line: deque[asyncio.Future[None]] = deque()
        self.places = 0  # requests that came and did not leave
        self.running = 0  # with the scheduler
        self.unbegun = 0  # of these, those that no step has begun

    @property
    def waiting(self) -> int:
        """Requests that wait for one with the scheduler to end."""
        return len(self._line)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to remember."""
        self._forget(self._rate)
        return not (self.places or self._used)

    def enter(self, quotas: Quotas) -> asyncio.Future[None]:
        """A place with the scheduler, or in line for one. Raises Refused where neither is free."""
        queued_max, turn = quotas.queued_max, asyncio.get_running_loop().create_future()
        if quotas.running_max is not None:
            if self.running < quotas.running_max:
                self._begin(turn)
            elif len(self._line) < (queued_max or 0):
                self._line.append(turn)
            else:
                self._refuse_place()
        elif queued_max is not None and self.unbegun >= max(1, queued_max):
            self._refuse_place()
        else:
            self._begin(turn)
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        """What `enter` gave is given back: to the next in line, where there is one."""
        if turn in self._line:
            self._line.remove(turn)
        if not turn.done() or turn.cancelled() or turn.exception() is not None:
            return  # it never had a place with the scheduler
        self.running -= 1
        while self._line:
            if not (following := self._line.popleft()).done():  # else it gave up, and leaves
                return self._begin(following)

    def reserve(self, tokens: int, tokens_per_minute_max: int) -> None:
        """Raises Refused where they do not fit into what is left of the minute."""
        self._rate = tokens_per_minute_max / _MINUTE_S
        self._forget(self._rate)
        needed = min(tokens, tokens_per_minute_max)
        short = self._used + self._reserved + needed - tokens_per_minute_max
        if short > 0:
            told = f"{tokens} tokens are more than is left of {tokens_per_minute_max} a minute"
            raise Refused(Reason.CLIENT_QUOTA, told, retry_after_s=max(0.001, short / self._rate))
        self._reserved += tokens

    def use(self, tokens: int) -> None:
        """So many of what was reserved."""
        self._forget(self._rate)
        self._reserved -= tokens
        self._used += tokens

    def give_back(self, tokens: int) -> None:
        """So many of what was reserved are not used."""
        self._reserved -= tokens

    def close(self, refusal: Callable[[], Refused]) -> None:
        """Whoever waits is refused."""
        for turn in self._line:
            if not turn.done():
                turn.set_exception(refusal())

    def _begin(self, turn: asyncio.Future[None]) -> None:
        self.running += 1
        turn.set_result(None)

    def _refuse_place(self) -> NoReturn:
        told = _AS_MANY.format(self.running, max(len(self._line), self.unbegun))
        raise Refused(Reason.CLIENT_QUOTA, told, retry_after_s=RETRY_AFTER_S)

    def _forget(self, rate: float) -> None:
        now = self._clock()
        self._used = max(0.0, self._used - rate * (now - self._used_at))
        self._used_at = now


class Stake:
    """What one request takes of its principal's quotas."""

    def __init__(self, holding: Holding, quotas: Quotas, queue_s_max: float) -> None:
        self._holding = holding
        self._quotas = quotas
        self._queue_s_max = queue_s_max
        self._turn: asyncio.Future[None] | None = None
        self._unbegun = False
        self._prompt_tokens = self._reply_tokens = 0  # reserved
        self.waited_s = 0.0
        holding.places += 1

    def enter(self) -> None:
        """Before anything is done for the request. Raises Refused."""
        self._turn = self._holding.enter(self._quotas)

    async def turn(self, prompt_tokens: int, max_tokens: int) -> None:
        """Until the scheduler may have the request. Raises Refused."""
        assert self._turn is not None, "a turn before enter()"
        if self._quotas.tokens_per_minute_max is not None:
            tokens = prompt_tokens + max_tokens
            self._holding.reserve(tokens, self._quotas.tokens_per_minute_max)
            self._prompt_tokens, self._reply_tokens = prompt_tokens, max_tokens
        began = anyio.current_time()
        with anyio.move_on_after(self._queue_s_max) as scope:
            await self._turn
        if scope.cancelled_caught:
            told = f"none of this client's requests ended for {self._queue_s_max:g} s"
            raise Refused(Reason.CLIENT_QUOTA, told, retry_after_s=RETRY_AFTER_S)
        self.waited_s = anyio.current_time() - began
        self._unbegun = True
        self._holding.unbegun += 1

    def observe(self, effect: Effect) -> None:
        """What the engine tells of the request, whether its client reads it or not."""
        if isinstance(effect, Failed):
            return
        self._begin()
        if isinstance(effect, Progress) and self._prompt_tokens:
            self._holding.use(self._prompt_tokens)
            self._prompt_tokens = 0
        elif isinstance(effect, Delta) and self._reply_tokens:
            used = min(len(effect.token_ids), self._reply_tokens)
            self._holding.use(used)
            self._reply_tokens -= used

    def leave(self) -> None:
        """Whatever it has not used is the principal's again."""
        self._begin()
        self._holding.give_back(self._prompt_tokens + self._reply_tokens)
        self._holding.places -= 1
        if self._turn is not None:
            self._holding.leave(self._turn)

    def _begin(self) -> None:
        if self._unbegun:
            self._unbegun = False
            self._holding.unbegun -= 1
