"""The peer: mlx-lm's own Gemma 4 and caches, as its generate_step runs them, without a sampler.

- A prompt's last token is evaluated alone, after the rest, whose logits nobody reads.
- One host sync a token, and the token is read: the next step's input is what was drawn.
"""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.gemma4_text import Model


class MlxLm:
    """One greedy reply."""

    def __init__(self, model: Model, prompt: list[int]) -> None:
        """Evaluates the prompt and draws the first token."""
        self._model = model
        self._caches = make_prompt_cache(model)
        tokens = mx.array(prompt)
        model(tokens[None, :-1], cache=self._caches)
        mx.eval([cache.state for cache in self._caches])
        self._token = tokens[-1:]
        self.step()

    def step(self) -> None:
        logits = self._model(self._token[None], cache=self._caches)
        self._token = mx.argmax(logits[:, -1], axis=-1)
        mx.eval(self._token)
        self._token.item()
