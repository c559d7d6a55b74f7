"""A device and a tokenizer without a model, so that the whole daemon runs over real sockets.

- The device keeps the very tokens of each slot and draws the next one from them alone: a reply is a
  function of its prompt, whatever the depth, the company or the cached prefix.
- Token id 3 + b is the byte b; 0 to 2 are control tokens, 1 ends a reply, 2 begins a prompt.
- A gated device runs one step for each `step()`; tests hold it still at any phase of a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.rpc.principals import Directory
from sapwood.model.prompt.errors import GivenUp, PromptAbandoned, PromptTooLong, never
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.plan import Capture, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.replay import Replay, Replayed, ReplayVerdict
from sapwood.scheduler.result import Decoded, Prefilled, StepResult
from sapwood.scheduler.sampling import SamplingDefaults
from tests.fakes import TokenLog, Tracker, toy_logprobs

EOS, BOS, FIRST_BYTE = 1, 2, 3
VOCABULARY = 300
WINDOW = 16
CONTEXT = 4096
LONG_TEXT, LONG_TEXT_BYTES = 299, 16 * 1024  # one token that is a message of its own
TOKEN_BYTES = [b""] * FIRST_BYTE + [bytes([b]) for b in range(256)] + [b"?"] * 40
TOKEN_BYTES.append(b"x" * LONG_TEXT_BYTES)
BUDGET = 1 << 30
SOMEBODY = Directory({}).named("somebody")

FACTS = ModelFacts(
    window_tokens=WINDOW,
    context_tokens_max=CONTEXT,
    vocabulary=VOCABULARY,
    eos_token_ids=frozenset({EOS}),
    has_drafter=True,
    weights_bytes=1000,
    full_bytes_per_token=3,
    sliding_bytes_per_token=10,
    ring_bytes=400,
    workspace_bytes_per_token=7,
)


def next_token(tokens: Sequence[int]) -> int:
    """A lower-case letter, from the last token and how many there are."""
    return FIRST_BYTE + ord("a") + (tokens[-1] * 7 + len(tokens)) % 26


def reply_to(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class ByteTokenizer:
    """Thread-safe because it has no state. `gate` holds every encoding until it is set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[str] = set()

    def features(self, tools: bool) -> frozenset[str] | None:
        return frozenset({"tools", "tool_calls", "enable_thinking", "reasoning"})

    def encode_text(
        self,
        text: str,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
        *,
        bos: bool = True,
    ) -> list[int]:
        self.threads.add(threading.current_thread().name)
        while not self.gate.wait(0.01):
            if given_up():
                raise PromptAbandoned
        if tokens_max is not None and len(text) > 2 * tokens_max:
            raise PromptTooLong(len(text))  # as far from the limit as a real one might see it
        return [BOS] * bos + [FIRST_BYTE + b for b in text.encode()]

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
    ) -> list[int]:
        if messages[0]["role"] == "assistant":
            raise ValueError("secret detail of the template")
        head = "".join(f"{extra}\n" for extra in (*tools, thinking) if extra is not None)
        said = (f"{m.pop('role')}:{m.pop('content')}{m or ''}\n" for m in map(dict, messages))
        return self.encode_text(head + "".join(said), tokens_max, given_up)

    def encode_turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        calls: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        thinking: bool | None,
        after: int,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
    ) -> list[int]:
        """The end of a reply, unless it has one, and the messages without what is before them."""
        said = "".join(f"{m['role']}:{m['content']}\n" for m in messages)
        said = "".join(f"{call['function']['name']}()\n" for call in calls) + said
        return [EOS] * (after != EOS) + self.encode_text(said, tokens_max, given_up, bos=False)

    def decode(self, ids: Sequence[int], given_up: GivenUp = never) -> str:
        return b"".join(TOKEN_BYTES[i] for i in ids).decode(errors="replace")


class FakeDevice:
    """Runs step plans on lists of tokens. Set `fault` to make the next step raise it."""

    def __init__(self, gated: bool = False) -> None:
        self.tracker = Tracker()
        self.slots: dict[int, list[int]] = {}
        self.top_logprobs: dict[int, int] = {}  # by slot
        self.prompt_logprobs: dict[int, int] = {}
        self.fault: BaseException | None = None
        self.wrong = False  # what is computed once more comes out otherwise
        self.closed_on = ""
        self.steps = 0
        self.begun = 0  # steps, of which one may still be under way
        self.device_s = 0.0
        self.drafted_at = 0.0
        self.next_token: Callable[[Sequence[int]], int] = next_token
        self._gate = threading.Semaphore(0) if gated else None

    def step(self, count: int = 1) -> None:
        assert self._gate is not None
        self._gate.release(count)

    def ungate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release(1000)

    def submit(self, plan: StepPlan) -> StepPlan:
        return plan

    def wait(self, plan: StepPlan) -> StepResult:
        at = time.perf_counter()
        self.begun += 1
        try:
            return self._run(plan)
        finally:
            self.device_s += time.perf_counter() - at

    def _run(self, plan: StepPlan) -> StepResult:
        if (gate := self._gate) is not None:
            gate.acquire()
        if self.fault is not None:
            raise self.fault
        captured = tuple(self._capture(c) for c in plan.captures)
        for slot in plan.releases:
            del self.slots[slot]
        for admit in plan.admits:
            path = [t for p in admit.path if isinstance(p, TokenLog) for t in p.full]
            self.slots[admit.slot] = path[: admit.target]
            self.top_logprobs[admit.slot] = admit.top_logprobs
            self.prompt_logprobs[admit.slot] = admit.prompt_logprobs
        decoded = tuple(self._decode(row) for row in plan.decodes)
        prefilled = tuple(self._prefill(piece) for piece in plan.prefills)
        self.steps += 1
        kept = None if plan.kept_slot is None else tuple(self.slots[plan.kept_slot])
        return StepResult(decoded, prefilled, captured, kept)

    def replay(self, replay: Replay) -> Replayed:
        """Whether what a slot had evaluated is what the core says; unless it is `wrong`."""
        assert replay.kept == replay.tokens
        return Replayed(ReplayVerdict.FAULT, 2.5) if self.wrong else Replayed(ReplayVerdict.SAME)

    def make_copies(self, bytes_max: int) -> None:
        pass

    def close(self) -> None:
        self.closed_on = threading.current_thread().name

    def _capture(self, capture: Capture) -> TokenLog:
        """A ring holds the window and the deepest verify run, a prefill slice all of itself."""
        start, end = capture.start, capture.end
        sliding_start = max(start, end - WINDOW - 1)
        return self.tracker.log(self.slots[capture.slot], start, end, sliding_start)

    def _prefill(self, piece: PrefillSlice) -> Prefilled:
        tokens = self.slots[piece.slot]
        assert len(tokens) == piece.start, f"slot {piece.slot} holds {len(tokens)}: {piece}"
        tokens.extend(piece.tokens)
        payload = self.tracker.log(tokens, piece.start, piece.end) if piece.capture else None
        drawn = [self.next_token(tokens)] if piece.draws and not piece.index else []
        logprobs = toy_logprobs(drawn, self.top_logprobs[piece.slot])
        scores = toy_logprobs(piece.scored, self.prompt_logprobs[piece.slot])
        token = drawn[0] if drawn else None
        return Prefilled(token, payload, logprobs, prompt_logprobs=scores)

    def _decode(self, row: DecodeRow) -> Decoded:
        """Every third position rejects its draft."""
        tokens = self.slots[row.slot]
        assert len(tokens) == row.start, f"slot {row.slot} holds {len(tokens)}: {row}"
        tokens.append(row.token)
        drawn = [self.next_token(tokens)]
        while len(drawn) <= row.depth and len(tokens) % 3:
            tokens.append(drawn[-1])
            drawn.append(self.next_token(tokens))
        logprobs = toy_logprobs(drawn, self.top_logprobs[row.slot])
        return Decoded(tuple(drawn), row.depth, logprobs)


def make_loader(
    device: FakeDevice,
    limits: Limits,
    facts: ModelFacts = FACTS,
    tokenizer: ByteTokenizer | None = None,
    defaults: SamplingDefaults = SamplingDefaults(),  # noqa: B008 (frozen)
    budget: int = BUDGET,
    folder: Path | None = None,
    self_check: str = "off",
) -> Callable[[], Loaded]:
    """Loads the real core over the fake device."""

    def load() -> Loaded:
        ledger = Ledger(budget, facts.weights_bytes)
        tree = Tree(facts.window_tokens, limits.nodes_max(ledger.free))
        core = Core(facts, limits, tree, ledger, TOKEN_BYTES)
        checked = self_check != "off"
        if checked:
            core.check_rounds()
        card = ModelCard(
            name="fake",
            family="fake",
            fingerprint=b"\x01\x02",
            facts=facts,
            defaults=defaults,
            tokenizer=tokenizer or ByteTokenizer(),
            drafter="fake-drafter" if facts.has_drafter else "",
            folder=folder,
            self_check=self_check,
        )
        return Loaded(
            card,
            core,
            device,
            tree.describe,
            replay=device.replay if checked else None,
            sketch_tree=tree.sketch,
            outline_tree=tree.outline,
        )

    return load
