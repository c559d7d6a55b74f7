"""What a principal leaves behind whose last token was taken back: nothing.

- Its sessions and pins go, what the tree and the cache folder have of it too. What it shares with
  others in a pool is the pool's, and stays.
- Who is missing at two looks in a row is gone: a file that is written anew is empty for a moment.
- Who may come in another way as well, by a socket or as the gateway, is still somebody.
- One line in the log says that it is gone, or that files could not be removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.principals import Directory
from sapwood.scheduler.events import Cleared, Forget
from sapwood.scheduler.reasons import Refused

_log = logging.getLogger(__name__)


class Revoked:
    """Has what is left erased, beside all else. On the event loop only."""

    def __init__(self, gate: Gate, directory: Directory, others: Iterable[str]) -> None:
        """others: names that need no token."""
        self._gate, self._directory, self._others = gate, directory, frozenset(others)
        self._known = directory.token_names
        self._missing = frozenset[str]()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """The file may have changed. Before the daemon serves, all of it is left for then."""
        if not self._gate.serving:
            return
        now = self._directory.token_names
        missing = self._known - now
        gone = missing & self._missing
        self._known, self._missing = (now | missing) - gone, missing - gone
        for name in gone - self._others:
            task = asyncio.ensure_future(self._forget(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forget(self, name: str) -> None:
        principal = self._directory.named(name)
        root = self._gate.admission.root_of(principal)
        id = self._gate.admission.draw_id()
        order = Forget(id, name, None if principal.pooled else root)
        try:
            await self._gate.ordered(order, id, Cleared)
        except Refused as why:
            _log.warning("%s has no token any more, and not all of it is erased: %s", name, why)
        else:
            _log.info("%s has no token any more: what was kept of it is erased", name)
