"""What each principal has under way, and what is refused of it: CLIENT_QUOTA, with a time to retry.

- A request is as many rows as it wants replies, and has all their places or none.
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
from dataclasses import dataclass
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


@dataclass(eq=False, slots=True)
class Places:
    """Places for the rows of one request: had, waited for (`given` is done then), or given up."""

    rows: int
    given: asyncio.Future[None]


class Holding:
    """What one principal has under way and has used."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used_at = clock()
        self._used = 0.0  # tokens of the last minute, forgotten evenly
        self._reserved = 0  # tokens that requests under way may still use
        self._rate = 0.0  # tokens forgotten in a second
        self._line: deque[Places] = deque()
        self.places = 0  # requests that came and did not leave
        self.running = 0  # with the scheduler
        self.unbegun = 0  # of these, those that no step has begun

    @property
    def waiting(self) -> int:
        """Rows that wait for others with the scheduler to end."""
        return sum(turn.rows for turn in self._line)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to remember."""
        self._forget(self._rate)
        return not (self.places or self._used)

    def enter(self, quotas: Quotas, rows: int = 1, *, replaces: bool = False) -> Places:
        """Places with the scheduler, or in line for them. Raises Refused where neither are free.

        replaces: one that has its places, and leaves them then.
        """
        queued_max, running_max = quotas.queued_max, quotas.running_max
        turn = Places(rows, asyncio.get_running_loop().create_future())
        if replaces:
            self._begin(turn)
        elif running_max is not None:
            if rows > running_max:
                told = f"{rows} candidates are more than the {running_max} rows it may have"
                raise Refused(Reason.CLIENT_QUOTA, told, field="candidates")
            if not self._line and self.running + rows <= running_max:
                self._begin(turn)
            elif self.waiting + rows <= (queued_max or 0):
                self._line.append(turn)
            else:
                self._refuse_place()
        elif queued_max is not None and self.unbegun + rows > max(rows, queued_max):
            self._refuse_place()
        else:
            self._begin(turn)
        return turn

    def leave(self, turn: Places, quotas: Quotas) -> None:
        """What `enter` gave is given back: to the next in line, where there are any."""
        if turn in self._line:
            self._line.remove(turn)
        given = turn.given
        if given.done() and not given.cancelled() and given.exception() is None:
            self.running -= turn.rows  # else it never had a place with the scheduler
        while self._line:
            following = self._line[0]
            if following.given.done():  # it gave up, and leaves
                self._line.popleft()
            elif self.running + following.rows <= (quotas.running_max or 0):
                self._begin(self._line.popleft())
            else:
                return

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
            if not turn.given.done():
                turn.given.set_exception(refusal())

    def _begin(self, turn: Places) -> None:
        self.running += turn.rows
        turn.given.set_result(None)

    def _refuse_place(self) -> NoReturn:
        told = _AS_MANY.format(self.running, max(self.waiting, self.unbegun))
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
        self._turn: Places | None = None
        self._unbegun = 0
        self._prompt_tokens = self._reply_tokens = 0  # reserved
        self.waited_s = 0.0
        holding.places += 1

    def enter(self, rows: int = 1, *, replaces: bool = False) -> None:
        """Before anything is done for the request. Raises Refused. replaces: as Holding.enter."""
        self._turn = self._holding.enter(self._quotas, rows, replaces=replaces)

    async def turn(self, prompt_tokens: int, max_tokens: int) -> None:
        """Until the scheduler may have the request. Raises Refused."""
        assert self._turn is not None, "a turn before enter()"
        if self._quotas.tokens_per_minute_max is not None:
            tokens = prompt_tokens + max_tokens
            self._holding.reserve(tokens, self._quotas.tokens_per_minute_max)
            self._prompt_tokens, self._reply_tokens = prompt_tokens, max_tokens
        began = anyio.current_time()
        with anyio.move_on_after(self._queue_s_max) as scope:
            await self._turn.given
        if scope.cancelled_caught:
            told = f"none of this client's requests ended for {self._queue_s_max:g} s"
            raise Refused(Reason.CLIENT_QUOTA, told, retry_after_s=RETRY_AFTER_S)
        self.waited_s = anyio.current_time() - began
        self._unbegun = self._turn.rows
        self._holding.unbegun += self._unbegun

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
            self._holding.leave(self._turn, self._quotas)

    def _begin(self) -> None:
        self._holding.unbegun -= self._unbegun
        self._unbegun = 0
