"""What goes into the core and what comes out of it: frozen values, nothing shared.

- Commands arrive through the inbox in order; effects leave once per step.
- A sequence id is drawn by the daemon and is unique for the process; clients never choose it.
- Exactly one Finished, Pinned or Failed per sequence, and nothing of that sequence after it.
- Unpin, Clear, Forget and commands of sessions are answered once each, under their own id.
- A reply that is resumed is told of under the id of who resumed it last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from sapwood.scheduler.disk import DiskReport
from sapwood.scheduler.outcomes import CancelReason, FinishReason
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.result import TokenLogprobs
from sapwood.scheduler.sampling import Sampling
from sapwood.scheduler.session_events import (
    ResumeReply,
    SessionCommand,
    SessionTold,
    SessionTurn,
)


class Priority(IntEnum):
    """How urgent a request is beside its principal's others, the most urgent first."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2  # nobody waits for it: its row goes where another of them wants one


@dataclass(frozen=True, slots=True)
class PinTerms:
    """Of a request that is to keep its prompt in the tree: it draws nothing."""

    name: str  # drawn by the daemon, unguessable
    ttl_s: float | None = None  # from when it is made; None: until it is unpinned
    bytes_max: int | None = None  # of all pins of its principal; None: no bound of its own
    public: bool = False  # an operator's: whoever's prompt begins so has it


@dataclass(frozen=True, slots=True)
class Fork:
    """Another reply to a request's prompt. noise_key: as in Sampling."""

    id: int
    noise_key: int


@dataclass(frozen=True, slots=True)
class Request:
    """One validated request: built by admission only, the one door."""

    id: int
    root: bytes  # root key of the tree: model fingerprint and tenant salt
    prompt: tuple[int, ...]  # non-empty, ids < vocabulary, len + max_tokens <= context
    max_tokens: int  # >= 1
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0  # before anything but max_tokens may end the reply
    thinking_tokens_max: int | None = None  # of all thoughts; None: as the model likes
    top_logprobs: int = 0  # alternatives to report for each token; 0: no logprobs at all
    prompt_logprobs: int = 0  # likewise of the prompt, which then is read whole, tree or not
    depth: int | None = None  # pinned draft depth; None: the daemon decides
    cache_bypass: bool = False
    store_reply: bool = True
    deadline: float | None = None  # in the engine's clock
    pin: PinTerms | None = None  # max_tokens is 1 then, and counts for nothing
    constraint: object | None = None  # what the reply is held to: the device's, opaque here
    principal: str = ""  # with whose requests it shares what is scarce
    weight: float = 1.0  # of the principal beside others, above 0
    priority: Priority = Priority.NORMAL
    session: SessionTurn | None = None  # that it goes on, and is the newest turn of
    early: bool = False  # end it as soon as its first token cannot come before the deadline
    forks: tuple[
        Fork, ...
    ] = ()  # more replies to the prompt, each a sequence with an id of its own
    fork_of: int | None = None  # it is such a one, of the request with this id

    @property
    def tokens_max(self) -> int:
        """What its sequence may grow to."""
        return len(self.prompt) + self.max_tokens

    @property
    def counts(self) -> bool:
        """Whether it is a client's request, and not a pin or a further reply."""
        return self.pin is None and self.fork_of is None

    @property
    def rows(self) -> tuple[Request, ...]:
        """The request itself, which reads the prompt, and after it one for each fork."""
        return self, *(self._forked(fork) for fork in self.forks)

    def _forked(self, fork: Fork) -> Request:
        return replace(
            self,
            id=fork.id,
            sampling=replace(self.sampling, noise_key=fork.noise_key),
            prompt_logprobs=0,
            early=False,
            forks=(),
            fork_of=self.id,
        )

    @property
    def masked(self) -> bool:
        """Whether masks may lie over what is drawn for it."""
        bounded = self.min_tokens > 0 or self.thinking_tokens_max is not None
        return bounded or self.constraint is not None


@dataclass(frozen=True, slots=True)
class Submit:
    """Begin a request, with its forks or not at all. One whose id lives already is a no-op."""

    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client cancelled, disconnected, read too slowly, or its deadline passed in the shell.

    Unknown or finished ids are no-ops.
    """

    id: int
    reason: CancelReason = CancelReason.CANCELLED


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuse what is queued and what comes (DRAINING); let what runs finish; then be finished."""


@dataclass(frozen=True, slots=True)
class Unpin:
    """Give a pin up. Answered by Unpinned."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    """Drop what the tree holds, but for pins; answered by Cleared.

    tokens: only what begins with them, under whatever root. None of them: everything.
    root: only what lies under it, whatever it begins with; without `tokens`.
    """

    id: int
    tokens: tuple[int, ...] = ()
    root: bytes | None = None


@dataclass(frozen=True, slots=True)
class Forget:
    """Leave nothing of a principal that may not come any more; answered by Cleared.

    root: where its prefixes lie, with nobody else's; None: others have that root too.
    """

    id: int
    principal: str
    root: bytes | None


Command = (
    Submit | Cancel | Drain | Unpin | Clear | Forget | DiskReport | ResumeReply | SessionCommand
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one reply took, as the contract's Usage says. Seconds are of the engine's clock."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thinking_tokens: int  # of these
    decode_steps: int
    rounds: int
    draft_tokens: int
    accepted_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class PinView:
    """A pin as it is. number: in the order in which they were made.

    size: bytes that it keeps, other pins' share in them too. expires_at: in the engine's clock.
    public: as PinTerms says.
    """

    name: str
    principal: str
    number: int
    tokens: int
    size: int
    expires_at: float | None
    public: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Prefill advanced: `processed` (cached included) of `total` prompt tokens are evaluated.

    logprobs: where the request asked, one for each prompt token from where the last one ended up to
    `processed`, its end included where there is a token; so none for the first of all.
    """

    id: int
    cached: int
    processed: int
    total: int
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wrote. `arguments` is the JSON text of an object.

    id: by which its result is known in a session; elsewhere whoever sends the call makes one.
    """

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step committed for one sequence. Texts are whole characters; ids may come without.

    logprobs: one for each id where the request asked, else none. They leave with their ids, however
    long a text is held back.
    """

    id: int
    text: str
    token_ids: tuple[int, ...]
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The reply is complete."""

    id: int
    reason: FinishReason
    stop_sequence: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence ended without a whole reply, or never began."""

    id: int
    reason: Reason
    message: str
    retry_after_s: float | None = None
    field: str = ""  # of the command, where one is wrong


@dataclass(frozen=True, slots=True)
class Resumed:
    """A reply is gone on with. Comes first of all that its new stream is told.

    request: as it came first. read: how far the prompt is; None: nothing of it was told of yet.
    deltas: what was emitted, made again as they are asked for, by whoever has this alone; None
    where one has to ask on.
    """

    id: int
    request: Request
    read: Progress | None
    deltas: Iterator[Delta | None]


@dataclass(frozen=True, slots=True)
class Pinned:
    """The prompt is kept from now on."""

    id: int
    pin: PinView


@dataclass(frozen=True, slots=True)
class Unpinned:
    """found: whether there was such a pin."""

    id: int
    found: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """What went: nodes of the tree, their bytes; held_bytes go when those end who hold them."""

    id: int
    nodes: int
    freed_bytes: int
    held_bytes: int


Answered = Pinned | Unpinned | Cleared | SessionTold
Effect = Resumed | Progress | Delta | Finished | Failed | Answered
