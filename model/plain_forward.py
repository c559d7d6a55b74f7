"""A reply judged by one plain forward of mlx-lm: none of our packing, caches or drafts run in it.

- A greedy token is right where its logit is the maximum of its position, of the tokens that the
  model may generate. Arithmetic in another order moves logits a little: what lies within
  `near_tie` of the maximum is a tie, not a fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from sapwood.model.checkpoint.mlx_lm_modules import logit_softcap
from sapwood.model.pair import Pair

# In logits, which end at 30 where they are capped: half precision has steps of 1/8 and 1/64 there.
_NEAR_TIES = {mx.float32: 1e-3, mx.float16: 0.0625, mx.bfloat16: 0.5}


def near_tie(pair: Pair) -> float:
    """How far below the maximum a token may lie, in logits of this pair's dtype."""
    return _NEAR_TIES[pair.dtype]


def promises_bits(pair: Pair) -> bool:
    """Whether replies of this pair here are the same in any company and at any depth, ties aside.

    In half precision, and on a GPU, the order of a sum depends on how many rows there are.
    """
    return pair.dtype == mx.float32 and mx.default_device() == mx.Device(mx.cpu)


def shortfalls(pair: Pair, prompt: Sequence[int], reply: Sequence[int]) -> list[float]:
    """How far each token of a reply lies below the maximum of its position; 0 where it is it.

    In logits. Evaluates prompt and reply in one forward without a cache.
    """
    model = pair.target
    fed = pair.target_config.placeholders.fed((*prompt, *reply[:-1]))
    hidden = model.model(mx.array([fed]))[0, len(prompt) - 1 :]
    logits = model.model.embed_tokens.as_linear(hidden)
    if model.final_logit_softcapping is not None:
        logits = logit_softcap(model.final_logit_softcapping, logits)
    return below_maximum(pair.suppression.of_target(logits, np.arange(len(reply)) == 0), reply)


def below_maximum(logits: mx.array, tokens: Sequence[int]) -> list[float]:
    """How far each of n tokens lies below the largest of its row's logits [n, vocabulary]."""
    logits = logits.astype(mx.float32)
    emitted = mx.take_along_axis(logits, mx.array(list(tokens))[:, None], axis=-1)[:, 0]
    return [float(short) for short in np.array(mx.max(logits, axis=-1) - emitted)]
