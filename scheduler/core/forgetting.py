"""What sessions and principals forget does not stay on disk.

- A session that is deleted or rolled back takes the files of what it held and no other session of
  its owner's holds, as far as nothing else of the owner's goes on from there. So does a prompt that
  was given up before anything was drawn: its session never held it.
- What is still to be stored of it is not written.
- Who deletes hears when the files are gone. In memory K/V stays by its worth, as all does.
- A principal that is forgotten takes its sessions, its pins, and all that lies under its own root.
"""

from __future__ import annotations

from array import array

from sapwood.cache.prefix.radix import common
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.sessions import Sessions
from sapwood.scheduler.disk import ForgottenPath
from sapwood.scheduler.events import Cleared, Effect, Forget
from sapwood.scheduler.session_events import (
    DeleteSession,
    RollbackSession,
    SessionCommand,
    SessionKey,
    SessionTold,
)


class Forgetting:
    """Between sessions and the disk, which each have an owner. Single-threaded, like all of it."""

    def __init__(self, sessions: Sessions, roster: Roster, memory: DeviceMemory) -> None:
        self._sessions, self._roster, self._memory = sessions, roster, memory

    def obey(self, command: SessionCommand, now: float) -> list[Effect]:
        """What is told at once of a command; the rest once the files are gone."""
        held = self._sessions.held_path(command.key)
        told = self._sessions.obey(command, now)
        if held is None or not isinstance(told, SessionTold):
            return [told]
        root, tokens = held
        match command:
            case DeleteSession(_, key):
                kept = self._sessions.shared(key, tokens)
            case RollbackSession(_, key, to):
                kept = max(to, self._sessions.shared(key, tokens))
            case _:
                return [told]
        self._keep_off_disk(command.key)
        return [*self._memory.disk.forget_path(ForgottenPath(root, tokens, kept), told)]

    def given_up(self, sequence: Sequence) -> None:
        """It ended. What of its prompt no session holds is forgotten where it drew nothing."""
        turn = sequence.request.session
        if turn is None or sequence.emitted:
            return
        sequence.off_disk = True
        tokens = sequence.packed
        kept = max(self._sessions.shared(turn.key, tokens), self._held_of(turn.key, tokens))
        path = ForgottenPath(sequence.request.root, tokens, kept)
        self._memory.disk.forget_path(path, None)

    def forget(self, order: Forget, step: int, now: float) -> list[Effect]:
        """Leave nothing of a principal."""
        for key in self._sessions.owned(order.principal):
            self._sessions.obey(DeleteSession(order.id, key), now)
            self._keep_off_disk(key)
        self._memory.pins.forget(order.principal, step)
        if order.root is None:
            return [Cleared(order.id, 0, 0, 0)]
        for sequence in self._roster.holders:
            sequence.off_disk |= sequence.request.root == order.root
        cleared = self._memory.pins.clear_root(order.id, order.root, self._roster.holders)
        return [*self._memory.disk.forget_root(order.root, cleared)]

    def _held_of(self, key: SessionKey, tokens: array[int]) -> int:
        held = self._sessions.held_path(key)
        return 0 if held is None else common(held[1], 0, tokens, 0, len(tokens))

    def _keep_off_disk(self, key: SessionKey) -> None:
        for sequence in self._roster.holders:
            turn = sequence.request.session
            sequence.off_disk |= turn is not None and turn.key == key
