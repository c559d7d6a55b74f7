"""What the core must know of the loaded model and its device: sizes, bytes of slots and steps."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.cache.geometry import ROW_TOKENS_MIN, buffer_bytes, moved_bytes, row_tokens
from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.sampling import SCORED_ROWS, Sampling


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
    drawn_bytes_per_row: int = 0  # and per such row that is not greedy
    wide_bytes_per_row: int = 0  # instead, of a wide sampler
    whole_bytes_per_row: int = 0  # or of one that weighs the whole vocabulary
    masked_bytes_per_row: int = 0  # and beside any of these, of a row that masks may lie over
    score_bytes_per_key: int = 0  # and per decode row and key of its context
    slice_score_bytes: int = 0  # what the scores of a prompt slice take at most: they are tiled
    tail_bytes: int = 0  # and what a slot keeps aside of them while its prompt is read
    row_tokens_min: int = ROW_TOKENS_MIN  # the smallest row of live full K/V
    referred_tokens_step: int = 1  # what is held by reference ends at a multiple of it
    page_bytes: int = 1  # what the device rounds a buffer up to
    buffers_max: int = 0  # how many buffers weights, slots and tree may be; 0: it counts none
    weights_buffers: int = 0
    live_buffers: int = 0  # of one slot
    reuse_bytes: int = 0  # by how much more each may be: a kept one is handed out for less
    edge_tokens_max: int = 1 << 62  # of what is stored at once, whose full K/V is one array
    full_layers: int = 0  # with K/V of their own
    sliding_layers: int = 0
    made_bytes_per_token: int = 0  # all that a forward makes and drops, by packed token
    late_bytes_max: int = 0  # what of it a device may free late; 0: it frees at once
    control_tokens: ControlTokens = ControlTokens()  # noqa: RUF009 (frozen)

    def row_tokens(self, tokens: int) -> int:
        """How many tokens the row of a full layer has room for that holds `tokens` of them."""
        return row_tokens(tokens, self.row_tokens_min)

    def referred_tokens(self, tokens: int) -> int:
        """How many of so many tokens at a beginning can be held by reference."""
        return tokens - tokens % self.referred_tokens_step

    def row_bytes(self, tokens: int) -> int:
        """Such a row, of all full layers together."""
        return self.row_tokens(tokens) * self.full_bytes_per_token

    @property
    def slot_bytes(self) -> int:
        """What a slot takes beside its rows in pools."""
        return self.tail_bytes + self.live_buffers * self.reuse_bytes

    @property
    def ring_tokens(self) -> int:
        """Tokens of sliding K/V that a slot's live ring holds at most."""
        per_token = self.sliding_bytes_per_token
        return self.ring_bytes // per_token if per_token else 0

    def live_bytes(self, tokens: int) -> int:
        """Live K/V of a slot that holds up to `tokens` tokens, were no other there."""
        return self.ring_bytes + self.row_bytes(tokens) + self.slot_bytes

    def moved_bytes(self, rows: int, rings: int) -> int:
        """What of pools of so many bytes exists twice while they grow or are packed."""
        full = moved_bytes(rows, self.full_layers)
        return full + moved_bytes(rings, self.sliding_layers)

    def late_bytes(self, tokens: int) -> int:
        """What a step of `tokens` packed tokens has not freed yet, though it is done with it."""
        return min(self.late_bytes_max, tokens * self.made_bytes_per_token)

    def stored_bytes(self, tokens: int, sliding_tokens: int) -> int:
        """K/V of an edge of `tokens` tokens, of sliding layers its newest `sliding_tokens`."""
        full = tokens * self.full_bytes_per_token
        sliding = sliding_tokens * self.sliding_bytes_per_token
        return buffer_bytes(full, self.page_bytes) + buffer_bytes(sliding, self.page_bytes)

    def restored_bytes(self, tokens: int, base: int) -> int:
        """What a slot copies of a prefix, of full layers what lies behind its first `base`."""
        full = (tokens - base) * self.full_bytes_per_token
        return full + min(tokens, self.window_tokens) * self.sliding_bytes_per_token

    def draw_bytes_per_row(self, sampling: Sampling, masked: bool = False) -> int:
        """What a draw takes beside the logits that all rows have."""
        mask = self.masked_bytes_per_row if masked else 0
        if sampling.whole:
            return mask + self.whole_bytes_per_row
        if sampling.wide:
            return mask + self.wide_bytes_per_row
        return mask + (0 if sampling.greedy else self.drawn_bytes_per_row)

    @property
    def scoring_bytes(self) -> int:
        """What the log-probabilities of prompts take in a step, however many tokens there are."""
        return SCORED_ROWS * (self.logits_bytes_per_row + self.wide_bytes_per_row)

    def round_bytes(self, rows: int, tokens: int, draw_bytes_per_row: int = 0) -> int:
        """Transient of verifying `rows` rows of one sequence that holds up to `tokens` tokens."""
        per_row = self.workspace_bytes_per_token + self.logits_bytes_per_row + draw_bytes_per_row
        return rows * (per_row + tokens * self.score_bytes_per_key)

    def prefill_bytes(self, tokens: int, context_tokens: int) -> int:
        """Transient of evaluating `tokens` prompt tokens in contexts of up to `context_tokens`."""
        scores = tokens * context_tokens * self.score_bytes_per_key
        return tokens * self.workspace_bytes_per_token + min(scores, self.slice_score_bytes)
