"""The caller of an RPC, known to whatever works on it, and how its right to go on is taken back.

- The guard names the caller before the behaviour runs, in the context of the RPC's own task.
- Where a token is taken back, the calls that came with it end, wherever they are.
- Methods that are open to everybody have no caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import anyio

from sapwood.daemon.rpc.principals import Directory, Identified, Principal
from sapwood.daemon.settings.tokens import Grant
from sapwood.scheduler.reasons import Reason, Refused


class Callers:
    """The calls that are open, of those that came with a token. On the event loop only."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._open: dict[anyio.CancelScope, Grant] = {}

    def enter(self, who: Identified) -> None:
        """The RPC of this task is made by `who`."""
        _caller.set(Caller(who, self))

    @contextmanager
    def _held(self, grant: Grant) -> Iterator[None]:
        if not self.directory.stands(grant):  # taken back since the guard looked
            raise _taken_back()
        with anyio.CancelScope() as scope:
            self._open[scope] = grant
            try:
                yield
            finally:
                del self._open[scope]
        if scope.cancelled_caught:
            raise _taken_back()

    def end_revoked(self) -> None:
        """End what came with tokens that are not there any more."""
        for scope, grant in list(self._open.items()):
            if not self.directory.stands(grant):
                scope.cancel()


class Caller:
    """Who makes one RPC."""

    def __init__(self, who: Identified, callers: Callers) -> None:
        self._who = who
        self._callers = callers

    @property
    def principal(self) -> Principal:
        """Whose rights, quotas and cache hold for it."""
        return self._who.principal

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """For as long as the RPC runs. Raises Refused where its token is taken back meanwhile."""
        if self._who.grant is None:
            yield
            return
        with self._callers._held(self._who.grant):
            yield


def caller_of_call() -> Caller | None:
    """Who makes the RPC of this task; None where everybody may."""
    return _caller.get()


def _taken_back() -> Refused:
    return Refused(Reason.UNAUTHENTICATED, "the token was taken back")


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
