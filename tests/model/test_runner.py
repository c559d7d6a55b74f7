"""The runner against transformers' own greedy text and acceptance, at every depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from sapwood.cache.attention_routes import Kernels
from sapwood.model.drafting import DraftPosition
from sapwood.model.pair import Pair, load_pair, model_facts
from sapwood.model.runner import Runner
from sapwood.scheduler.plan import Admit, Capture, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.result import StepResult
from sapwood.scheduler.sampling import Sampling
from tests.cache.arrays.world import live_bytes
from tests.model.reference import FAMILIES, PROMPTS, checkpoint, golden
from tests.quick import few_quick

REPLY = 64
MIXED = (0, 1, 2, 3, 5, 8)  # depths of company
# For what takes many seconds a family. Company at depths of all kinds is quick for every one.
E2B_QUICK, A4B_QUICK = few_quick(FAMILIES, "e2b-tiny"), few_quick(FAMILIES, "a4b-tiny")


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(name: str) -> Pair:
    return load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")


@pytest.fixture(scope="module")
def runner(pair: Pair) -> Iterator[Runner]:
    runner = Runner(pair, slots_max=32, depth_max=8)
    yield runner
    runner.close()


class Driver:
    """A minimal stand-in for the core: all sequences together, everything they drew kept."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.number = runner, 0

    def step(self, **plan: object) -> StepResult:
        self.number += 1
        return self.runner.wait(self.runner.submit(StepPlan(self.number, **plan)))  # type: ignore[arg-type]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        depths: Sequence[int],
        slots: Sequence[int],
        chunk: int = 40,
        sampling: Sampling | None = None,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """(replies, accepted drafts per round) of every prompt."""
        replies: list[list[int]] = [[] for _ in prompts]
        rounds: list[list[int]] = [[] for _ in prompts]
        done = [0] * len(prompts)
        self.step(
            admits=tuple(
                Admit(s, 0, (), sampling or Sampling(), len(p) + REPLY)
                for s, p in zip(slots, prompts, strict=True)
            )
        )
        while any(len(r) < REPLY for r in replies):
            decoding, reading = [], []
            for i, prompt in enumerate(prompts):
                if done[i] < len(prompt):
                    part = tuple(prompt[done[i] : done[i] + chunk])
                    ends = done[i] + len(part) == len(prompt)
                    reading.append((i, PrefillSlice(slots[i], done[i], part, ends, False)))
                elif (left := REPLY - len(replies[i])) > 0:
                    start, index = len(prompt) + len(replies[i]) - 1, len(replies[i])
                    depth = min(depths[i], left - 1)
                    decoding.append((i, DecodeRow(slots[i], start, replies[i][-1], depth, index)))
            result = self.step(
                decodes=tuple(d for _, d in decoding), prefills=tuple(p for _, p in reading)
            )
            for (i, _), drawn in zip(decoding, result.decoded, strict=True):
                replies[i] += drawn.tokens
                rounds[i].append(drawn.accepted)
            for (i, slice_), first in zip(reading, result.prefilled, strict=True):
                done[i] = slice_.end
                if first.token is not None:
                    replies[i].append(first.token)
        self.step(releases=tuple(slots))
        return replies, rounds


def prompts_of(name: str) -> list[list[int]]:
    return [golden(name)[f"p{i}_ids"].tolist() for i in PROMPTS]


def replies_of(name: str) -> list[list[int]]:
    return [golden(name)[f"p{i}_greedy"].tolist() for i in PROMPTS]


@pytest.mark.parametrize("depths", [pytest.param((0,) * 6, marks=pytest.mark.long), MIXED], ids=str)
def test_greedy_text_is_the_references_at_any_depth_and_place(
    name: str, runner: Runner, depths: tuple[int, ...]
) -> None:
    """S1: token for token; six sequences together, in slots with holes, slices past the window."""
    replies, _ = Driver(runner).generate(prompts_of(name), depths, (3, 0, 7, 1, 2, 11))
    assert replies == replies_of(name)


@pytest.mark.parametrize("name", A4B_QUICK, indirect=True, scope="module")
@pytest.mark.parametrize(
    "kernels",
    [Kernels("metal", large=True), pytest.param(Kernels("cuda"), marks=pytest.mark.long)],
    ids=str,
)
def test_greedy_text_is_the_references_as_it_is_laid_out_on_a_gpu(
    name: str, pair: Pair, kernels: Kernels
) -> None:
    """S1 with folded groups, and on Metal with rounds that are cut (full layers' ninth query)."""
    runner = Runner(replace(pair, kernels=kernels), slots_max=32, depth_max=8)
    assert runner.caches.kernels == kernels
    replies, _ = Driver(runner).generate(prompts_of(name), MIXED, (3, 0, 7, 1, 2, 11))
    runner.close()
    assert replies == replies_of(name)


@pytest.mark.parametrize("name", E2B_QUICK, indirect=True, scope="module")
@pytest.mark.parametrize(("variant", "position"), [("hf", "bonus"), ("pm1", "last")])
def test_text_and_accepted_drafts_of_every_round_are_the_references(
    name: str, pair: Pair, variant: str, position: DraftPosition
) -> None:
    """Every prompt at depths 1, 3 and 7, all in one batch, for both readings of the position."""
    runner, depths = Runner(pair, 32, 8, position), [d for d in (1, 3, 7) for _ in PROMPTS]
    replies, rounds = Driver(runner).generate(prompts_of(name) * 3, depths, range(18))
    runner.close()
    assert replies == replies_of(name) * 3
    names = [f"p{p}_rounds_{variant}_k{d}" for d in (1, 3, 7) for p in PROMPTS]
    assert rounds == [golden(name)[key].tolist() for key in names]


@pytest.mark.long
@pytest.mark.parametrize("name", E2B_QUICK, indirect=True, scope="module")
def test_a_seed_gives_the_same_tokens_at_any_depth_and_in_any_company(
    name: str, runner: Runner
) -> None:
    """S5: shared noise, so depth, drafter and company cannot matter.

    The quick one is of the whole stack: tests/system/test_seeded.py.
    """
    prompts, driver = prompts_of(name), Driver(runner)
    sampling = Sampling(temperature=0.9, top_k=40, top_p=0.97, seeded=True, noise_key=99)
    plain, _ = driver.generate(prompts, (0,) * 6, range(6), sampling=sampling)
    drafted, rounds = driver.generate(prompts, (5, 4, 3, 2, 1, 8), (9, 2, 4, 0, 1, 7), 13, sampling)
    alone, _ = driver.generate(prompts[:1], (3,), (2,), sampling=sampling)
    assert drafted == plain
    assert alone[0] == plain[0]
    assert sum(map(sum, rounds)) > 0, "nothing was accepted: the comparison would be empty"
    other, _ = driver.generate(
        prompts[:1], (0,), (0,), sampling=Sampling(0.9, 40, 0.97, 0.0, True, 100)
    )
    assert other[0] != plain[0]


@pytest.mark.parametrize("name", E2B_QUICK, indirect=True, scope="module")
@pytest.mark.parametrize("referred", few_quick([0.0, 0.6, 1.0], 0.6))
def test_a_prefix_restored_at_any_offset_changes_nothing(
    name: str, runner: Runner, referred: float
) -> None:
    """T9, C6: captured in slices, restored before, inside and beyond the window.

    referred: how much of it full layers hold by reference.
    """
    arrays, driver = golden(name), Driver(runner)
    prompt, expected = arrays["p3_ids"].tolist(), arrays["p3_greedy"].tolist()
    window = runner.caches.window
    driver.step(admits=(Admit(0, 0, (), Sampling(), len(prompt) + REPLY),))
    path = []
    for start in range(0, len(prompt), 17):
        part = tuple(prompt[start : start + 17])
        result = driver.step(prefills=(PrefillSlice(0, start, part, False, True),))
        path.append(result.prefilled[0].payload)
    captured = driver.step(captures=(Capture(0, 0, len(prompt)),), releases=(0,)).captured[0]
    assert captured is not None and captured.sliding_start > 0
    for target in (1, 17, window - 1, window, window + 1, len(prompt) - 2, len(prompt) - 1):
        covering = tuple(p for p in path if p is not None and p.start < target)
        admit = Admit(5, target, covering, Sampling(), len(prompt) + REPLY)
        driver.step(admits=(replace(admit, base=round(referred * target)),))
        rest = tuple(prompt[target:])
        reply = [
            driver.step(prefills=(PrefillSlice(5, target, rest, True, False),)).prefilled[0].token
        ]
        while len(reply) < 20:
            drawn = driver.step(
                decodes=(DecodeRow(5, len(prompt) + len(reply) - 1, reply[-1] or 0, 3, len(reply)),)
            )
            reply += drawn.decoded[0].tokens
        driver.step(releases=(5,))
        assert reply == expected[: len(reply)], target
    for payload in (*path, captured):
        assert payload is not None
        payload.close()


def test_a_slot_takes_the_bytes_that_the_ledger_reserves_for_it(pair: Pair) -> None:
    """One geometry: what live_bytes reserves is what the arrays are made to."""
    facts = model_facts(pair, 7)
    for tokens in (1, 256, 257, 1000):
        caches = Runner(pair, slots_max=1, depth_max=7).caches
        caches.reserve(0, tokens)
        reused = facts.live_buffers * facts.reuse_bytes  # what MLX may give beyond that
        assert live_bytes(caches) == facts.live_bytes(tokens) - facts.tail_bytes - reused
