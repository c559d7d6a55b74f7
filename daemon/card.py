"""What the event loop may know of the loaded model: values and a tokenizer, no arrays.

- Made once by the loader, immutable, shared by admission, GetModel and the client's defaults.
- The tokenizer is called from worker threads, two at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.plan import ModelFacts


class Tokenizer(Protocol):
    """The model's own tokenizer; thread-safe."""

    def encode_text(self, text: str) -> list[int]:
        """BOS is added if missing; control tokens are recognised."""

    def encode_messages(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """(role, content) pairs in the model's template, contents as plain text.

        Raises ValueError for a conversation that the template cannot express.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens have no text; bytes that form no character become U+FFFD."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What unset sampling fields mean, from the model's generation config."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelCard:
    name: str
    family: str
    fingerprint: bytes
    facts: ModelFacts
    defaults: SamplingDefaults
    tokenizer: Tokenizer
    drafter: str = ""
    quantization: str = ""
    device: str = "cpu"
