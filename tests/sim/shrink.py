"""The shortest scenario that fails in the same way.

- Actions go first, in halves, quarters and so on down to single ones (delta debugging; Zeller and
  Hildebrandt 2002); then numbers become small and settings what they are by default.
- "The same way" is the place that raised: a shorter scenario that fails elsewhere is another story.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from tests.sim.play import Violation, play
from tests.sim.story import Action, Ask, Config, Scenario

ROUNDS_MAX = 20
KEPT = ("at", "name", "parts", "max_tokens")  # made smaller by other means than their default


def shrink(failing: Scenario, violation: Violation) -> Scenario:
    """`failing` fails with `violation`; so does what comes back, and nothing shorter was found."""
    for _ in range(ROUNDS_MAX):
        before = failing
        failing = _fewer_actions(failing, violation.key)
        failing = _smaller(failing, violation.key)
        if failing == before:
            break
    return failing


def _fails(candidate: Scenario, key: str) -> bool:
    _, violation = play(candidate)
    return violation is not None and violation.key == key


def _fewer_actions(failing: Scenario, key: str) -> Scenario:
    size = max(1, len(failing.actions) // 2)
    while True:
        start = 0
        while start < len(failing.actions):
            actions = failing.actions
            shorter = failing.with_actions(actions[:start] + actions[start + size :])
            if _fails(shorter, key):
                failing = shorter
            else:
                start += size
        if size == 1:
            return failing
        size //= 2


def _smaller(failing: Scenario, key: str) -> Scenario:
    """One pass over all that can be made simpler, keeping each change that still fails."""
    for each in fields(Config):
        if getattr(failing.config, each.name) != each.default:
            config = replace(failing.config, **_one(each.name, each.default))
            failing = _kept(failing, replace(failing, config=config), key)
    for index in range(len(failing.actions)):
        failing = _simplest(failing, index, key)
    return failing


def _simplest(failing: Scenario, index: int, key: str) -> Scenario:
    """Its action `index` made simpler, step by step, as long as that still fails."""
    earliest = failing.actions[index - 1].at if index else 0
    while True:
        actions = failing.actions
        for simpler in _simpler(actions[index], earliest):
            candidate = failing.with_actions((*actions[:index], simpler, *actions[index + 1 :]))
            if _fails(candidate, key):
                failing = candidate
                break
        else:
            return failing


def _one(name: str, value: object) -> dict[str, Any]:
    return {name: value}


def _kept(failing: Scenario, candidate: Scenario, key: str) -> Scenario:
    return candidate if _fails(candidate, key) else failing


def _simpler(action: Action, earliest: int) -> Iterator[Action]:
    """Each a little simpler; the boldest first. Order stays: nothing comes before `earliest`."""
    for at in (earliest, (earliest + action.at) // 2, action.at - 1):
        if earliest <= at < action.at:
            yield replace(action, at=at)
    if isinstance(action, Ask):
        yield from _simpler_ask(action)


def _simpler_ask(ask: Ask) -> Iterator[Ask]:
    for each in fields(Ask):
        if each.name not in KEPT and getattr(ask, each.name) != each.default:
            yield replace(ask, **_one(each.name, each.default))
    for tokens in (1, ask.max_tokens // 2, ask.max_tokens - 1):
        if 0 < tokens < ask.max_tokens:
            yield replace(ask, max_tokens=tokens)
    for index, (kind, which, count) in enumerate(ask.parts):
        above, below = ask.parts[:index], ask.parts[index + 1 :]
        if above or below:
            yield replace(ask, parts=above + below)
        for fewer in (1, count // 2, count - 1):
            if 0 < fewer < count:
                yield replace(ask, parts=(*above, (kind, which, fewer), *below))
