"""A few prompts through the real core and runner, each emitted token held against a plain forward.

- Drafts included, at a pinned depth, all prompts at once: the engine's loop, in line.
- A token within the tolerance of the largest logit is a near-tie; further below it is a fault. The
  drafter's acceptance is counted, never judged.
- Some rounds are replayed at once, each alone through an isolated speculation: what packing and
  company did to a round shows there, before later rounds hide it.
- Each prompt is asked again, cold, alone and without drafts. Replies that part from themselves are
  counted: in float32 on a CPU only near-ties can do it, elsewhere rounding can; with strict
  numerics nothing can.
- Where bits are not promised a few faults may be rounding too: the share decides, not one token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.errors import StartError
from sapwood.model.pair import Pair
from sapwood.model.plain_forward import near_tie, promises_bits, shortfalls
from sapwood.model.prompt.errors import PromptRefused
from sapwood.model.runner import Runner
from sapwood.scheduler.events import Delta, Failed, Request, Submit
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from sapwood.scheduler.sampling import Sampling

_QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about rain.",
)
_LONG = "The river runs past the mill and under the old bridge. "
_REPLY_TOKENS = 48
_DEPTH = 4
_STEPS_MAX = 10_000
_REPLAY_EVERY = 4  # steps; a replay copies a sequence's K/V
# Of the tokens, where bits are not promised. Rounding takes few tokens past the tolerance; what is
# wrong in a layer, a mask or a row takes most of a reply.
_FAULTS_SHARE_MAX = 0.05


@dataclass(slots=True)
class SelfCheck:
    """What the rounds showed. drafted[i], accepted[i]: of the drafts at position i, from 0.

    replayed: tokens of replayed rounds; replay_faults: those that a replay would not have emitted.
    replies_equal: prompts that got the same reply alone, without drafts.
    bits_promised: of dtype and device; a single fault is then wrong. strict: the pair's numerics; a
    reply that is another one alone is then wrong.
    """

    prompts: int
    tolerance: float
    bits_promised: bool
    strict: bool = False
    tokens: int = 0
    steps: int = 0
    near_ties: int = 0
    faults: int = 0
    replayed: int = 0
    replay_faults: int = 0
    replies_equal: int = 0
    drafted: list[int] = field(default_factory=lambda: [0] * _DEPTH)
    accepted: list[int] = field(default_factory=lambda: [0] * _DEPTH)

    @property
    def rounds(self) -> int:
        """Rounds with at least one draft."""
        return self.drafted[0]

    @classmethod
    def of(cls, pair: Pair) -> SelfCheck:
        """One that has seen nothing yet. Its tolerance, in logits, is that of the pair's dtype."""
        prompts, strict = len(_QUESTIONS) + 1, pair.kernels.strict
        return cls(prompts, near_tie(pair), promises_bits(pair), strict)

    def run(self, pair: Pair, loaded: Loaded) -> None:
        """Ask, and judge every token of the replies. Raises StartError; closes the runner."""
        try:
            prompts = _prompts(pair)
            replies = _converse(loaded, prompts, self)
            for prompt, reply in zip(prompts, replies, strict=True):
                self.judge(shortfalls(pair, prompt, reply))
                self.compare(pair, prompt, reply, _alone(loaded, prompt))
        finally:
            loaded.runner.close()

    def compare(
        self, pair: Pair, prompt: tuple[int, ...], reply: list[int], alone: list[int]
    ) -> None:
        """The reply to a prompt, and what it gets alone: judged too where it is another one."""
        if alone == reply:
            self.replies_equal += 1
        else:
            self.judge(shortfalls(pair, prompt, alone))

    def too_many(self, faults: int, tokens: int) -> bool:
        """Whether so many faults among the tokens mean that something is wrong."""
        return faults > (0 if self.bits_promised else _FAULTS_SHARE_MAX * tokens)

    def count(self, result: StepResult) -> None:
        """One step, with the drafts of its rounds by position."""
        self.steps += 1
        for decoded in result.decoded:
            for position in range(_DEPTH):
                self.drafted[position] += decoded.drafted > position
                self.accepted[position] += decoded.accepted > position

    def judge(self, short: list[float]) -> None:
        """`short`: how far each token of a reply lies below the maximum, in logits."""
        self.tokens += len(short)
        # So that what is no number is a fault.
        within = sum(value <= self.tolerance for value in short)
        self.faults += len(short) - within
        self.near_ties += sum(0 < value <= self.tolerance for value in short)

    def judge_replay(self, short: list[float]) -> None:
        """`short`: as in `judge`, of one round that was replayed."""
        self.replayed += len(short)
        self.replay_faults += len(short) - sum(value <= self.tolerance for value in short)


def _prompts(pair: Pair) -> list[tuple[int, ...]]:
    """Questions in the model's own turns, and a text that is longer than its sliding window."""
    tokenizer, text = pair.tokenizer, pair.target_config.text
    try:
        turns = [[{"role": "user", "content": question}] for question in _QUESTIONS]
        asked = [tokenizer.encode_messages(turn) for turn in turns]
    except PromptRefused:  # a model without a chat template
        asked = [tokenizer.encode_text(question) for question in _QUESTIONS]
    once = tokenizer.encode_text(_LONG)
    wanted = min(text.window + 64, text.context_tokens_max - _REPLY_TOKENS)
    long = (once + once[1:] * (wanted // max(1, len(once) - 1)))[:wanted]
    return [tuple(prompt) for prompt in (*asked, long)]


def _converse(
    loaded: Loaded, prompts: list[tuple[int, ...]], checked: SelfCheck
) -> list[list[int]]:
    """Greedy replies to all prompts at once, at a pinned depth; some rounds are replayed."""
    runner = loaded.runner
    assert isinstance(runner, Runner), "a check runs on the device"
    depth = _DEPTH if loaded.card.facts.has_drafter else 0
    requests = [
        Request(id, b"check", prompt, _REPLY_TOKENS, Sampling(), depth=depth)
        for id, prompt in enumerate(prompts)
    ]

    def seen(plan: StepPlan, result: StepResult) -> None:
        checked.count(result)
        if checked.steps % _REPLAY_EVERY == 0:
            for row, decoded in zip(plan.decodes, result.decoded, strict=True):
                checked.judge_replay(runner.replay(row, decoded.tokens))

    return _replies(loaded, requests, seen)


def _alone(loaded: Loaded, prompt: tuple[int, ...]) -> list[int]:
    """The reply that a prompt gets without company, drafts and what the tree has of it."""
    asked = Request(0, b"check", prompt, _REPLY_TOKENS, Sampling(), depth=0, cache_bypass=True)
    (reply,) = _replies(loaded, [asked], lambda plan, result: None)
    return reply


def _replies(
    loaded: Loaded, requests: list[Request], seen: Callable[[StepPlan, StepResult], None]
) -> list[list[int]]:
    """Replies by id, from 0: the engine's loop, in line."""
    core, runner = loaded.core, loaded.runner
    for request in requests:
        core.handle(Submit(request), time.monotonic())
    replies: list[list[int]] = [[] for _ in requests]
    for _ in range(_STEPS_MAX):
        if not core.has_work:
            return replies
        plan = core.plan(time.monotonic())
        if plan is not None:
            result = runner.wait(runner.submit(plan))
            core.commit(plan, result, time.monotonic())
            seen(plan, result)
        for effect in core.take_effects():
            if isinstance(effect, Delta):
                replies[effect.id] += effect.token_ids
            elif isinstance(effect, Failed):
                raise StartError(f"the self-check's request failed: {effect.message}")
    raise AssertionError(f"still at work after {_STEPS_MAX} steps")
