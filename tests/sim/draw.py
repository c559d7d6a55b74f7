"""A seed draws a scenario: configuration, model shape, traffic and bad luck.

Swarm: each seed first draws which kinds of traffic and faults it has at all, and how often, so that
rare ones meet undiluted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from sapwood.scheduler.core.page_outs import DAY_S
from tests.sim.draw_talks import talked
from tests.sim.story import (
    Action,
    Again,
    Ask,
    Break,
    BreakDisk,
    Config,
    GiveUp,
    Jump,
    Keep,
    Kill,
    LetGo,
    Part,
    Pause,
    Scenario,
    Slow,
    Stall,
    Stop,
    Wipe,
)

STOPS = ((), ("b the",), ("\u00e9", "ab"), ("aba", "ba", " the a"), ("\U0001f600",))
GIVEN_UP = ("CANCELLED", "CANCELLED", "DEADLINE", "FAULT")
TICKS = 110
METAL_BYTES = 6144, 12_288
BUFFERS_MAX = 12, 40, 499_000 // 2  # so few that a tree is bound by them, and Metal's own


def scenario(seed: int) -> Scenario:
    """The scenario of a seed, the same on every machine."""
    random = Random(f"sapwood {seed}")
    config, asked = _config(random), _Traffic(random).actions()
    # Of their own randomness: what clients do in a seed is the same with operators and without.
    operators = Random(f"sapwood operators {seed}")
    config = replace(config, pins_max=operators.choice((1, 3, 64)))
    config = replace(config, pins_share_max=operators.choice((0.2, 0.5, 1.0)))
    actions = sorted([*_operated(operators, asked), *asked], key=lambda action: action.at)
    config, actions = _with_disk(Random(f"sapwood disk {seed}"), config, actions)
    share = Random(f"checks {seed}").choice((0.0, 0.0, 0.01, 0.3))
    config = replace(config, check_share=share)
    shared = _shared(Random(f"principals {seed}"), config, actions)
    varied = _varied(Random(f"candidates {seed}"), shared)
    talks = Random(f"sessions {seed}")
    config = replace(varied.config, sessions_max=talks.choice((2, 64)))
    actions = [*talked(talks, TICKS), *varied.actions]
    actions = _held(Random(f"constraints {seed}"), actions)
    actions += _jumped(Random(f"clocks {seed}"))
    depths = Random(f"depths {seed}")
    config = replace(config, draft_depth_max=depths.choice((8, 8, 15)))
    config = replace(config, deep_rows_max=depths.choice((2, 8)))
    return Scenario(config, tuple(sorted(actions, key=lambda action: action.at)))


def _with_disk(
    random: Random, config: Config, actions: list[Action]
) -> tuple[Config, list[Action]]:
    """In half of the seeds there is one, of their own randomness as well."""
    scale = max(1, (config.full_bytes + config.sliding_bytes) // 13)
    size = random.choice((0, 0, 6000 * scale, 10**7 * scale))
    if not size:
        return config, actions
    writes = random.choice((10**7 * scale, 10**7 * scale, 4000 * scale))
    config = replace(config, disk_bytes=size, disk_writes_bytes=writes)
    breaks, stalls, kills = (random.choice((0.0, 0.0, chance)) for chance in (0.1, 0.05, 0.03))
    drawn: list[Action] = []
    for at in range(TICKS):
        if random.random() < breaks:
            torn, stuck = random.random() < 0.8, random.random() < 0.3
            drawn.append(BreakDisk(at, random.randint(0, 30), torn, stuck))
        if random.random() < stalls:
            drawn.append(Stall(at, random.randint(1, 40)))
        if random.random() < kills:
            drawn.append(Kill(at))
    return config, sorted([*actions, *drawn], key=lambda action: action.at)


def _jumped(random: Random) -> list[Action]:
    """In one seed of three the clock jumps: a machine slept, by as much as a pin or a day lasts."""
    chance = random.choice((0.0, 0.0, 0.03))
    jumps = (0.05, 1.0, 30.0, 0.4 * DAY_S, 3 * DAY_S)
    return [Jump(at, random.choice(jumps)) for at in range(TICKS) if random.random() < chance]


def _operated(random: Random, asked: list[Action]) -> Iterator[Action]:
    """What operators do. Their streams' names are below those of clients."""
    pins, unpins, wipes = (random.choice((0.0, 0.0, chance)) for chance in (0.1, 0.05, 0.05))
    turns = [action.name for action in asked if isinstance(action, Ask)]
    kept: list[int] = []
    for at in range(TICKS):
        if random.random() < pins:
            kept.append(-1 - len(kept))
            parts = _prefix(random, turns)
            ttl_s = random.choice((None, None, 0.05, 1.0))
            yield Keep(at, kept[-1], parts, random.choice((0, 0, 0, 1)), ttl_s)
            if random.random() < 0.1:
                yield GiveUp(at + random.randint(0, 3), kept[-1])
        if random.random() < unpins and kept:
            yield LetGo(at, random.choice(kept))
        if random.random() < wipes:
            yield Wipe(at, random.choice(((), _prefix(random, turns))))


def _prefix(random: Random, turns: list[int]) -> tuple[Part, ...]:
    """What prompts begin with, or some turn so far, or a part of either."""
    if turns and random.random() < 0.4:
        return (("turn", random.choice(turns), random.choice((-1, random.randint(1, 80)))),)
    long = random.random() < 0.2
    return (("pool", random.randrange(3), random.randint(1, 300 if long else 60)),)


def _shared(random: Random, config: Config, actions: list[Action]) -> Scenario:
    """Whose each request is, of how many principals, and how urgent."""
    weights = [random.choice((1.0, 1.0, 3.0)) for _ in range(random.choice((1, 2, 2, 3, 9)))]
    urgent, early = random.choice((0.0, 0.0, 0.3)), random.choice((0.0, 0.5))
    asks = []
    for action in actions:
        if isinstance(action, Ask):
            # The first has most of them: whoever comes beside it has to get its share.
            which = min(int(random.expovariate(0.8)), len(weights) - 1)
            priority = random.choice((0, 2)) if random.random() < urgent else 1
            weight = weights[which]
            action = replace(action, principal=which, weight=weight, priority=priority)
            if action.deadline_s is not None:
                action = replace(action, early=random.random() < early)
        asks.append(action)
    config = replace(
        config, passed_max=random.choice((1, 4)), yield_steps_min=random.choice((4, 16))
    )
    return Scenario(config, tuple(asks))


def _varied(random: Random, drawn: Scenario) -> Scenario:
    """Who wants several replies, no short one, or the scores of its prompt."""
    several, long, scored = (random.choice((0.0, 0.0, chance)) for chance in (0.3, 0.3, 0.2))
    actions = [
        replace(
            action,
            candidates=random.choice((2, 3, 8)) if random.random() < several else 1,
            min_tokens=random.randint(1, 60) if random.random() < long else 0,
            prompt_logprobs=2 if random.random() < scored else 0,
        )
        if isinstance(action, Ask)
        else action
        for action in drawn.actions
    ]
    return replace(drawn, actions=tuple(actions))


def _held(random: Random, actions: list[Action]) -> list[Action]:
    """Who is held to a constraint: in one seed of three some are."""
    share = random.choice((0.0, 0.0, 0.4))
    return [
        replace(action, held=random.random() < share) if isinstance(action, Ask) else action
        for action in actions
    ]


def _config(random: Random) -> Config:
    pick = random.choice
    # The last but one: no layer slides. The last: E2B's own bytes, on a device with Metal's pages.
    full, sliding = pick(((3, 10), (3, 10), (1, 40), (20, 1), (5, 0), METAL_BYTES))
    metal = (full, sliding) == METAL_BYTES
    scale = sum(METAL_BYTES) // (3 + 10) if metal else 1
    return Config(
        slots_max=pick((1, 2, 4, 7)),
        queued_max=pick((1, 3, 50)),
        queue_s_max=pick((0.3, 60.0)),
        request_s_max=pick((2.0, 1800.0, 1800.0)),
        prefill_tokens_max=pick((5, 32, 64)),
        prefill_slices_max=pick((1, 2, 4)),
        share_tokens_min=pick((1, 4, 32)),
        overtaken_max=pick((1, 4)),
        parks_max=pick((1, 4)),
        reply_tokens_guess=pick((1, 8, 128)),
        tree_nodes_max=pick((1, 6, 1000)),
        mailbox_bytes_max=pick((60, 400)),
        window=pick((1, 4, 8, 30)) if sliding else 0,
        full_bytes=full,
        sliding_bytes=sliding,
        has_drafter=random.random() < 0.8,
        quality=pick((0.0, 0.6, 1.0)),
        budget_bytes=scale * pick((2200, 3000, 4500, 8000, 10**7)),
        step_s=pick((0.01, 0.1)),
        token_s=pick((0.0, 0.0005, 0.01)),
        draft_s=pick((0.0, 0.001, 0.02)),
        hitch_s=pick((0.0, 0.0, 0.5)),
        page_bytes=16384 if metal else 1,
        buffers_max=pick(BUFFERS_MAX) if metal else 0,
    )


class _Traffic:
    """Draws the actions of one scenario, in order."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._names = 0
        self._asks: list[Ask] = []
        self._rate = random.choice((0.1, 0.5, 2.0))
        self._burst = random.choice((0.0, 0.0, 0.05))
        self._long = random.choice((0.0, 0.0, 0.1))
        self._replies = random.choice((40, 40, 160))
        self._chances = {
            GiveUp: random.choice((0.0, 0.05, 0.2)),
            Again: random.choice((0.0, 0.1)),
            Pause: random.choice((0.0, 0.1, 0.3)),
            Slow: random.choice((0.0, 0.03)),
            Break: random.choice((0.0, 0.0, 0.0, 0.03)),
            Stop: random.choice((0.0, 0.0, 0.0, 0.02)),
        }
        self._deadlines = random.choice((0.0, 0.15))
        self._roots = random.choice((1, 1, 2))

    def actions(self) -> list[Action]:
        random, drawn = self._random, list[Action]()
        for at in range(TICKS):
            while random.random() < self._rate / (1 + self._rate):
                drawn.append(self._ask(at))
            if random.random() < self._burst:
                drawn += [self._ask(at) for _ in range(random.randint(5, 20))]
            for kind, chance in self._chances.items():
                if random.random() < chance and self._asks:
                    drawn.append(self._other(kind, at))
        return drawn

    def _other(self, kind: type[Action], at: int) -> Action:
        random = self._random
        # Mostly somebody recent: who is long gone cannot be bothered.
        name = self._asks[-1 - min(int(random.expovariate(0.3)), len(self._asks) - 1)].name
        if kind is GiveUp:
            return GiveUp(at, name, random.choice(GIVEN_UP))
        if kind is Again:
            return Again(at, self._name(), name)
        if kind is Pause:
            return Pause(at, name, random.randint(2, 60))
        if kind is Slow:
            return Slow(at, random.randint(1, 20), random.choice((3.0, 30.0)))
        if kind is Break:
            return Break(at, random.randint(0, 40), random.random() < 0.7)
        return Stop(at)

    def _name(self) -> int:
        self._names += 1
        return self._names

    def _ask(self, at: int) -> Ask:
        random = self._random
        greedy = random.random() < 0.5
        ask = Ask(
            at,
            self._name(),
            self._parts(),
            random.randint(1, self._replies),
            root=random.randrange(self._roots),
            temperature=0.0 if greedy else 1.0,
            seed=random.randrange(1 << 20) if random.random() < 0.5 else None,
            penalised=random.random() < 0.2,
            stop=random.choice(STOPS),
            stop_token_ids=tuple(random.sample(range(4, 48), random.choice((0, 0, 2)))),
            ignore_eos=random.random() < 0.3,
            depth=random.choice((None, None, None, 0, 1, 3, 8)),
            top_logprobs=random.choice((0, 0, 3)),
            bypass=random.random() < 0.1,
            store_reply=random.random() < 0.8,
            deadline_s=self._deadline_s(),
        )
        self._asks.append(ask)
        return ask

    def _deadline_s(self) -> float | None:
        if self._random.random() >= self._deadlines:
            return None
        return self._random.choice((0.01, 0.1, 0.5))

    def _parts(self) -> tuple[Part, ...]:
        """A known beginning, an earlier turn whole or cut, or something new; then its own tail."""
        random = self._random
        tail: Part = ("pool", random.randrange(100, 200), random.randint(1, 30))
        if random.random() < self._long:
            tail = ("pool", random.randrange(3), random.randint(150, 400))
        kind = random.random()
        if self._asks and kind < 0.3:
            earlier = random.choice(self._asks[-20:])
            return (("turn", earlier.name, random.choice((-1, -1, random.randint(1, 80)))), tail)
        if kind < 0.8:
            return (("pool", random.randrange(3), random.randint(1, 60)), tail)
        return (tail,)
