"""Who goes first and how much of a step each gets: pure functions of plain numbers.

- Decode rows are in every step. A prefill fills what they leave of prefill_tokens_max, and a
  quarter of it always.
- Among prefills the shortest rest goes first, so that a short prompt does not wait for a long one;
  the one that went without a slice the longest has a share before all others, so that nobody
  waits more steps than there are prefills.
"""

from __future__ import annotations

from collections.abc import Sequence

# Below this a slice costs more than it brings, unless it ends its prompt. A taste, not a bound.
SLICE_TOKENS_MIN = 16
RETRY_S_MIN = 1.0


def prefill_budget(decode_tokens: int, prefill_tokens_max: int) -> int:
    """Prompt tokens that a step with `decode_tokens` packed decode tokens may evaluate."""
    return max(prefill_tokens_max - decode_tokens, -(-prefill_tokens_max // 4))


def prefill_shares(
    rests: Sequence[int], served_steps: Sequence[int], budget: int, slices_max: int
) -> list[int]:
    """How many tokens of each rest this step evaluates; at most `slices_max` of them are not 0.

    `rests` are what each prompt has left (>= 1), in order of admission, `served_steps` the steps in
    which each had its last slice.
    """
    shares = [0] * len(rests)
    if not rests:
        return shares
    starved = min(range(len(rests)), key=lambda i: served_steps[i])
    shares[starved] = min(rests[starved], max(1, budget // slices_max))
    left, slices = budget - shares[starved], 1
    for i in sorted(range(len(rests)), key=lambda i: rests[i]):
        if not shares[i]:
            if slices == slices_max or left < min(rests[i], SLICE_TOKENS_MIN):
                continue
            slices += 1
        more = min(rests[i] - shares[i], left)
        shares[i] += more
        left -= more
    return shares


def retry_after_s(queued: int, slots: int, duration_s: float, longest_s: float) -> float:
    """When a place in the queue may be free, if requests go on taking `duration_s` each."""
    return min(max(RETRY_S_MIN, duration_s * (queued + 1) / slots), longest_s)
