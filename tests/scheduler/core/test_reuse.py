"""What later requests find of earlier ones, and what nobody may find."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.scheduler.fake_device import EOS, toy_facts
from tests.scheduler.house import SMALL, House, finished, prompt


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("stop", [{}, {"stop": ("b the",)}, {"ignore_eos": True}])
def test_a_second_turn_restores_prompt_and_reply(depth: int, stop: dict[str, object]) -> None:
    """T11: all but the newest token, whatever ended the reply and however it was drafted."""
    house = House(quality=1.0)
    first = house.submit(prompt(30), 60, depth=depth, **stop)
    house.run()
    turn = first.request.prompt + tuple(first.tokens)
    second = house.submit(turn + prompt(5, 3), 4)
    house.run()
    assert finished(second).usage.cached_tokens == len(turn) - 1
    again = house.submit(turn, 4)
    house.run()
    assert finished(again).usage.cached_tokens == len(turn) - 1
    house.close()


def test_an_accepted_eos_is_not_stored() -> None:
    """T11: its own state never enters, though the device evaluated past it."""
    house = House(quality=1.0)
    streams = [house.submit(prompt(20, seed), 60, depth=8) for seed in range(8)]
    house.run()
    stopped = [stream for stream in streams if finished(stream).reason == "stop"]
    assert stopped, "no seed of this test ends by EOS any more: choose others"
    for stream in stopped:
        assert stream.tokens[-1] == EOS
        turn = stream.request.prompt + tuple(stream.tokens)
        assert house.tree.match(b"root", (*turn, 5)).matched == len(turn) - 1
    house.close()


def test_store_reply_off_keeps_the_prompt_only() -> None:
    house = House()
    stream = house.submit(prompt(30), 10, store_reply=False, ignore_eos=True)
    house.run()
    assert not any(plan.captures for plan in house.plans)
    turn = stream.request.prompt + tuple(stream.tokens)
    assert house.tree.match(b"root", turn).matched == 30
    house.close()


@pytest.mark.parametrize(("reply", "kept"), [(41, 40), (42, 0)])
def test_what_is_more_than_an_edge_can_hold_is_not_stored(reply: int, kept: int) -> None:
    """M1: of a reply, whose newest token is never stored; its prompt comes in slices."""
    house = House(facts=replace(toy_facts(), edge_tokens_max=40))
    stream = house.submit(prompt(30), reply, ignore_eos=True)
    house.run()
    assert len(stream.tokens) == reply
    turn = stream.request.prompt + tuple(stream.tokens)
    assert house.tree.match(b"root", (*turn, 5)).matched == 30 + kept
    house.close()


def test_cache_bypass_neither_restores_nor_stores() -> None:
    house = House()
    house.submit(prompt(30), 5)
    house.run()
    nodes = house.tree.nodes
    stream = house.submit(prompt(30) + prompt(9, 4), 5, cache_bypass=True)
    house.run()
    assert finished(stream).usage.cached_tokens == 0
    assert house.tree.nodes == nodes
    assert house.tree.match(b"root", prompt(30) + prompt(9, 4)).matched == 30
    house.close()


def test_a_cancelled_prefill_resumes_where_it_was() -> None:
    """T12."""
    house = House(limits=SMALL)
    stream = house.submit(prompt(60), 5)
    for _ in range(2):
        house.step()
    house.cancel(stream)
    retry = house.submit(prompt(60), 5)
    house.run()
    assert finished(retry).usage.cached_tokens == 32
    house.close()


def test_a_reply_cut_by_cancel_is_kept() -> None:
    house = House(limits=SMALL)
    stream = house.submit(prompt(10), 50, ignore_eos=True, depth=2)
    for _ in range(6):
        house.step()
    house.deliver()
    house.cancel(stream)
    house.run()
    turn = stream.request.prompt + tuple(stream.tokens)
    assert house.tree.match(b"root", (*turn, 5)).matched == len(turn) - 1
    house.close()


def test_a_prefix_can_be_restored_while_its_first_user_decodes() -> None:
    house = House()
    first = house.submit(prompt(30), 60, ignore_eos=True)
    house.step()
    house.step()
    second = house.submit(prompt(30) + prompt(4, 2), 3)
    plan = house.step()
    assert plan is not None
    assert [admit.target for admit in plan.admits] == [30]
    house.run()
    assert finished(second).usage.cached_tokens == 30
    assert finished(first).usage.completion_tokens == 60
    house.close()


def test_tenants_do_not_share() -> None:
    """T8."""
    house = House()
    streams = [house.submit(prompt(30), 3, root=root) for root in (b"a", b"b")]
    house.run()
    assert [finished(stream).usage.cached_tokens for stream in streams] == [0, 0]
    house.close()
