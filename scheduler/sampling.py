"""One request's own sampler, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

# top_k rounds up to one of these; a larger one is cut out of the whole vocabulary.
CANDIDATES_FEW, CANDIDATES_MAX = 64, 1024
# Of prompts whose log-probabilities are asked for: logits of so many rows exist at once.
SCORED_ROWS = 16


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
        """Whether a token is the argmax of what bias and penalties leave."""
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
    """What an unset field means for this model: its generation_config.json.

    max_tokens: of a reply. total_tokens: prompt and reply together reach at most this where
    nobody says how long a reply may be. None: the model does not say.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    total_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class SuppressedTokens:
    """What this model never generates, whatever a request asks: its generation_config.json.

    first: what is no reply's first token, and may come later; disjoint from `always`.
    """

    always: frozenset[int] = frozenset()
    first: frozenset[int] = frozenset()
