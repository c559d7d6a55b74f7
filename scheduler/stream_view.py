"""A request under way as operators see it: counts and times, and no word of its text."""

from __future__ import annotations

from typing import NamedTuple


class StreamView(NamedTuple):
    """One of them. Times in seconds.

    slot: -1 where it has none. processed_tokens: of the prompt, cached ones included.
    emitted_tokens: of the reply. tokens_max: both together, at most. decode_steps: in which it
    emitted after its first token, with drafts and without.
    """

    id: int
    state: str  # a SequenceState's value
    slot: int
    prompt_tokens: int
    cached_tokens: int
    processed_tokens: int
    emitted_tokens: int
    tokens_max: int
    decode_steps: int
    draft_tokens: int
    accepted_tokens: int
    parks: int
    age_s: float
