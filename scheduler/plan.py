"""What the pure core asks of the device, and what the device answers.

- A StepPlan is a value: the runner can execute it without asking the core anything.
- All ranges are half-open, all positions absolute in the session (0 = first prompt token).
- Order inside a step: captures, releases, admits, then ONE forward for decodes and prefills.
- A slot is one session's from its Admit to its release; one step may release and admit it.
- In decode every layer holds `start` tokens; the row's `token` (the bonus) is in no cache yet.
- Payloads are opaque here: the tree owns stored ones, a StepResult hands over fresh ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.snapshot import Payload

# top_k rounds up to one of these; a larger one is cut out of the whole vocabulary.
CANDIDATES_FEW, CANDIDATES_MAX = 64, 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """One request's own sampler, in the order bias, penalties, temperature, top_k, top_p, min_p.

    `seeded` rows follow the shared-noise rule, others exact rejection sampling; temperature 0
    is greedy and uses no noise. `noise_key` (64 bits) is the request's seed, or entropy drawn at
    admission: no global random state exists. `logit_bias` holds (token id, bias), each id once.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    seeded: bool = False
    noise_key: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def whole(self) -> bool:
        """Whether a draw weighs the whole vocabulary, not its best candidates alone."""
        return not self.greedy and not 0 < self.top_k <= CANDIDATES_MAX

    @property
    def wide(self) -> bool:
        """Whether a draw needs the logits once more, changed, or a thousand candidates of them."""
        return self.adjusted or (not self.greedy and self.top_k > CANDIDATES_FEW)

    @property
    def penalised(self) -> bool:
        """Whether the logits depend on what was said before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def adjusted(self) -> bool:
        """Whether anything changes the logits before temperature and filters see them."""
        return self.penalised or bool(self.logit_bias)


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What an unset sampling field means for this model: its generation_config.json."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How probable an emitted token was under the model's own law: no bias, penalty or filter.

    alternatives: (token id, log probability) of the most probable tokens there, best first.
    """

    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Marks:
    """The control tokens by which a model divides its replies; None where it has no such token."""

    turn_start: int | None = None
    channel_start: int | None = None  # what it thinks
    channel_end: int | None = None
    call_start: int | None = None  # of a function
    call_end: int | None = None
    quote: int | None = None  # before and after a string in a call


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the core must know of the loaded model. Sizes in bytes, from real shapes and dtypes."""

    window_tokens: int
    context_tokens_max: int
    vocabulary: int
    eos_token_ids: frozenset[int]
    has_drafter: bool
    weights_bytes: int
    full_bytes_per_token: int  # all full-attention layers together
    sliding_bytes_per_token: int  # all sliding layers together
    ring_bytes: int  # live sliding K/V of one slot, all layers
    workspace_bytes_per_token: int  # transient of a step per packed token
    logits_bytes_per_row: int = 0  # and per row whose logits are needed
    wide_bytes_per_row: int = 0  # and per such row of a wide sampler
    whole_bytes_per_row: int = 0  # or of one that weighs the whole vocabulary
    score_bytes_per_key: int = 0  # and per decode row and key of its context
    slice_score_bytes: int = 0  # what the scores of a prompt slice take at most: they are tiled
    tail_bytes: int = 0  # and what a slot keeps aside of them while its prompt is read
    full_tokens_granularity: int = 256  # live full K/V capacity grows to powers of two of this
    marks: Marks = Marks()

    def live_bytes(self, tokens: int) -> int:
        """Live K/V that a slot holding up to `tokens` tokens may need at most."""
        capacity = self.full_tokens_granularity
        while capacity < tokens:
            capacity *= 2
        return self.ring_bytes + self.tail_bytes + capacity * self.full_bytes_per_token

    def law_bytes_per_row(self, sampling: Sampling) -> int:
        """What a draw takes beside the logits that all rows have."""
        if sampling.whole:
            return self.whole_bytes_per_row
        return self.wide_bytes_per_row if sampling.wide else 0

    def round_bytes(self, rows: int, tokens: int, law_bytes_per_row: int = 0) -> int:
        """Transient of verifying `rows` rows of one session that holds up to `tokens` tokens."""
        per_row = self.workspace_bytes_per_token + self.logits_bytes_per_row + law_bytes_per_row
        return rows * (per_row + tokens * self.score_bytes_per_key)

    def prefill_bytes(self, tokens: int, context_tokens: int) -> int:
        """Transient of evaluating `tokens` prompt tokens in contexts of up to `context_tokens`."""
        scores = tokens * context_tokens * self.score_bytes_per_key
        return tokens * self.workspace_bytes_per_token + min(scores, self.slice_score_bytes)


@dataclass(frozen=True, slots=True)
class Capture:
    """Copy [start, end) out of a slot's live caches into a Payload, before anything is written."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Give a slot to a session and restore [0, target) from `path` (payloads root to leaf).

    The payloads are contiguous from 0; the last may reach past `target`. target 0 = cold.
    """

    slot: int
    target: int
    path: tuple[Payload, ...]
    sampling: Sampling
    tokens_max: int  # prompt + max_tokens: what the slot may grow to
    prompt: tuple[int, ...] = ()  # whole: penalties count restored tokens, which no Prefill holds
    top_logprobs: int = 0  # alternatives to report with each drawn token; 0: no report at all


@dataclass(frozen=True, slots=True)
class Prefill:
    """Evaluate prompt tokens [start, start + len(tokens)).

    draws: the slice ends the prompt, so the first token is drawn from its last row (index 0).
    capture: hand the slice's K/V back as a Payload.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    draws: bool
    capture: bool

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Decode:
    """One round of one session: draft `depth` tokens, verify [start, start + depth + 1).

    `token` is the bonus token, to be evaluated at position `start`. `index` counts the tokens drawn
    so far: the first token this round draws is the index-th (0-based) of the reply.
    """

    slot: int
    start: int
    token: int
    depth: int
    index: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    number: int
    captures: tuple[Capture, ...] = ()
    releases: tuple[int, ...] = ()
    admits: tuple[Admit, ...] = ()
    decodes: tuple[Decode, ...] = ()
    prefills: tuple[Prefill, ...] = ()

    @property
    def tokens(self) -> int:
        """Packed rows of the step's one target forward."""
        return sum(d.depth + 1 for d in self.decodes) + sum(len(p.tokens) for p in self.prefills)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a round committed: the accepted drafts, then the new bonus token (never empty)."""

    tokens: tuple[int, ...]
    drafted: int
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each token, where the session asked

    @property
    def accepted(self) -> int:
        return len(self.tokens) - 1


@dataclass(frozen=True, slots=True)
class Prefilled:
    token: int | None  # the first drawn token, where the slice drew one
    payload: Payload | None  # owned by the receiver
    logprobs: tuple[TokenLogprobs, ...] = ()  # the token's, where the session asked


@dataclass(frozen=True, slots=True)
class StepResult:
    """Answers in plan order, one per Decode, Prefill and Capture. Payload arrays are evaluated."""

    decoded: tuple[Decoded, ...] = ()
    prefilled: tuple[Prefilled, ...] = ()
    captured: tuple[Payload | None, ...] = ()
