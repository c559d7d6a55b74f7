"""Fair shares by figures (ADR 013): what principals attain of what they are entitled to.

Production core, fake device, virtual clock. Without fairness each of these fails (test_unfair).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sapwood.scheduler.events import Priority
from sapwood.scheduler.limits import Limits
from tests.quick import few_quick
from tests.sim.crowd import Client, Crowd, jain, shortfall, unfair
from tests.sim.share_checks import water

JAIN_MIN = 0.98
WINDOW_STEPS = 200
LACKS_MAX = 1.0  # dearest steps; 0.92 to 0.95 was found
READER_LACKS_MAX = 2.5  # 2.2 was found; its rows are few while it replies, and prompts make up
EIGHT = Limits(slots_max=8, queue_s_max=1e9)  # who waits for ever is to be seen
STREAMS = {"a": 1, "b": 1, "c": 2, "d": 20}
WEIGHTS = {"light": 1.0, "middle": 2.0, "heavy": 4.0}
READING: dict[str, Any] = {"prompt_tokens": 300, "reply_tokens": 1}


def crowd_of_streams(steps: int, limits: Limits = EIGHT, **options: Any) -> Crowd:
    crowd = Crowd([Client(name, streams, **options) for name, streams in STREAMS.items()], limits)
    crowd.run(steps)
    return crowd


def crowd_of_weights(steps: int, **options: Any) -> Crowd:
    clients = [Client(name, 20, weight=weight, **options) for name, weight in WEIGHTS.items()]
    crowd = Crowd(clients, EIGHT)
    crowd.run(steps)
    return crowd


def alike(names: dict[str, int]) -> Counter[str]:
    return Counter(dict.fromkeys(names, 1))


def streams_of_replies() -> None:
    """L4: one stream is a row in every step, twenty are what is left."""
    crowd = crowd_of_streams(600)
    entitled = water(STREAMS, alike(STREAMS), 8)
    found = jain(crowd.attained(), entitled)
    assert found >= JAIN_MIN, f"L4: {found} of {crowd.attained()}"


def weights_of_replies() -> None:
    """L4: by weight, over all and over any 200 steps but for one quantum."""
    crowd = crowd_of_weights(800)
    found = jain(crowd.attained(), WEIGHTS)
    assert found >= JAIN_MIN, f"L4: {found} of {crowd.attained()}"
    lacks = shortfall(crowd, {name: w / 7 for name, w in WEIGHTS.items()}, WINDOW_STEPS)
    assert lacks <= LACKS_MAX, f"L4: {lacks} of the dearest step"


def streams_of_prompts() -> None:
    """L4: who reads prompts wants all that there is, so four principals have a quarter each."""
    crowd = crowd_of_streams(220, **READING)
    found = jain(crowd.attained(), alike(STREAMS))
    assert found >= JAIN_MIN, f"L4: {found} of {crowd.attained()}"


def weights_of_prompts() -> None:
    """L4."""
    crowd = crowd_of_weights(260, **READING)
    found = jain(crowd.attained(), WEIGHTS)
    assert found >= JAIN_MIN, f"L4: {found} of {crowd.attained()}"
    lacks = shortfall(crowd, {name: w / 7 for name, w in WEIGHTS.items()}, WINDOW_STEPS)
    assert lacks <= LACKS_MAX, f"L4: {lacks} of the dearest step"


def newcomer() -> None:
    """Behind 200 requests of somebody else: five steps to the first token."""
    crowd = Crowd([Client("many", 200, reply_tokens=512, again=False)], EIGHT)
    crowd.run(60)
    came = len(crowd.taken)
    crowd.come(Client("one", 1, reply_tokens=8, again=False))
    crowd.run(40)
    steps = [a.first - came for a in crowd.ended if a.client.principal == "one"]
    assert steps and steps[0] <= 5, f"L4: first token after {steps} steps"


def slots_that_take_more_time() -> None:
    """L4: of three principals with equal shares one reads long prompts, one has long replies."""
    clients = [
        Client("short", 20, reply_tokens=8),
        Client("long", 20, reply_tokens=300),
        Client("reading", 20, prompt_tokens=200, reply_tokens=30),
    ]
    crowd = Crowd(clients, EIGHT)
    crowd.run(700)
    found = jain(crowd.attained(), {"short": 1, "long": 1, "reading": 1})
    assert found >= JAIN_MIN, f"L4: {found} of {crowd.attained()}"


def one_who_reads() -> None:
    """L4: its prompts are the most of each step that they are in."""
    crowd = Crowd([Client("one", 1, 2000, 8), Client("many", 20, reply_tokens=300)], EIGHT)
    crowd.run(400)
    found = jain(crowd.attained(), {"one": 1, "many": 1})
    assert found >= JAIN_MIN, f"L4: {found} of {crowd.attained()}"
    lacks = shortfall(crowd, {"one": 0.5, "many": 0.5}, WINDOW_STEPS)
    assert lacks <= READER_LACKS_MAX, f"L4: {lacks} of the dearest step"


FIGURES: list[Callable[[], None]] = [
    streams_of_replies, weights_of_replies, streams_of_prompts, weights_of_prompts, newcomer,
    slots_that_take_more_time, one_who_reads,
]  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.__name__)
def test_l4(figure: Callable[[], None]) -> None:
    figure()


@pytest.mark.parametrize(
    "figure", few_quick(FIGURES, streams_of_replies), ids=lambda figure: figure.__name__
)
def test_l4_unfair(figure: Callable[[], None]) -> None:
    """With fairness off each figure is missed: what it says is this code's doing."""
    with unfair(), pytest.raises(AssertionError, match="L4"):
        figure()


def test_where_there_is_room_nobody_is_held_back() -> None:
    """Work-conserving: 24 streams in 32 slots are all in every step, however unequal."""
    crowd = crowd_of_streams(150, Limits(slots_max=32))
    assert crowd.core.stats().parks == 0
    assert max(asked.admitted - asked.came for asked in crowd.ended) <= 1
    assert jain(crowd.attained(), STREAMS) >= JAIN_MIN


def test_it_costs_few_tokens() -> None:
    fair = crowd_of_weights(400).tokens_per_s
    with unfair():
        most = crowd_of_weights(400).tokens_per_s
    assert fair >= 0.95 * most


def test_who_is_urgent_goes_first_among_its_own_and_nobody_starves() -> None:
    batch = Client("one", 12, priority=Priority.BATCH)
    urgent = Client("one", 12, priority=Priority.INTERACTIVE)
    crowd = Crowd([batch], EIGHT)
    crowd.run(30)
    came = len(crowd.taken)
    crowd.come(urgent)
    crowd.run(600)
    waits = [a.admitted - a.came for a in crowd.ended if a.client.priority is Priority.INTERACTIVE]
    assert sum(a.came >= came for a in crowd.ended) > 100
    assert max(waits[:7]) <= 8, "seven of eight rows yield, one in a step"
    ended = Counter(asked.client.priority for asked in crowd.ended if asked.first > came + 50)
    share = ended[Priority.BATCH] / ended.total()
    assert 0.05 < share < 0.25, f"one in nine: {ended}"


def test_an_urgency_takes_nothing_from_others() -> None:
    """L4."""
    loud = Client("loud", 20, priority=Priority.INTERACTIVE)
    crowd = Crowd([loud, Client("quiet", 20, priority=Priority.BATCH)], EIGHT)
    crowd.run(300)
    assert jain(crowd.attained(), {"loud": 1, "quiet": 1}) >= JAIN_MIN
