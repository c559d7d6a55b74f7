"""What clients of sessions do in a scenario: turns, forks, rollbacks, and streams that break."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.sim.story import Action, Ask, Back, Forget, Fork, GiveUp, Open, Part, TakeUp

FIRST_NAME = 100_000  # of their streams, above all others
STOPS = ((), (), ("b the",), ("aba", "ba", " the a"))


def talked(random: Random, ticks: int) -> Iterator[Action]:
    """In half of the seeds nobody has a session."""
    rate = random.choice((0.0, 0.0, 0.2, 0.5))
    sessions, name = random.choice((1, 3)), FIRST_NAME
    recent: list[int] = []
    for at in range(ticks):
        if random.random() >= rate:
            continue
        session = random.randrange(sessions)
        yield Open(at, session, random.choice((0.2, 1e6, 1e6)))
        chance = random.random()
        if chance < 0.6 or not recent:
            name += 1
            recent.append(name)
            yield _turn(random, at, name, session)
        elif chance < 0.7:
            yield Fork(at, session, random.randrange(sessions + 1), random.choice((-1, 0, 9, 40)))
        elif chance < 0.78:
            yield Back(at, session, random.choice((0, 5, 30, 60)))
        elif chance < 0.8:
            yield Forget(at, session)
        else:
            name += 1
            if random.random() < 0.7:
                yield GiveUp(at, recent[-1], random.choice(("CANCELLED", "DEADLINE")))
            yield TakeUp(at + random.choice((0, 1, 4)), name, recent[-1])
            recent.append(name)


def _turn(random: Random, at: int, name: int, session: int) -> Ask:
    parts: tuple[Part, ...] = (("pool", random.randrange(3), random.randint(1, 40)),)
    greedy = random.random() < 0.5
    return Ask(
        at,
        name,
        parts,
        random.choice((1, 8, 40)),
        temperature=0.0 if greedy else 1.0,
        seed=random.randrange(1 << 20) if random.random() < 0.5 else None,
        penalised=random.random() < 0.2,
        stop=random.choice(STOPS),
        ignore_eos=random.random() < 0.3,
        depth=random.choice((None, None, 0, 3)),
        deadline_s=random.choice((None, None, None, 0.1)),
        session=session,
    )
