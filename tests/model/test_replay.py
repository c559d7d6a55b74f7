"""Rounds computed once more: what is sound comes out the same, and what is injected does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays import folded
from sapwood.cache.arrays import prefixes as by_reference
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import EdgePayload
from sapwood.cache.prefix.radix import preorder
from sapwood.model.one_text import OneText
from sapwood.model.pair import Pair, load_pair
from sapwood.model.plain_forward import near_tie
from sapwood.model.replay import KeptRound, PlainReplay, largest_difference, tolerance
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.replay import Replay, Replayed, ReplayVerdict
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import checkpoint
from tests.system.pairs import pair, prompts
from tests.system.stack import GREEDY, Stack, Stream

# All that may be computed once more is; steps take milliseconds of a virtual clock.
EAGER = Limits(
    slots_max=4,
    check_share=1e6,
    check_s_max=1e9,
    check_idle_s_max=1e9,
    referred_reads_min=1,
    referred_edge_tokens_min=1,
)
SAMPLINGS = (
    GREEDY,
    Sampling(0.9, 40, seeded=True, noise_key=7),
    Sampling(1.1),
    Sampling(0.8, top_p=0.9, repetition_penalty=1.2, logit_bias=((5, 4.0),)),
)


LONG = tuple(token for prompt in prompts("e2b-tiny") for token in prompt)


@dataclass
class House:
    """A stack whose rounds are computed once more as they come."""

    stack: Stack
    check: PlainReplay
    done: list[tuple[Replay, Replayed]]

    def run(self) -> None:
        core = self.stack.core
        while core.has_work:
            self.stack.step()
            if (due := core.take_replay()) is not None:
                replayed = self.check.run(due)
                core.replayed(due, replayed, 0.001)
                self.done.append((due, replayed))

    @property
    def verdicts(self) -> Counter[ReplayVerdict]:
        return Counter(replayed.verdict for _, replayed in self.done)


@contextmanager
def checked(
    name: str = "e2b-tiny", limits: Limits = EAGER, loaded: Pair | None = None
) -> Iterator[House]:
    loaded = loaded or pair(name)
    stack = Stack(loaded, limits)
    stack.core.check_rounds()
    yield House(stack, PlainReplay(loaded, near_tie(loaded), 48), [])
    stack.close()


def ask(house: House, first: int = 0, tokens: int = 12) -> list[Stream]:
    return [
        house.stack.submit(prompts("e2b-tiny")[3], tokens, sampling=sampling)
        for sampling in SAMPLINGS[first:]
    ]


@pytest.mark.parametrize(
    "name",
    ["e2b-tiny", *(pytest.param(n, marks=pytest.mark.long) for n in ("a4b-tiny", "31b-tiny"))],
)
def test_what_is_sound_comes_out_the_same(name: str) -> None:
    """Of any sampler, in company, with drafts, behind a hit, by reference."""
    with checked(name) as house:
        for _ in range(2):
            for index, sampling in enumerate(SAMPLINGS):
                house.stack.submit(prompts(name)[index], 20, sampling=sampling, depth=3)
            house.run()
        assert house.verdicts.keys() == {ReplayVerdict.SAME}, house.done
        kept = [due.kept for due, _ in house.done]
        accepted = sum(house.stack.core.stats().accepted_tokens)
        # Of a4b-tiny's drafter, whose weights are drawn, no draft is accepted.
        assert any(due.rows > 1 for due, _ in house.done) == (accepted > 0) == (name != "a4b-tiny")
    rounds = [each for each in kept if isinstance(each, KeptRound)]
    assert len(rounds) == len(kept) and {each.best for each in rounds} == {True, False}


@pytest.mark.long
def test_half_precision_has_near_ties_at_most() -> None:
    halves = load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"), "bfloat16")
    with checked(loaded=halves) as house:
        house.check = PlainReplay(halves, tolerance(halves), 48)
        for index, sampling in enumerate(SAMPLINGS):
            house.stack.submit(prompts("e2b-tiny")[index], 12, sampling=sampling, depth=3)
        house.run()
        assert house.verdicts and not house.verdicts[ReplayVerdict.FAULT], house.done


def test_a_corrupted_prefix_is_found() -> None:
    """S10: a page of stored K/V that the next one begins with."""
    with checked() as house:
        house.stack.submit(prompts("e2b-tiny")[3], 4)
        house.run()
        assert house.verdicts.keys() <= {ReplayVerdict.SAME}
        house.done.clear()
        for payload in stored(house.stack):
            assert payload.full is not None
            payload.full.stack[:, :8] = payload.full.stack[:, :8] + 3.0
            mx.eval(payload.full.stack)
        late = ask(house)
        house.run()
        assert all(stream.cached for stream in late), "nobody has begun with it"
        assert house.verdicts[ReplayVerdict.FAULT] and not house.verdicts[ReplayVerdict.NEAR_TIE]
        counted = house.stack.core.stats().self_check_mismatches
        assert counted[ReplayVerdict.FAULT] == house.verdicts[ReplayVerdict.FAULT]


def stored(stack: Stack) -> list[EdgePayload]:
    held = [node.payload for node in preorder(stack.tree._roots.values())]
    found = [payload for payload in held if isinstance(payload, EdgePayload)]
    assert found
    return found


def test_a_wrong_merge_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """S10: of what lies in a row and what lies by reference, the weights of one are mistaken.

    Not all of the sum: a norm behind the attention takes no notice of its scale.
    """
    right = folded.merged

    def wrong(ours: Any, theirs: Any) -> Any:
        values, weights, best = theirs
        return right(ours, (values * 1.5, weights, best))

    with checked() as house:
        house.stack.submit(LONG, 4)
        house.run()
        house.done.clear()
        monkeypatch.setattr(by_reference, "merged", wrong)
        for index, sampling in enumerate(SAMPLINGS):
            house.stack.submit((*LONG, 5 + index, 9), 5, sampling=sampling)
        house.run()
        assert not any("[0, 0) by reference" in due.story for due, _ in house.done)
        assert house.verdicts[ReplayVerdict.FAULT], house.done


def test_a_row_that_did_not_take_its_best_is_found() -> None:
    with checked() as house:
        due, _ = a_round(house)
        kept = due.kept
        assert isinstance(kept, KeptRound) and kept.best
        worst = tuple(int(place) for place in kept.logits.argmin(axis=-1))
        other = replace(due, kept=replace(kept, tokens=worst))
        assert house.check.run(other).verdict is ReplayVerdict.FAULT


def a_round(house: House) -> tuple[Replay, Replayed]:
    house.stack.submit(prompts("e2b-tiny")[0], 12)
    house.run()
    return house.done[0]


def test_what_rounding_decides_is_a_near_tie_and_no_fault() -> None:
    """The two best ones change places within the tolerance, of a row of either kind."""
    with checked() as house:
        due, replayed = a_round(house)
        assert replayed.verdict is ReplayVerdict.SAME
        kept = due.kept
        assert isinstance(kept, KeptRound)
        logits = kept.logits[-1]
        second, first = (int(i) for i in np.argsort(logits)[-2:])
        swapped = kept.logits.copy()
        swapped[-1, [first, second]] = logits[second], logits[first]
        gap = float(logits[first] - logits[second])
        tokens = (*kept.tokens[:-1], second)
        for other in (KeptRound(swapped, tokens, True), KeptRound(swapped, kept.tokens, False)):
            within, beyond = (replace_tolerance(house.check, gap * f) for f in (1.5, 0.5))
            assert within.run(replace(due, kept=other)).verdict is ReplayVerdict.NEAR_TIE
            assert beyond.run(replace(due, kept=other)).verdict is ReplayVerdict.FAULT


def replace_tolerance(check: PlainReplay, most: float) -> PlainReplay:
    other = PlainReplay(pair("e2b-tiny"), most, 48)
    assert other.tolerance == most != check.tolerance
    return other


def test_a_failed_allocation_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with checked() as house:
        due, _ = a_round(house)

        def refused(*_: object, **__: object) -> None:
            raise RuntimeError("[metal::malloc] Unable to allocate 1 bytes.")

        monkeypatch.setattr(LiveCaches, "prepare", refused)
        assert house.check.run(due) == Replayed(ReplayVerdict.SKIPPED)


def test_nothing_is_left_behind() -> None:
    """Nor is anything of the tree or the slots touched."""
    with checked() as house:
        due, first = a_round(house)
        before = mx.get_active_memory()
        assert house.check.run(due) == first
        mx.synchronize()
        assert mx.get_active_memory() <= before


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, -np.inf], [np.inf, -np.inf], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
    ],
)
def test_no_number_is_equal_to_no_number(
    one: list[float], other: list[float], apart: float
) -> None:
    assert largest_difference(np.array([one]), np.array([other])) == apart


def test_the_tolerance_is_measured_and_never_less_than_a_near_tie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = pair("e2b-tiny")
    assert tolerance(loaded) == near_tie(loaded) == 1e-3
    apart = iter((np.zeros((1, 2)), np.full((1, 2), 0.5)))
    monkeypatch.setattr(OneText, "logits", lambda self, way: next(apart))
    assert tolerance(loaded) == 4.0
