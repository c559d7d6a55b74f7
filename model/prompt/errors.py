"""What may be wrong with a prompt, for callers that import no tokenizer: the client's errors."""

from __future__ import annotations


class PromptRefused(ValueError):
    """Messages that cannot be put into the model's template."""


class PromptTooLong(ValueError):
    """A prompt that has `fewest` tokens or more."""

    def __init__(self, fewest: int) -> None:
        super().__init__(f"at least {fewest} tokens")
        self.fewest = fewest
