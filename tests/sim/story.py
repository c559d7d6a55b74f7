"""A scenario as a value: one configuration and what happens to it, tick by tick.

- A tick is one turn of the engine's loop. Actions of a tick come before its turn, in list order.
- Clients, prompts and replies are named symbolically, so that a scenario stays one when actions are
  taken out of it: what refers to a stream that never was contributes nothing.
- JSON, an action a line: a failed scenario can be read, kept and edited.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

# Tokens of a prompt: ("pool", seed, count) are the first `count` of an endless row that all prompts
# of that seed share; ("turn", name, cut) the first `cut` that stream `name` was sent and answered
# (-1: all of them).
Part = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Config:
    """The house that a scenario plays in. Sizes in bytes a token; quality: share of good drafts."""

    slots_max: int = 4
    queued_max: int = 50
    queue_s_max: float = 60.0
    request_s_max: float = 1800.0
    prefill_tokens_max: int = 32
    prefill_slices_max: int = 4
    share_tokens_min: int = 8
    overtaken_max: int = 4
    passed_max: int = 4
    yield_steps_min: int = 8
    parks_max: int = 4
    reply_tokens_guess: int = 4
    tree_nodes_max: int = 1000
    pins_max: int = 64
    pins_share_max: float = 0.5
    sessions_max: int = 64
    mailbox_bytes_max: int = 400
    window: int = 8
    full_bytes: int = 3
    sliding_bytes: int = 10
    has_drafter: bool = True
    draft_depth_max: int = 8
    deep_rows_max: int = 8
    quality: float = 0.7
    budget_bytes: int = 10**7
    step_s: float = 0.01
    token_s: float = 0.0005
    draft_s: float = 0.001
    hitch_s: float = 0.0  # now and then a step takes this much longer
    check_share: float = 0.0  # of its time, in which rounds are computed again; 0: none is
    page_bytes: int = 1  # what the device rounds a buffer up to
    disk_bytes: int = 0  # of a disk tier; 0: there is none
    disk_writes_bytes: int = 10**7  # that may be written there in a day
    buffers_max: int = 0  # how many it lets weights, slots and tree have; 0: it does not count


@dataclass(frozen=True, slots=True)
class Action:
    """Something that happens before the turn of tick `at`."""

    at: int


@dataclass(frozen=True, slots=True)
class Ask(Action):
    """A client sends a request; `name` is the stream's."""

    name: int
    parts: tuple[Part, ...]
    max_tokens: int = 8
    root: int = 0
    temperature: float = 0.0
    seed: int | None = None
    penalised: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    depth: int | None = None
    top_logprobs: int = 0
    bypass: bool = False
    store_reply: bool = True
    deadline_s: float | None = None
    principal: int = 0
    weight: float = 1.0
    priority: int = 1
    early: bool = False
    candidates: int = 1
    min_tokens: int = 0
    prompt_logprobs: int = 0
    session: int = -1  # it is a turn of this one
    held: bool = False  # to a constraint, which forces tokens here and there


@dataclass(frozen=True, slots=True)
class Again(Action):
    """A client sends what `of` sent, as a new stream."""

    name: int
    of: int


@dataclass(frozen=True, slots=True)
class Keep(Action):
    """An operator pins a prefix; `name` is the stream's, and what the pin goes by."""

    name: int
    parts: tuple[Part, ...]
    root: int = 0
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class LetGo(Action):
    """An operator unpins what stream `name` has pinned."""

    name: int


@dataclass(frozen=True, slots=True)
class Wipe(Action):
    """An operator clears what begins with these tokens; all where there are none."""

    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Open(Action):
    """A client makes a session of this number."""

    session: int
    ttl_s: float = 1e6


@dataclass(frozen=True, slots=True)
class Fork(Action):
    """A client forks a session, at its first `to` tokens; -1: at all of them."""

    session: int
    into: int
    to: int = -1


@dataclass(frozen=True, slots=True)
class Back(Action):
    """A client rolls a session back to its first `to` tokens."""

    session: int
    to: int


@dataclass(frozen=True, slots=True)
class Forget(Action):
    """A client deletes a session."""

    session: int


@dataclass(frozen=True, slots=True)
class TakeUp(Action):
    """Whoever has stream `of`, a session's last one, goes on with it as stream `name`."""

    name: int
    of: int


@dataclass(frozen=True, slots=True)
class GiveUp(Action):
    """The shell ends a stream. `why`: the name of a CancelReason."""

    name: int
    why: str = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Pause(Action):
    """A client reads nothing for `ticks` turns; past its mailbox's bound it is cut off."""

    name: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Slow(Action):
    """For `ticks` turns every step takes `factor` times as long."""

    ticks: int
    factor: float


@dataclass(frozen=True, slots=True)
class Break(Action):
    """The allocation number `after` from here on fails, and all behind it, or only this one: once.

    Within a step the step is lost; elsewhere, or lost too often, the daemon dies and comes again.
    """

    after: int
    once: bool = False


@dataclass(frozen=True, slots=True)
class Stop(Action):
    """The daemon is drained, and started anew when it is empty."""


@dataclass(frozen=True, slots=True)
class BreakDisk(Action):
    """The disk's operation number `after` from here on fails: what is read is damaged, and what is
    written, renamed or told of in the journal is the last.

    torn: only what is read; no write fails. stuck: so does what is to be removed.
    """

    after: int
    torn: bool = False
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Stall(Action):
    """The disk does nothing for `ticks` turns."""

    ticks: int


@dataclass(frozen=True, slots=True)
class Jump(Action):
    """Between two turns of the loop the clock has gone on by so much."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Kill(Action):
    """The daemon is gone from one moment to the next, and comes again."""


KINDS: dict[str, type[Action]] = {
    kind.__name__: kind
    for kind in (
        *(Ask, Again, Keep, LetGo, Wipe, GiveUp, Pause, Slow, Break, Stop),
        *(BreakDisk, Stall, Jump, Kill),
        *(Open, Fork, Back, Forget, TakeUp),
    )
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`actions` ascend in `at`."""

    config: Config
    actions: tuple[Action, ...]

    @property
    def ticks(self) -> int:
        """Turns until the last action has come."""
        return 1 + max((action.at for action in self.actions), default=0)

    def with_actions(self, actions: Iterable[Action]) -> Scenario:
        return replace(self, actions=tuple(actions))

    def dump(self) -> str:
        """What differs from the defaults, as JSON."""
        lines = [json.dumps({"config": _changed(self.config, Config())})]
        for action in self.actions:
            told = {"do": type(action).__name__} | _changed(action, None)
            lines.append(json.dumps(told, ensure_ascii=True))
        return "[\n" + ",\n".join(lines) + "\n]\n"

    @classmethod
    def parse(cls, text: str) -> Scenario:
        first, *rest = json.loads(text)
        actions = []
        for told in rest:
            kind = KINDS[told.pop("do")]
            actions.append(kind(**{key: _tuples(value) for key, value in told.items()}))
        return cls(Config(**first["config"]), tuple(actions))


def _changed(value: Any, default: Any) -> dict[str, Any]:
    """Fields of a frozen value that are not what they would be anyway."""
    told = asdict(value)
    if default is not None:
        return {key: told[key] for key in told if told[key] != getattr(default, key)}
    return {each.name: told[each.name] for each in fields(value) if told[each.name] != each.default}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
