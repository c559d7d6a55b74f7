"""Random traffic on the whole core: every stream is checked as it runs, every byte at the end.

A seed draws the configuration too. A failure's test id holds the seed.
"""

from __future__ import annotations

from random import Random

import pytest

from sapwood.scheduler.events import Drain
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.sampling import Sampling
from tests.scheduler.fake_device import VOCABULARY, toy_facts
from tests.scheduler.house import ROOMY, House, Stream, bare, prompt

STOPS = ((), ("b the",), ("\u00e9", "ab"), ("aba", "ba", " the a"), ("\U0001f600",))


def build(random: Random) -> House:
    slots = random.choice((1, 2, 4, 7))
    limits = Limits(
        slots_max=slots,
        queued_max=random.choice((3, 50)),
        queue_s_max=random.choice((0.3, 60.0)),
        prefill_tokens_max=random.choice((5, 32, 64)),
        prefill_slices_max=random.choice((1, 2, 4)),
        share_tokens_min=random.choice((4, 32)),
        overtaken_max=random.choice((1, 4)),
        tree_nodes_max=random.choice((6, 1000)),
    )
    facts = toy_facts(has_drafter=random.random() < 0.8, window=random.choice((4, 8, 30)))
    budget = random.choice((2200, 3000, 4500, 8000, ROOMY))
    return House(
        limits=limits, facts=facts, budget_bytes=budget, quality=random.choice((0.0, 0.6, 1.0))
    )


def draw_prompt(random: Random, house: House) -> tuple[int, ...]:
    """A known beginning, a whole earlier turn, or something new, and a tail of its own."""
    tail = tuple(random.randrange(4, VOCABULARY) for _ in range(random.randint(1, 30)))
    kind = random.random()
    streams = list(house.streams.values())
    if streams and kind < 0.3:
        earlier = random.choice(streams)
        return (earlier.request.prompt + tuple(earlier.tokens) + tail)[:120]
    if kind < 0.8:
        return prompt(60, random.randrange(3))[: random.randint(1, 60)] + tail
    return tail


def submit(random: Random, house: House) -> Stream:
    depth = random.choice((None, None, None, 0, 1, 3, 8)) if house.facts.has_drafter else None
    deadline = house.now + random.choice((0.01, 0.1, 0.5)) if random.random() < 0.15 else None
    return house.submit(
        draw_prompt(random, house),
        random.randint(1, 40),
        sampling=Sampling(
            temperature=random.choice((0.0, 1.0)),
            seeded=random.random() < 0.5,
            noise_key=random.randrange(1 << 40),
        ),
        stop=random.choice(STOPS),
        stop_token_ids=frozenset(random.sample(range(4, VOCABULARY), random.choice((0, 0, 2)))),
        ignore_eos=random.random() < 0.3,
        root=random.choice((b"root", b"other")),
        depth=depth,
        top_logprobs=random.choice((0, 0, 3)),
        cache_bypass=random.random() < 0.1,
        store_reply=random.random() < 0.8,
        deadline=deadline,
    )


def drive(seed: int, steps: int) -> House:
    random = Random(seed)
    house = build(random)
    rate = random.choice((0.1, 0.5, 2.0))
    for _ in range(steps):
        while random.random() < rate / (1 + rate):
            submit(random, house)
        if random.random() < 0.1 and house.streams:
            reason = random.choice(list(CancelReason))
            house.cancel(random.choice(list(house.streams.values())), reason)
        if house.core.has_work:
            house.step()
    return house


@pytest.mark.parametrize("seed", range(60))
def test_any_traffic_gives_every_stream_its_reference(seed: int) -> None:
    """R1, R2, S1, S3, S4, S5, T7, T9, T11, L1, L2, L6, M1, M3: safety, then all comes to rest."""
    house = drive(seed, 120)
    house.run()
    house.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_drain_at_any_time_lets_the_running_finish(seed: int) -> None:
    """D1: what waits is refused with DRAINING, what runs ends as it would have, then finished."""
    house = drive(seed, 25)
    house.handle(Drain())
    running = house.core.stats().requests_running
    assert house.core.stats().requests_waiting == 0
    ended = [s for s in house.streams.values() if s.end is not None]
    late = house.submit(prompt(5))
    house.run()
    assert house.core.finished
    assert late.end is not None
    assert getattr(late.end, "reason", None) is Reason.DRAINING
    assert running <= len(house.streams) - len(ended)
    house.close()


@pytest.mark.parametrize("seed", range(8))
def test_the_same_stimuli_give_the_same_plans(seed: int) -> None:
    """L8: events and times replayed into a fresh core reproduce every plan, field by field."""
    log = drive(seed, 80).stimuli
    house = build(Random(seed))
    assert any(plan is not None for kind, _, plan in log if kind == "plan")
    for kind, now, value in log:
        if kind == "event":
            house.core.handle(value, now)  # type: ignore[arg-type]
        elif kind == "plan":
            plan = house.core.plan(now)
            assert bare(plan) == value
        else:
            assert plan is not None
            house.core.commit(plan, house.device.run(plan), now)
