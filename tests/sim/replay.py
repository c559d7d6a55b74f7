"""Plays a daemon's recording on a fresh core: every plan is the same, byte for byte (L8).

    python -m tests.sim.replay FILE

Ends with 1 at the first plan that differs, and says which. A recording that was cut short (it was
full, or the daemon was killed) is played as far as it goes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.snapshot import Payload
from sapwood.cache.prefix.tree import Tree
from sapwood.daemon.engine.recording import FORMAT, written
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.events import (
    Cancel,
    Clear,
    Command,
    Drain,
    Forget,
    Fork,
    PinTerms,
    Priority,
    Request,
    Submit,
    Unpin,
)
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import Decoded, Prefilled, StepResult, TokenLogprobs
from sapwood.scheduler.sampling import Sampling
from sapwood.scheduler.session_events import (
    CreateSession,
    DeleteSession,
    ForkSession,
    ResumeReply,
    RollbackSession,
    SessionKey,
    SessionTurn,
)

SESSION_COMMANDS: dict[str, Callable[..., Command]] = {
    kind.__name__: kind
    for kind in (CreateSession, DeleteSession, ForkSession, ResumeReply, RollbackSession)
}


@dataclass(frozen=True)
class Span:
    """A Payload without content: ranges, and bytes for each token."""

    start: int
    end: int
    sliding_start: int
    full_each: int
    sliding_each: int

    @classmethod
    def read(cls, told: list[int]) -> Span:
        start, end, sliding_start, full, sliding = told
        sliding_each = sliding // (end - sliding_start) if sliding else 0
        return cls(start, end, sliding_start, full // (end - start), sliding_each)

    @property
    def full_bytes(self) -> int:
        return self.full_each * (self.end - self.start)

    @property
    def sliding_bytes(self) -> int:
        return self.sliding_each * (self.end - self.sliding_start)

    def split(self, at: int) -> tuple[Payload, Payload]:
        upper = self._like(self.start, at, min(self.sliding_start, at))
        return upper, self._like(at, self.end, max(self.sliding_start, at))

    def merge(self, child: Payload) -> Payload:
        assert isinstance(child, Span)
        gap = child.sliding_start > child.start
        sliding_start = child.sliding_start if gap else self.sliding_start
        each = child.sliding_each or self.sliding_each
        return Span(self.start, child.end, sliding_start, self.full_each, each)

    def thin(self, sliding_start: int) -> Payload:
        return self._like(self.start, self.end, sliding_start)

    def copy(self, start: int, end: int, sliding_start: int) -> Payload:
        return self._like(start, end, min(end, max(start, sliding_start, self.sliding_start)))

    def close(self) -> None:
        pass

    def _like(self, start: int, end: int, sliding_start: int) -> Span:
        return Span(start, end, sliding_start, self.full_each, self.sliding_each)


class Differs(AssertionError):
    """A plan is not what the recording says."""


def replay(lines: Iterable[str]) -> int:
    """The number of plans, all of them as recorded. Raises Differs."""
    told = iter(lines)
    core, plans = _core(json.loads(next(told))), 0
    plan: StepPlan | None = None
    for number, text in enumerate(told, 2):
        if not text.endswith("\n"):
            break
        line = json.loads(text)
        now = line.pop("now")
        if "plan" in line:
            plan = core.plan(now)
            ours, theirs = _bytes(None if plan is None else written(plan)), _bytes(line["plan"])
            if ours != theirs:
                raise Differs(f"line {number}: planned {ours!r}\nrecorded {theirs!r}")
            plans += plan is not None
        elif "lost" in line:
            assert plan is not None and plan.number == line["lost"], f"line {number}: {plan}"
            core.lose(plan, now)
        elif "decoded" in line:
            assert plan is not None, f"line {number}: a commit without a plan"
            core.commit(plan, _result(core, plan, line), now)
        else:
            core.handle(_command(line), now)
        core.take_effects()
    return plans


def _core(head: dict[str, Any]) -> Core:
    assert head["format"] == FORMAT, f"format {head['format']}, not {FORMAT}"
    facts = ModelFacts(
        **head["facts"] | {"eos_token_ids": frozenset(head["facts"]["eos_token_ids"])}
    )
    limits = Limits(**head["limits"])
    ledger = Ledger(head["budget_bytes"], facts.weights_bytes)
    tree = Tree(facts.window_tokens, limits.nodes_max(ledger.free))
    return Core(facts, limits, tree, ledger, [b""] * facts.vocabulary)


def _command(line: dict[str, Any]) -> Command:
    if "submit" in line:
        told = line["submit"]
        bias = tuple((id, value) for id, value in told["sampling"]["logit_bias"])
        sampling = Sampling(**told["sampling"] | {"logit_bias": bias})
        changed = {"root": told["root"].encode(), "prompt": tuple(told["prompt"])}
        changed["forks"] = tuple(Fork(**fork) for fork in told.get("forks", ()))
        changed["pin"] = told.get("pin") and PinTerms(**told["pin"])
        changed["session"] = _turn(told.get("session"))
        changed["priority"] = Priority(told.get("priority", Priority.NORMAL))
        return Submit(Request(**told | changed | {"sampling": sampling}))
    if "cancel" in line:
        id, why = line["cancel"]
        return Cancel(id, CancelReason[why])
    if "unpin" in line:
        return Unpin(*line["unpin"])
    if "clear" in line:
        id, tokens, root = line["clear"]
        return Clear(id, tuple(tokens), _root(root))
    if "forget" in line:
        id, principal, root = line["forget"]
        return Forget(id, principal, _root(root))
    if "session" in line:
        kind, owner, name, id, *rest = line["session"]
        return SESSION_COMMANDS[kind](id, SessionKey(owner, name), *rest)
    return Drain()


def _root(told: str | None) -> bytes | None:
    return None if told is None else told.encode()


def _turn(told: dict[str, Any] | None) -> SessionTurn | None:
    return None if told is None else SessionTurn(SessionKey(**told["key"]), told["revision"])


def _result(core: Core, plan: StepPlan, line: dict[str, Any]) -> StepResult:
    """Log-probabilities are due where a request asked for them; nothing is planned by them."""
    asked = {s.slot: bool(s.request.top_logprobs) for s in core._roster.live.values()}
    decoded = [
        Decoded(tuple(tokens), drafted, _logprobs(len(tokens) * asked[row.slot]), failure, forced)
        for row, (tokens, drafted, failure, forced) in zip(
            plan.decodes, line["decoded"], strict=True
        )
    ]
    prefilled = [
        Prefilled(
            token,
            _span(payload),
            _logprobs((token is not None) * asked[piece.slot]),
            failure,
            _logprobs(len(piece.scored)),
            forced,
        )
        for piece, (token, payload, failure, forced) in zip(
            plan.prefills, line["prefilled"], strict=True
        )
    ]
    captured = tuple(_span(payload) for payload in line["captured"])
    return StepResult(tuple(decoded), tuple(prefilled), captured)


def _logprobs(count: int) -> tuple[TokenLogprobs, ...]:
    return (TokenLogprobs(0.0, ()),) * count


def _span(told: list[int] | None) -> Span | None:
    return None if told is None else Span.read(told)


def _bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    with Path(sys.argv[1]).open() as file:
        try:
            print(f"{replay(file)} plans, all as recorded")
        except Differs as difference:
            print(difference)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
