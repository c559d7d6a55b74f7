"""What daemon and core say to each other of sessions: frozen values, as in events.py.

- A session is known by whose it is and by its name: names of different owners never meet.
- A command is answered once, under its id: by what the session is then, or by Failed.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionKey:
    """owner: the name of the principal."""

    owner: str
    name: str


@dataclass(frozen=True, slots=True)
class SessionTurn:
    """Of a request whose prompt is all that a session holds, and what is new.

    revision: what the session was when the prompt was made; as another one it is busy. style: how
    its conversation is rendered, which is the door's to know.
    """

    key: SessionKey
    revision: int
    style: object = None


@dataclass(frozen=True, slots=True)
class CreateSession:
    """Make an empty one. sessions_max: that its owner may have; None: as many as the daemon."""

    id: int
    key: SessionKey
    ttl_s: float
    sessions_max: int | None = None


@dataclass(frozen=True, slots=True)
class ForkSession:
    """Make another one of the first `at` tokens. at, ttl_s None: of all, as long as the first."""

    id: int
    key: SessionKey
    new_name: str
    at: int | None = None
    ttl_s: float | None = None
    sessions_max: int | None = None


@dataclass(frozen=True, slots=True)
class RollbackSession:
    """Forget what comes behind the first `to` tokens."""

    id: int
    key: SessionKey
    to: int


@dataclass(frozen=True, slots=True)
class DeleteSession:
    """Forget it; its request, if one runs, is cancelled."""

    id: int
    key: SessionKey


@dataclass(frozen=True, slots=True)
class ResumeReply:
    """Go on with the last reply of a session under this id. Answered by Resumed, then as a request.

    from_token: that the caller has, from the session's token 0. deadline: in the engine's clock.
    """

    id: int
    key: SessionKey
    from_token: int
    deadline: float | None = None


SessionCommand = CreateSession | ForkSession | RollbackSession | DeleteSession


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as it is. Times are of the engine's clock; one that is busy does not expire.

    parked: the next request has to compute more of it than its last token.
    """

    name: str
    tokens: int
    busy: bool
    parked: bool
    created_at: float
    expires_at: float | None
    ttl_s: float


@dataclass(frozen=True, slots=True)
class HeldSession:
    """All that the door has to know to make a prompt of it.

    tokens: not to be changed. calls: ids and names of the functions that the last reply called, and
    whose results have not come. reply_tokens_left: what its last reply may still have.
    """

    view: SessionView
    tokens: array[int]
    revision: int
    style: object
    calls: tuple[tuple[str, str], ...]
    reply_tokens_left: int


@dataclass(frozen=True, slots=True)
class SessionTold:
    """What a command has made of the session; of one that is deleted, what it was."""

    id: int
    view: SessionView
