"""What the event loop may know of the loaded model: values and a tokenizer, no arrays.

- Made once by the loader, immutable, shared by admission, GetModel and the client's defaults.
- The tokenizer is called from worker threads, several at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sapwood.model.constraints.spec import ConstraintSpec
from sapwood.model.prompt.errors import GivenUp, never
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.sampling import SamplingDefaults


class ServedTokenizer(Protocol):
    """The model's own tokenizer; thread-safe.

    Encoding raises PromptTooLong for what is longer than `tokens_max`, as soon as that is certain;
    everything raises PromptAbandoned soon after `given_up` says so. Nothing in it holds the GIL for
    long.
    """

    def features(self, tools: bool) -> frozenset[str] | None:
        """Of tools, tool_calls, enable_thinking, reasoning: what the template has a place for.

        tools: whether the messages come with some, which may have a template of their own. None:
        there is no template for them.
        """

    def encode_text(
        self,
        text: str,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
        *,
        bos: bool = True,
    ) -> list[int]:
        """Control tokens are recognised. bos: it is added if missing."""

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
    ) -> list[int]:
        """Messages and tools as transformers takes them, in the model's template, as plain text.

        Raises ValueError for a conversation that the template cannot express.
        """

    def encode_turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        calls: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        thinking: bool | None,
        after: int,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
    ) -> list[int]:
        """As encode_messages, of what follows a reply whose last token is `after`.

        calls: of the reply, whose results the messages begin with; none where they do not.
        """

    def decode(self, ids: Sequence[int], given_up: GivenUp = never) -> str:
        """Special tokens have no text; bytes that form no character become U+FFFD."""


class ServedConstraints(Protocol):
    """What builds the constraints of replies to the loaded model; thread-safe."""

    takes_lark: bool  # whether it builds grammars of clients

    def compile(self, spec: ConstraintSpec) -> object:
        """What Request.constraint takes. Raises ConstraintRefused; never holds the GIL for long."""

    def close(self) -> None:
        """Nothing more is asked."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The loaded model, as GetModel tells of it. `fingerprint` is part of the tree's root keys."""

    name: str
    family: str
    fingerprint: bytes
    facts: ModelFacts
    defaults: SamplingDefaults
    tokenizer: ServedTokenizer
    constraints: ServedConstraints | None = None
    drafter: str = ""
    quantization: str = ""
    numerics: str = "fast"  # or "strict"
    self_check: str = "off"  # or "count", or "stop": rounds are computed once more
    device: str = "cpu"
    media_token_ids: frozenset[int] = frozenset()  # of images, audio, video: in no conversation
    folder: Path | None = None  # the target's own; None: it is in none
