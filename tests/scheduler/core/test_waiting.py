"""Who goes next: first come first served, longer prefixes, and waiting for a shared one."""

from __future__ import annotations

from sapwood.scheduler.events import Finished
from sapwood.scheduler.limits import Limits
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, prompt

LIMITS = Limits(slots_max=4, prefill_tokens_max=16, share_tokens_min=8, overtaken_max=3)


def cached(stream: Stream) -> int:
    assert isinstance(stream.end, Finished)
    return stream.end.usage.cached_tokens


def running(house: House) -> int:
    return house.core.stats().requests_running


def test_many_with_one_cold_prefix_compute_it_once() -> None:
    """Eight clients with one system prompt, all at once: it is evaluated by the first alone."""
    house = House(limits=Limits(slots_max=8, prefill_tokens_max=64))
    streams = [house.submit(prompt(200) + prompt(5, seed), 4) for seed in range(1, 9)]
    house.run()
    assert [cached(stream) for stream in streams] == [0] + [200] * 7
    assert house.device.restored_tokens == 7 * 200
    house.close()


def test_too_little_in_common_is_not_waited_for() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(7) + prompt(50, 1), 4)
    house.submit(prompt(7) + prompt(50, 2), 4)
    house.step()
    assert running(house) == 2
    house.submit(prompt(8) + prompt(50, 3), 4)
    house.run()
    house.close()


def test_what_the_tree_has_already_is_not_waited_for() -> None:
    """Only share_tokens_min tokens beyond what can be restored are worth a wait."""
    house = House(limits=LIMITS)
    house.submit(prompt(40), 1)
    house.run()
    house.submit(prompt(46) + prompt(40, 1), 4)
    house.submit(prompt(46) + prompt(4, 2), 4)
    plan = house.step()
    assert plan is not None
    assert [admit.target for admit in plan.admits] == [40, 40]
    house.run()
    house.close()


def test_nobody_waits_for_a_prefix_that_will_not_be_stored() -> None:
    """A leader that bypasses the cache or belongs to somebody else leads nobody."""
    house = House(limits=LIMITS)
    house.submit(prompt(60), 4, cache_bypass=True)
    house.submit(prompt(60), 4, root=b"other")
    house.submit(prompt(60), 4)
    house.step()
    assert running(house) == 3
    house.run()
    house.close()


def test_who_waits_holds_no_slot() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(60), 4)
    for seed in range(1, 6):
        house.submit(prompt(50) + prompt(9, seed), 4)
    stranger = house.submit(prompt(10, 9), 2)
    house.step()
    assert running(house) == 2, "the first and the stranger behind five that wait"
    house.run()
    assert cached(stranger) == 0
    house.close()


def test_each_end_of_the_first_passes_its_work_on() -> None:
    """The second takes over from what is stored, whenever the first is cancelled."""
    for steps in range(1, 5):
        house = House(limits=LIMITS)
        first = house.submit(prompt(60), 4)
        second = house.submit(prompt(60), 4)
        for _ in range(steps):
            house.step()
        house.cancel(first)
        house.run()
        assert cached(second) == min(16 * steps, 59)
        house.close()


def test_nobody_is_overtaken_more_often_than_allowed() -> None:
    """Twenty requests with a cached prefix come after one without; it goes after three of them."""
    limits = Limits(slots_max=1, prefill_tokens_max=64, overtaken_max=3)
    house = House(limits=limits)
    house.submit(prompt(40), 1)
    house.run()
    house.submit(prompt(5, 8), 1)
    house.step()
    cold = house.submit(prompt(20, 7), 1)
    for seed in range(20):
        house.submit(prompt(40) + prompt(3, seed), 1)
    before = 0
    while cold.end is None:
        before += sum(bool(admit.target) for admit in (house.step() or house.plans[0]).admits)
        house.deliver()
    assert before == limits.overtaken_max
    house.run()
    house.close()


def test_one_that_does_not_fit_lets_others_by_and_still_has_its_turn() -> None:
    """Small requests pass a large one that waits for memory, but not for ever."""
    limits = Limits(slots_max=4, prefill_tokens_max=64, overtaken_max=3)
    facts = toy_facts()
    workspace = facts.workspace_bytes_per_token * (64 + 4 * 9)
    budget = facts.weights_bytes + facts.live_bytes(256) + facts.live_bytes(16) + workspace
    house = House(limits=limits, budget_bytes=budget)
    running_first = house.submit(prompt(30, 1), 34, ignore_eos=True, cache_bypass=True)
    house.step()
    large = house.submit(prompt(200, 2), 56, ignore_eos=True, cache_bypass=True)
    small = [house.submit(prompt(4, 3 + n), 12, cache_bypass=True) for n in range(9)]
    order: list[Stream] = []
    while house.core.has_work:
        house.step()
        order += [s for s in [large, *small] if s.progress and s not in order]
    assert order.index(large) <= limits.overtaken_max
    assert running_first.end is not None
    house.close()


def test_prompts_are_compared_once_per_pair() -> None:
    """Neither a match nor a comparison is repeated while nothing changes for who waits."""
    house = House(limits=LIMITS)
    matches = 0
    match = house.tree.match

    def counting(*arguments: object) -> object:
        nonlocal matches
        matches += 1
        return match(*arguments)  # type: ignore[arg-type]

    house.tree.match = counting  # type: ignore[method-assign, assignment]
    house.submit(prompt(300), 4)
    for seed in range(1, 20):
        house.submit(prompt(290) + prompt(9, seed), 4)
    house.step()
    for _ in range(10):
        house.step()
    assert running(house) == 1
    assert matches == 20, "one for each prompt, and none while they wait"
    house.run()
    house.close()
