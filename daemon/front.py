"""The loop's side of the daemon: whether requests may enter, and what becomes of them.

- `closed_by` says why nothing enters (loading, draining, failed); None while the daemon serves.
- A request that never reached the core is counted here, every other one by the core's Stats.
- Touched on the event loop only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from daemon.admission import Admission
from daemon.card import ModelCard
from daemon.engine import Engine
from daemon.errors import model_loading
from daemon.mailbox import Mailboxes
from scheduler.errors import Refused
from scheduler.limits import Limits


class Front:
    """What the services share."""

    def __init__(self, engine: Engine, limits: Limits, depth: int | None) -> None:
        self.engine = engine
        self.limits = limits
        self.mailboxes = Mailboxes(limits)
        self.turned_away: Counter[str] = Counter()
        self.closed_by: Callable[[], Refused] | None = model_loading
        self._depth = depth
        self._card: ModelCard | None = None
        self._admission: Admission | None = None

    @property
    def card(self) -> ModelCard:
        assert self._card is not None, "asked for the model before enter()"
        return self._card

    @property
    def admission(self) -> Admission:
        assert self._admission is not None, "asked for admission before enter()"
        return self._admission

    @property
    def serving(self) -> bool:
        return self.closed_by is None

    def open(self, card: ModelCard) -> None:
        """The model is loaded."""
        self._card = card
        self._admission = Admission(card, self.limits, self._depth)
        self.closed_by = None

    def close(self) -> None:
        if self._admission is not None:
            self._admission.close()

    def enter(self) -> None:
        """Every RPC of ours calls this first. Raises Refused unless the daemon serves."""
        if self.closed_by is not None:
            raise self.closed_by()
