"""The loop's side of the daemon: whether requests may enter, and what the services share.

- `closed_by` says why nothing enters (loading, draining, failed); None while the daemon serves.
- A request that never reached the core is counted here, every other one by the core's Stats.
- Touched on the event loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.engine import Engine, EngineEnded
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.rpc.admission import Admission
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.mailbox import Mailboxes
from sapwood.daemon.rpc.quotas import Accounts
from sapwood.daemon.rpc.refusals import engine_failed, model_loading
from sapwood.daemon.telemetry.telemetry import Telemetry
from sapwood.scheduler.events import Answered, Command
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.session_events import HeldSession, SessionKey

_T = TypeVar("_T")
_A = TypeVar("_A", bound=Answered)


class Gate:
    """What the services share."""

    def __init__(self, engine: Engine, limits: Limits, depth: int | None) -> None:
        self.engine = engine
        self.limits = limits
        self.mailboxes = Mailboxes(limits)
        self.accounts = Accounts(limits.queue_s_max)
        self.telemetry = Telemetry()
        self.turned_away: Counter[Outcome] = Counter()
        self.rejected: Counter[Reason] = Counter()
        self.closed_by: Callable[[], Refused] | None = model_loading
        self._depth = depth
        self._card: ModelCard | None = None
        self._admission: Admission | None = None

    @property
    def card(self) -> ModelCard:
        """The loaded model's; only behind enter()."""
        assert self._card is not None, "asked for the model before enter()"
        return self._card

    @property
    def loaded_card(self) -> ModelCard | None:
        """The loaded model's; None until there is one."""
        return self._card

    @property
    def loading(self) -> bool:
        """Whether the model is still to come."""
        return self.closed_by is model_loading

    @property
    def admission(self) -> Admission:
        """The loaded model's door; only behind enter()."""
        assert self._admission is not None, "asked for admission before enter()"
        return self._admission

    @property
    def serving(self) -> bool:
        """Whether enter() lets a request in."""
        return self.closed_by is None

    def open(self, card: ModelCard) -> None:
        """The model is loaded."""
        self._card = card
        self._admission = Admission(card, self.limits, self._depth)
        self.closed_by = None

    def shut(self, refusal: Callable[[], Refused]) -> None:
        """Nothing enters any more, nor who waits for others of its own; what is made says why."""
        self.closed_by = refusal
        self.accounts.close(refusal)

    def close(self) -> None:
        """Let the tokenising workers go, without waiting for them."""
        if self._admission is not None:
            self._admission.close()

    def turn_away(self, outcome: Outcome, reason: Reason | None = None) -> None:
        """Count a request that never reached the core. reason: of a rejected one."""
        self.turned_away[outcome] += 1
        if outcome is Outcome.REJECTED:
            assert reason is not None, "rejected without a reason"
            self.rejected[reason] += 1

    def count_refused(self, method: str, reason: Reason) -> None:
        """One that did not come as far as its behaviour; only Generate's are requests."""
        if method.endswith(".Generate"):
            self.turn_away(Outcome.REJECTED, reason)

    async def ask(self, work: Callable[[Loaded], _T]) -> _T:
        """What the engine thread answers between two steps. Raises Refused where it has ended."""
        try:
            return await asyncio.wrap_future(self.engine.ask(work))
        except EngineEnded:
            raise engine_failed() from None

    async def held(self, key: SessionKey, field: str) -> HeldSession:
        """The session as it is between two steps. Raises Refused, naming the request's field."""
        held = await self.ask(partial(Loaded.hold_session, key=key, now=time.monotonic()))
        if held is None:
            raise Refused(Reason.SESSION_NOT_FOUND, "there is no such session", field=field)
        return held

    async def ordered(
        self, command: Command, id: int, kind: type[_A], undone: tuple[Command, ...] = ()
    ) -> _A:
        """The core's answer to a command of this id. Raises Refused.

        Through a mailbox, so that a drain or a fault of the engine ends it as it ends a reply.
        undone: sent where the caller leaves before the answer.
        """
        mailbox = self.mailboxes.open(id)
        self.engine.send(command)
        try:
            answer = await mailbox.answer()
        finally:
            self.mailboxes.close(mailbox)
            if not mailbox.settled:
                for order in undone:
                    self.engine.send(order)
        assert isinstance(answer, kind), f"{type(answer).__name__} to {type(command).__name__}"
        return answer

    def deadline(self, call: Call) -> float:
        """In the engine's clock; a client without a deadline gets `request_s_max`."""
        remaining = call.time_remaining()
        most = self.limits.request_s_max
        return time.monotonic() + (most if remaining is None else min(remaining, most))

    def enter(self) -> None:
        """Every RPC of ours calls this first. Raises Refused unless the daemon serves."""
        if self.closed_by is not None:
            raise self.closed_by()
