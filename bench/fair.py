"""What principals attain of the device where they contend for it: fair beside unfair (ADR 013).

- The production core on the tests' fake device (tests/sim/crowd.py): what a step takes is a
  formula, so the same figures come everywhere. A run is one acceptance of drafts, of ACCEPTANCES.
- Eight slots, and clients that ask again at once. Entitled are, where all reply, slots by
  water-filling, demand being streams; where somebody reads prompts, equal parts or those of
  weights: a reader wants all that there is.
- jain: Jain's index of attained ÷ entitled device time. lacks: the most that anybody lacks of its
  share over any 200 steps in a row, in the dearest of them. tokens: a second, ÷ unfair.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.measure import Figure, Goal, Side, at_least, at_most
from bench.setup import Setup
from sapwood.daemon import blas
from sapwood.scheduler.limits import Limits
from tests.sim.crowd import Client, Crowd, jain, shortfall, unfair

ACCEPTANCES = (0.3, 0.6, 0.9)
CONTENDED_SLOTS, _WINDOW = 8, 200
NEWCOMER_STEPS_MAX = 5
_STEPS, _QUICK_STEPS = 800, 250
CROWDED_STREAMS = {"a": 1, "b": 1, "c": 2, "d": 20}
SLOT_SHARES = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0}  # of CROWDED_STREAMS, by water-filling
CROWD_WEIGHTS = {"light": 1.0, "middle": 2.0, "heavy": 4.0}
_READING: dict[str, Any] = {"prompt_tokens": 300, "reply_tokens": 1}


@dataclass(frozen=True, slots=True)
class FairCase:
    """Clients, and what each principal is entitled to, in any unit.

    goal: of tokens a second ÷ unfair; None where what is read instead is no token.
    """

    title: str
    clients: tuple[Client, ...]
    entitled: Mapping[str, float]
    goal: Goal | None = None

    @classmethod
    def of_streams(cls, title: str, entitled: Mapping[str, float], **asks: Any) -> FairCase:
        clients = [Client(name, streams, **asks) for name, streams in CROWDED_STREAMS.items()]
        return cls(title, tuple(clients), entitled, _few_tokens(asks))

    @classmethod
    def of_weights(cls, title: str, **asks: Any) -> FairCase:
        clients = [
            Client(name, 20, weight=weight, **asks) for name, weight in CROWD_WEIGHTS.items()
        ]
        return cls(title, tuple(clients), CROWD_WEIGHTS, _few_tokens(asks))


def _few_tokens(asks: Mapping[str, Any]) -> Goal | None:
    return at_least(0.95) if asks["reply_tokens"] > 1 else None


def _cases() -> dict[str, FairCase]:
    cases: dict[str, FairCase] = {}
    for tokens in (40, 150, 400):
        said = f"replies of {tokens}"
        streams = FairCase.of_streams(
            f"1, 1, 2, 20 streams, {said}", SLOT_SHARES, reply_tokens=tokens
        )
        cases[f"streams-{tokens}"] = streams
        weights = FairCase.of_weights(f"weights 1, 2, 4, {said}", reply_tokens=tokens)
        cases[f"weights-{tokens}"] = weights
    alike = dict.fromkeys(CROWDED_STREAMS, 1.0)
    cases["prompts-streams"] = FairCase.of_streams(
        "1, 1, 2, 20 streams of prompts alone", alike, **_READING
    )
    cases["prompts-weights"] = FairCase.of_weights("weights 1, 2, 4, prompts alone", **_READING)
    cases["mixed"] = FairCase(
        "short replies, long replies, prompts with replies, 20 streams each",
        (
            Client("short", 20, reply_tokens=8),
            Client("long", 20, reply_tokens=300),
            Client("reading", 20, prompt_tokens=200, reply_tokens=30),
        ),
        {"short": 1.0, "long": 1.0, "reading": 1.0},
    )
    cases["reader"] = FairCase(
        "one stream of long prompts beside 20 that decode",
        (Client("one", 1, 2000, 8), Client("many", 20, reply_tokens=300)),
        {"one": 1.0, "many": 1.0},
    )
    names = [f"p{i}" for i in range(20)]
    cases["twenty"] = FairCase(
        "20 principals with one stream each",
        tuple(Client(name, 1, reply_tokens=200) for name in names),
        dict.fromkeys(names, 1.0),
        at_least(0.95),
    )
    return cases


@dataclass(frozen=True, slots=True)
class Attained:
    """One crowd: its figures, as the module's text says."""

    jain: float
    lacks: float
    tokens_per_s: float


def attained(case: FairCase, acceptance: float, steps: int) -> Attained:
    crowd = Crowd(case.clients, _limits(), acceptance)
    crowd.run(steps)
    whole = sum(case.entitled.values())
    shares = {name: share / whole for name, share in case.entitled.items()}
    lacks = shortfall(crowd, shares, _WINDOW)
    return Attained(jain(crowd.attained(), shares), lacks, crowd.tokens_per_s)


def _limits() -> Limits:
    return Limits(slots_max=CONTENDED_SLOTS, queue_s_max=1e9)  # who waits for ever is to be seen


def measure(setup: Setup) -> list[Figure]:
    steps = _QUICK_STEPS if setup.quick else _STEPS
    setup.blas.add(blas.loaded(os.getpid()))  # of no use here, and every record has one
    figures = [
        figure for name, case in _cases().items() for figure in _figures(setup, name, case, steps)
    ]
    return [*figures, _newcomer()]


def _figures(setup: Setup, name: str, case: FairCase, steps: int) -> Iterator[Figure]:
    fair = [attained(case, acceptance, steps) for acceptance in ACCEPTANCES]
    with unfair():
        without = [attained(case, acceptance, steps) for acceptance in ACCEPTANCES]
    setup.say(f"{name}: {', '.join(f'{a.jain:.3f} {a.lacks:.2f}' for a in fair)}")
    figure = partial(_figure, name, case.title, fair, without)
    yield figure("jain", "Jain's index", "", lambda a: a.jain, at_least(0.98), ideal=1.0)
    told = "the most that anybody lacks in 200 steps ÷ the dearest one"
    yield figure("lacks", told, "steps", lambda a: a.lacks, at_most(1.0), ideal=1.0)
    yield figure("tokens", "tokens/s ÷ unfair", "tokens/s", lambda a: a.tokens_per_s, case.goal)


def _figure(
    name: str,
    title: str,
    fair: list[Attained],
    without: list[Attained],
    kind: str,
    told: str,
    unit: str,
    of: Callable[[Attained], float],
    goal: Goal | None,
    ideal: float | None = None,
) -> Figure:
    """ideal: what it is measured by, instead of what it were unfair, which is in the details."""
    ours, others = tuple(map(of, fair)), tuple(map(of, without))
    peer = ("unfair", others) if ideal is None else ("ideal", (ideal,) * len(ours))
    details = dict(zip((f"unfair_{a}" for a in ACCEPTANCES), others, strict=True))
    return Figure(
        f"fair/{name}/{kind}",
        f"{title}: {told}",
        Side("fair", unit, ours),
        Side(peer[0], unit, peer[1]),
        goal,
        details,
    )


def _newcomer() -> Figure:
    """A short request behind 200 of somebody else: steps to its first token."""
    steps = []
    for acceptance in ACCEPTANCES:
        crowd = Crowd([Client("many", 200, reply_tokens=512, again=False)], _limits(), acceptance)
        crowd.run(60)
        came = len(crowd.taken)
        crowd.come(Client("one", 1, reply_tokens=8, again=False))
        while not (own := [a for a in crowd.ended if a.client.principal == "one"]):
            crowd.step()
        steps.append(float(own[0].first - came))
    return Figure(
        "fair/newcomer",
        f"steps to the first token behind 200 requests of somebody else ÷ {NEWCOMER_STEPS_MAX}",
        Side("fair", "steps", tuple(steps)),
        Side("bound", "steps", (float(NEWCOMER_STEPS_MAX),) * len(steps)),
        at_most(1.0),
    )
