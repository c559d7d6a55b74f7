"""What one client asked and saw, as it happens: the only source of the clients' figures.

- One writer, the client's own task; the view and the report read.
- Tokens are counted as they arrive, never taken from the daemon's usage. What only usage can tell
  (rounds, drafts) comes from there; the cancelled client gets none and counts its messages.
- A second turn continues the ids of the first: prompt, reply, what the template puts around the
  next question. Encoding the reply's text anew could give other ids, and so no prefix hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from sapwood import Delta, Event, Finish, Message, Prefill
from sapwood.daemon.demo.script import PINNED_DEPTH, SYSTEM, ClientPart


class TurnState(StrEnum):
    """Where a client's newest turn is. WAITING: it has asked nothing yet."""

    WAITING = "waiting"
    PREFILL = "prefill"
    STREAMING = "streaming"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of one or more requests, as their client counts them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    rounds: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, n) + getattr(other, n) for n in Counts.__slots__))


@dataclass(frozen=True, slots=True)
class Prompts:
    """A client's prompts as ids: the whole first one, and what follows the first reply's end."""

    first: tuple[int, ...]
    turn_end: int
    follow_up: tuple[int, ...] = ()

    def second(self, reply: Sequence[int], stopped: bool) -> tuple[int, ...]:
        """The prompt of the second turn. stopped: the reply's last id is the one that ended it.

        That one may be another of the model's end tokens; the template knows its own only.
        """
        said = reply[:-1] if stopped else reply
        return (*self.first, *said, self.turn_end, *self.follow_up)


def messages(part: ClientPart) -> list[Message]:
    """A part's first prompt."""
    return [Message("system", SYSTEM), Message("user", part.question)]


def follow_up_messages(part: ClientPart, reply: str = ".") -> list[Message]:
    """Where ids are continued, whatever the reply will be: only what comes after it is used."""
    return [*messages(part), Message("assistant", reply), Message("user", part.follow_up)]


def prompts(first: Sequence[int], both: Sequence[int], eos_token_ids: Sequence[int]) -> Prompts:
    """From the encoded `messages` and `follow_up_messages` (empty: there is no second turn).

    Contents never encode to control tokens, so the n-th end of turn closes the n-th message.
    """
    turn_end = next(id for id in first if id in eos_token_ids)
    if not both:
        return Prompts(tuple(first), turn_end)
    ends = [place for place, id in enumerate(both) if id == turn_end]
    return Prompts(tuple(first), turn_end, tuple(both[ends[2] + 1 :]))


@dataclass(slots=True)
class Turn:
    """One request. Times are those of one monotonic clock, in seconds."""

    prompt_ids: tuple[int, ...]
    asked: float
    cached_tokens: int | None = None  # None: the daemon has not said
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    message_tokens: list[int] = field(default_factory=list)
    first_token: float | None = None
    ended: float | None = None
    finish: Finish | None = None

    def note(self, event: Event, now: float) -> None:
        """Take in the stream's next event, which came at `now`."""
        match event:
            case Prefill():
                self.cached_tokens = event.cached_tokens
            case Delta():
                self.texts.append(event.text)
                self.token_ids.extend(event.token_ids)
                self.message_tokens.append(len(event.token_ids))
                if self.first_token is None and event.token_ids:
                    self.first_token = now
            case Finish():
                self.finish = event

    @property
    def text(self) -> str:
        """What the deltas said so far, joined; thinking and calls left out."""
        return "".join(self.texts)

    @property
    def outcome(self) -> str:
        """As the metrics name it. Only for a turn that ended."""
        return "cancelled" if self.finish is None else str(self.finish.reason)

    def counts(self, pinned_depth: int) -> Counts:
        """pinned_depth: at which a turn without usage was drafted."""
        tokens = len(self.token_ids)
        if self.finish is not None:
            usage = self.finish.usage
            drafts = (usage.draft_tokens, usage.accepted_tokens, usage.rounds)
        else:
            rounds = self._rounds_seen(pinned_depth)
            accepted = tokens - 1 - rounds if rounds else 0
            drafts = (rounds * pinned_depth, accepted, rounds)
        return Counts(len(self.prompt_ids), self.cached_tokens or 0, tokens, *drafts)

    def _rounds_seen(self, depth: int) -> int:
        """Rounds that the messages prove: one each, more where one holds more than a round gives.

        The first token comes from the prompt's own forward.
        """
        if depth == 0 or not self.message_tokens:
            return 0
        first, *rest = self.message_tokens
        return sum(math.ceil(tokens / (depth + 1)) for tokens in (first - 1, *rest))


@dataclass(slots=True)
class Dialogue:
    """One client's turns, and what it is doing now."""

    part: ClientPart
    prompts: Prompts
    depth: int = PINNED_DEPTH  # if its part pins one
    state: TurnState = TurnState.WAITING
    company: int = 0  # streams that were decoding when it came in
    turns: list[Turn] = field(default_factory=list)
    moved: anyio.Event = field(default_factory=anyio.Event)
    over_http: bool = False  # where messages are sent, no depth can be pinned, rounds are not told

    def ask(self, prompt_ids: Sequence[int], now: float) -> Turn:
        """Begin a turn: its request is sent at `now`."""
        self.turns.append(Turn(tuple(prompt_ids), now))
        self.state = TurnState.PREFILL
        return self.turns[-1]

    def note(self, event: Event, now: float) -> None:
        """Take in an event of the newest turn, and wake who waits for `moved`."""
        self.turns[-1].note(event, now)
        if isinstance(event, Delta):
            self.state = TurnState.STREAMING
        self._wake()

    def end(self, state: TurnState, now: float) -> None:
        """End the newest turn as DONE or CANCELLED, and wake who waits for `moved`."""
        self.turns[-1].ended = now
        self.state = state
        self._wake()

    def _wake(self) -> None:
        self.moved.set()
        self.moved = anyio.Event()

    @property
    def wants_to_hang_up(self) -> bool:
        """Whether it has read all that it wants; never, for a part that does not cancel."""
        return 0 < self.part.cancels_at <= self.tokens

    @property
    def tokens(self) -> int:
        """Reply tokens that arrived, of all turns."""
        return sum(len(turn.token_ids) for turn in self.turns)

    @property
    def counts(self) -> Counts:
        """Sums over all turns, the running one included."""
        return sum((turn.counts(self.depth) for turn in self.turns), Counts())

    def tokens_per_s(self, now: float) -> float | None:
        """Pace after the first tokens, of all turns: a short one alone arrives in one step."""
        begun = [(turn, turn.first_token) for turn in self.turns if turn.first_token is not None]
        tokens = sum(len(turn.token_ids) - 1 for turn, _ in begun)
        spent = sum((turn.ended or now) - first for turn, first in begun)
        return tokens / spent if tokens > 0 and spent > 0 else None
