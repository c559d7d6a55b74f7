"""Clients that always have as many requests as streams, on the production core and fake device.

- What a principal attains is device time by the device's own formula, not by what the core learned:
  a step's base in equal parts of its rows and slices, drafts and tokens each its own.
- A client learns of an end when the next plan is made, and asks again before the one after it: as
  over the wire, where nothing waits for it.
- Nothing is checked here but what steps take: houses and worlds do the rest.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from random import Random
from unittest.mock import patch

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.core.fairness import Fairness
from sapwood.scheduler.events import Delta, Failed, Finished, Priority, Request, Submit
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.scheduler.fake_device import TOKEN_BYTES, FakeDevice, toy_facts

BUDGET_BYTES = 10**8
_BEGAN = 1000.0
BASE_S, TOKEN_S, DRAFT_S = 0.010, 0.0005, 0.001  # FakeDevice.seconds


@dataclass(frozen=True)
class Client:
    """One of a principal's, with so many streams, each of requests like these."""

    principal: str
    streams: int
    prompt_tokens: int = 20
    reply_tokens: int = 40
    weight: float = 1.0
    priority: Priority = Priority.NORMAL
    again: bool = True  # asks again when a reply ends


@dataclass
class Asked:
    """A request on its way. Steps are numbers of plans."""

    client: Client
    came: int
    first: int = 0  # token
    admitted: int = 0


class Crowd:
    """Steps of one core under some clients."""

    def __init__(self, clients: Iterable[Client], limits: Limits, quality: float = 0.7) -> None:
        facts = toy_facts()
        ledger, tree = Ledger(BUDGET_BYTES, facts.weights_bytes), Tree(facts.window_tokens, 500)
        self.core = Core(facts, limits, tree, ledger, TOKEN_BYTES)
        self.device = FakeDevice(facts, limits, quality)
        self.now = _BEGAN
        self.asked: dict[int, Asked] = {}
        self.ended: list[Asked] = []
        self.tokens = 0
        self.taken: list[Mapping[str, float]] = []  # device seconds by principal, of each step
        self.short: list[set[str]] = []  # who wanted more in it
        self._ids = count(1)
        self._coming: deque[Client] = deque()
        for client in clients:
            self.come(client)

    def come(self, client: Client) -> None:
        """All its streams, with the next step."""
        self._coming.extend([client] * client.streams)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> StepPlan:
        """One turn of the engine's loop."""
        while self._coming:
            self._ask(self._coming.popleft())
        plan = self.core.plan(self.now)
        assert plan is not None, "somebody always wants something"
        owners = {s.slot: s.id for s in self.core._roster.live.values()}
        for admit in plan.admits:
            asked = self.asked[owners[admit.slot]]
            asked.admitted = asked.admitted or plan.number
        again = list(self._told(plan.number))
        result = self.device.run(plan)
        self.now += self.device.seconds(plan)
        self.taken.append(self._shares(plan, owners))
        self.short.append(self._short(plan, owners))
        self.core.commit(plan, result, self.now)
        self._coming.extend(again)
        return plan

    @property
    def tokens_per_s(self) -> float:
        """Of all replies together."""
        return self.tokens / (self.now - _BEGAN)

    def attained(self) -> dict[str, float]:
        """Device seconds of each principal."""
        names = {asked.client.principal for asked in (*self.asked.values(), *self.ended)}
        return {name: sum(step.get(name, 0.0) for step in self.taken) for name in names}

    def _ask(self, client: Client) -> None:
        id = next(self._ids)
        request = Request(
            id=id,
            root=b"root",
            prompt=tuple(Random(id).choices(range(4, 48), k=client.prompt_tokens)),
            max_tokens=client.reply_tokens,
            sampling=Sampling(),
            ignore_eos=True,
            principal=client.principal,
            weight=client.weight,
            priority=client.priority,
        )
        self.asked[id] = Asked(client, len(self.taken))
        self.core.handle(Submit(request), self.now)

    def _told(self, step: int) -> Iterable[Client]:
        """Whose stream asks again, by the effects up to now."""
        for effect in self.core.take_effects():
            asked = self.asked[effect.id]
            assert not isinstance(effect, Failed), effect
            if isinstance(effect, Delta):
                self.tokens += len(effect.token_ids)
                asked.first = asked.first or step - 1
            elif isinstance(effect, Finished):
                self.ended.append(self.asked.pop(effect.id))
                if asked.client.again:
                    yield Client(**vars(asked.client) | {"streams": 1})

    def _shares(self, plan: StepPlan, owners: Mapping[int, int]) -> Mapping[str, float]:
        taken: defaultdict[str, float] = defaultdict(float)
        parts = len(plan.decodes) + len(plan.prefills)
        depth = max((row.iterations for row in plan.decodes), default=0)
        for row in plan.decodes:
            own = TOKEN_S * (row.depth + 1) + DRAFT_S * depth / len(plan.decodes)
            taken[self.asked[owners[row.slot]].client.principal] += BASE_S / parts + own
        for piece in plan.prefills:
            own = TOKEN_S * len(piece.tokens)
            taken[self.asked[owners[piece.slot]].client.principal] += BASE_S / parts + own
        return taken

    def _short(self, plan: StepPlan, owners: Mapping[int, int]) -> set[str]:
        """Who waits for a row, or has one and is not done with its prompt."""
        done = {owners[p.slot] for p in plan.prefills if p.draws} | {
            owners[row.slot] for row in plan.decodes
        }
        return {asked.client.principal for id, asked in self.asked.items() if id not in done}


@contextmanager
def unfair() -> Iterator[None]:
    """As if all were one principal's."""
    with (
        patch.object(Fairness, "_entitle", lambda *_: {}),
        patch.object(Fairness, "parts", lambda *_: {}),
    ):
        yield


def jain(attained: Mapping[str, float], entitled: Mapping[str, float]) -> float:
    """1 where all have the same part of what they are entitled to, 1 / n where one has all."""
    ratios = [attained.get(name, 0.0) / share for name, share in entitled.items()]
    return sum(ratios) ** 2 / (len(ratios) * sum(ratio**2 for ratio in ratios))


def shortfall(crowd: Crowd, shares: Mapping[str, float], steps: int) -> float:
    """The most that anybody lacks of its share of any `steps` in a row, in their dearest step.

    Of a step in which it wanted no more, its share is what it had, if that is less.
    """
    totals = [sum(step.values()) for step in crowd.taken]
    worst = 0.0
    for name, share in shares.items():
        lacks = [
            share * total - own if name in short or own > share * total else 0.0
            for total, own, short in zip(
                totals, (step.get(name, 0.0) for step in crowd.taken), crowd.short, strict=True
            )
        ]
        for first in range(len(totals) - steps + 1):
            window = slice(first, first + steps)
            worst = max(worst, sum(lacks[window]) / max(totals[window]))
    return worst
