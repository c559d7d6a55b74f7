"""What may be wrong with a prompt, for callers that import no tokenizer: the client's errors."""

from __future__ import annotations

from collections.abc import Callable

GivenUp = Callable[[], bool]  # whether nobody waits for a prompt any more; from any thread


def never() -> bool:
    """A GivenUp: somebody waits to the end."""
    return False


class PromptRefused(ValueError):
    """Messages that cannot be put into the model's template."""


class PromptTooLong(ValueError):
    """A prompt that has `fewest` tokens or more."""

    def __init__(self, fewest: int) -> None:
        super().__init__(f"at least {fewest} tokens")
        self.fewest = fewest


class PromptAbandoned(Exception):
    """Nobody waits for the prompt any more, so the work on it has stopped."""
