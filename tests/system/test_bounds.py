"""How long replies are and think, through real core and runner: exact, at any depth, in company.

What is expected follows from mlx-lm's own forward over prompt and reply, masked in NumPy by a rule
that is written down here once more. Which tokens open and close a channel is made up: two that the
pair likes to say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.drafting import Drafts
from sapwood.model.step_values import read_drafts
from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import FinishReason
from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import DEMO, oracle, pair, prompts
from tests.system.stack import Stack
from tests.system.test_logprobs import check_reports

LIMITS = Limits(slots_max=10, prefill_tokens_max=64)
REPLY = 20
SEEDED = Sampling(0.9, 40, 0.95, seeded=True, noise_key=5)
UNSEEDED = Sampling(1.0, 64, noise_key=77)
PENALISED = Sampling(repetition_penalty=1.2, frequency_penalty=0.2)
NAMES = [DEMO, *(pytest.param(name, marks=pytest.mark.long) for name in ("e2b-tiny", "a4b-tiny"))]


def stack_of(name: str, control: ControlTokens) -> Stack:
    stack = Stack(pair(name), LIMITS)
    # What the core was made of has none: a random model opens channels as it likes.
    stack.core._facts = replace(stack.facts, control_tokens=control)
    return stack


class Rule:
    """The contract of both bounds, over a reply so far."""

    def __init__(
        self, control: ControlTokens, ends: set[int], least: int = 0, most: int | None = None
    ) -> None:
        self.control, self.ends, self.least, self.most = control, ends, least, most

    def thought(self, reply: list[int]) -> tuple[int, bool]:
        thinks, thought = False, 0
        for token in reply:
            if token == self.control.channel_start:
                thinks = True
            elif token == self.control.channel_end:
                thinks = False
            else:
                thought += thinks
        return thought, thinks

    def masked(self, reply: list[int], logits: np.ndarray) -> np.ndarray:
        scores, (thought, thinks) = logits.astype(np.float64), self.thought(reply)
        if len(reply) < self.least:
            scores[sorted(self.ends)] = -np.inf
        if self.most is not None and thought >= self.most:
            if thinks:
                end = self.control.channel_end
                scores[[id for id in range(len(scores)) if id != end]] = -np.inf
            else:
                scores[self.control.channel_start] = -np.inf
        return scores


def is_greedy(name: str, rule: Rule, prompt: tuple[int, ...], reply: list[int]) -> None:
    """Each token is the best that the rule leaves after those before it, near ties aside."""
    logits = oracle(name).logits([*prompt, *reply[:-1]])[-len(reply) :]
    for n, (token, row) in enumerate(zip(reply, logits, strict=True)):
        scores = rule.masked(reply[:n], row)
        assert scores[token] >= scores.max() - 1e-3, (n, token, reply)


def liked(name: str, prompt: tuple[int, ...]) -> tuple[int, int]:
    """Two tokens of what the pair says by itself and the prompt does not, the first comes first."""
    stack = Stack(pair(name), LIMITS)
    said = stack.generate(prompt, REPLY, depth=0).tokens
    stack.close()
    new = [token for token in dict.fromkeys(said) if token not in prompt]
    return new[0], new[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_thought_ends_where_its_budget_does(name: str) -> None:
    prompt = tuple(prompts(name)[0])
    control = ControlTokens(None, *liked(name, prompt))
    stack, forced = stack_of(name, control), 0
    for most in (0, 3) if name == DEMO else (0, 1, 4, 7):
        rule = Rule(control, set(), most=most)
        options: dict[str, Any] = {"thinking_tokens_max": most}
        greedy = [stack.submit(prompt, REPLY, depth=d, **options) for d in (0, 2, 8)]
        seeded = [stack.submit(prompt, REPLY, sampling=SEEDED, depth=d, **options) for d in (0, 5)]
        drawn = stack.submit(prompt, REPLY, sampling=UNSEEDED, depth=4, top_logprobs=3, **options)
        stack.run()
        assert [s.tokens for s in greedy] == [greedy[0].tokens] * 3
        is_greedy(name, rule, prompt, greedy[0].tokens)
        assert seeded[0].tokens == seeded[1].tokens
        for stream in (*greedy, *seeded, drawn):
            assert stream.finished.usage.thinking_tokens == rule.thought(stream.tokens)[0] <= most
            for n, token in enumerate(stream.tokens):
                scores = rule.masked(stream.tokens[:n], np.zeros(pair_vocabulary(name)))
                assert scores[token] == 0, (most, n, stream.tokens)
                forced += np.isneginf(scores).sum() > 1
        check_reports(oracle(name), drawn)
    assert forced
    stack.close()


def pair_vocabulary(name: str) -> int:
    return pair(name).target_config.text.vocabulary


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_is_at_least_as_long_as_it_has_to_be(name: str) -> None:
    """Without the bound it ends early."""
    prompt, least = tuple(prompts(name)[1]), 12
    free = Stack(pair(name), LIMITS)
    said = free.generate(prompt, REPLY, depth=0).tokens
    free.close()
    ends = {said[1], said[4]}
    stack, rule = Stack(pair(name), LIMITS), Rule(ControlTokens(), ends, least)
    options: dict[str, Any] = {"stop_token_ids": frozenset(ends), "min_tokens": least}
    short = stack.generate(prompt, REPLY, stop_token_ids=frozenset(ends))
    assert len(short.tokens) == 2 and short.finished.reason is FinishReason.STOP
    greedy = [stack.submit(prompt, REPLY, depth=d, **options) for d in (0, 3, None)]
    others = [
        stack.submit(prompt, REPLY, sampling=sampling, depth=d, **options)
        for sampling in (SEEDED, PENALISED)
        for d in (0, 5)
    ]
    drawn = stack.submit(prompt, REPLY, sampling=UNSEEDED, depth=4, **options)
    stack.run()
    assert [s.tokens for s in greedy] == [greedy[0].tokens] * 3
    is_greedy(name, rule, prompt, greedy[0].tokens)
    assert others[0].tokens == others[1].tokens and others[2].tokens == others[3].tokens
    for stream in (*greedy, *others, drawn):
        assert len(stream.tokens) >= least and not ends & set(stream.tokens[:least])
    assert stack.core.stats().accepted_tokens[0] > 0
    stack.close()


def test_drafts_are_read_only_where_a_budget_may_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of the host for the drafter, which no other round has."""
    read, prompt = list[int](), tuple(prompts(DEMO)[0])

    def counted(drafts: Drafts, vocabulary: int) -> Any:
        read.append(1)
        return read_drafts(drafts, vocabulary)

    monkeypatch.setattr("sapwood.model.drawing.read_drafts", counted)
    control = ControlTokens(None, *liked(DEMO, prompt))
    stack = stack_of(DEMO, control)
    stack.generate(prompt, REPLY, depth=2, min_tokens=REPLY)
    stack.generate(prompt, REPLY, depth=2, thinking_tokens_max=1000)
    stack.generate(prompt, REPLY, depth=0, thinking_tokens_max=1)
    assert not read
    stack.generate(prompt, REPLY, depth=2, thinking_tokens_max=3)
    assert read
    stack.close()


def test_unseeded_replies_under_a_bound_follow_the_law() -> None:
    """The first token's frequencies at depth 4 against the renormalised law of the target."""
    prompt = tuple(prompts(DEMO)[2])
    logits = oracle(DEMO).logits(prompt)[-1].astype(np.float64)
    banned = set(np.argsort(-logits)[:2].tolist())
    logits[sorted(banned)] = -np.inf
    law = np.exp(logits - logits.max())
    law /= law.sum()
    stack, draws = Stack(pair(DEMO), Limits(slots_max=32, prefill_tokens_max=512)), 96
    streams = [
        stack.submit(
            prompt, 2, sampling=Sampling(1.0, noise_key=n), depth=1,
            min_tokens=2, stop_token_ids=frozenset(banned),
        )
        for n in range(draws)
    ]  # fmt: skip
    stack.run()
    assert not banned & {token for stream in streams for token in stream.tokens}
    counts = np.bincount([stream.tokens[0] for stream in streams], minlength=len(law))
    assert 0.5 * np.abs(counts / draws - law).sum() < 0.5
    likely = int(law.argmax())
    assert abs(counts[likely] / draws - law[likely]) < 4 * np.sqrt(law[likely] / draws) + 1e-3
    stack.close()
    mx.clear_cache()
