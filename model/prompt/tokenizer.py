"""Text to token ids and back, with control tokens only where they may be.

- Control tokens are those that the tokenizer marks special, those that tokenizer_config.json
  names, and added ones written `<|...` or `...|>` or used by the chat template.
- Text is cut at control tokens first and only plain runs reach the model's own BPE, which parses
  none: in `encode_text` the cut finds them everywhere, in `encode_messages` they are those that
  the template itself wrote, never a content.
- A plain run never gives a control id, whatever the vocabulary merges.
- What is certainly too long is refused before the BPE runs (TokenFloor).
- Ids decode through the byte table, the same one that streams use: joined bytes, UTF-8, invalid
  sequences replaced.
- Immutable once loaded: safe to use from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder
from tokenizers.models import BPE

from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.prompt.errors import PromptRefused, PromptTooLong
from sapwood.model.prompt.named_templates import NamedTemplates
from sapwood.model.prompt.token_floor import TokenFloor
from sapwood.scheduler.control_tokens import SPELLED_QUOTE, ControlTokens
from sapwood.scheduler.sampling import SamplingDefaults, SuppressedTokens

_CONTROL_TOKENS = {
    "turn_start": "<|turn>",
    "channel_start": "<|channel>",
    "channel_end": "<channel|>",
    "call_start": "<|tool_call>",
    "call_end": "<tool_call|>",
    "quote": SPELLED_QUOTE,
}


class Tokenizer:
    """The tokenizer of one model directory; `load_tokenizer` makes it."""

    def __init__(
        self,
        encoder: Encoder,
        control: Mapping[str, AddedToken],
        control_ids: Mapping[str, int],
        templates: NamedTemplates,
        token_bytes: list[bytes],
        floor: TokenFloor,
        bos_id: int | None,
        unknown_id: int | None,
        eos_token_ids: frozenset[int],
        defaults: SamplingDefaults,
        suppressed: SuppressedTokens,
    ) -> None:
        self.token_bytes = token_bytes
        self.eos_token_ids = eos_token_ids
        self.defaults = defaults
        self.suppressed = suppressed
        self.bos_id = bos_id
        self._encoder = encoder
        self._templates = templates
        self._floor = floor
        self._control_ids = dict(control_ids)
        # An empty model with only the control tokens: it finds them and nothing else.
        self._finder = Encoder(BPE())
        self._finder.add_special_tokens(list(control.values()))
        self._control_of = {
            self._finder.token_to_id(text): token_id for text, token_id in control_ids.items()
        }
        # Characters outside the vocabulary may give the unknown token: it controls nothing.
        self._forbidden = frozenset(control_ids.values()) - {unknown_id}

    def features(self, tools: bool) -> frozenset[str] | None:
        """What the template for messages with or without tools uses; None where there is none."""
        template = self._templates.of(tools)
        return None if template is None else template.features

    @property
    def control_tokens(self) -> ControlTokens:
        """The ids of Gemma's own control tokens, where this vocabulary has them."""
        return ControlTokens(
            **{part: self._control_ids.get(text) for part, text in _CONTROL_TOKENS.items()}
        )

    def encode_text(self, text: str, tokens_max: int | None = None) -> list[int]:
        """Ids of a text that may contain control tokens; BOS in front where it is missing.

        Raises PromptTooLong, but only where that is cheap to see.
        """
        runs, controls = self._cut(text)
        ids = self._encode(runs, controls, tokens_max)
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        tokens_max: int | None = None,
    ) -> list[int]:
        """Ids of a conversation in the model's template, the assistant's turn opened.

        Nothing in messages or tools gives a control token. Raises PromptRefused, and PromptTooLong
        as `encode_text` does.
        """
        template = self._templates.of(bool(tools))
        if template is None:
            raise PromptRefused("the model has no chat template")
        parts = template.render(messages, tools, thinking)
        controls = [self._control_ids[token] for token in parts[1::2]]
        return self._encode(parts[::2], controls, tokens_max)

    def check_templates(self) -> None:
        """Raise ModelRefused if one fails, or builds control tokens from pieces: unseen here."""
        for where, parts in self._templates.tried_out():
            for run in parts[::2]:
                if self._finder.encode(run, add_special_tokens=False).ids:
                    what = f"builds control tokens from pieces, in {run[:40]!r}"
                    raise ModelRefused(f"{where}: {what}")

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids < vocabulary, without control tokens."""
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", "replace")

    def _encode(self, runs: list[str], controls: list[int], tokens_max: int | None) -> list[int]:
        """Ids of n + 1 plain runs (possibly empty) around n control ids. Linear in their length.

        A content and the template text around it are one run: encoding it alone would miss merges
        across the border.
        """
        if tokens_max is not None:
            fewest = len(controls) + self._floor.of(runs)
            if fewest > tokens_max:
                raise PromptTooLong(fewest)
        ids: list[int] = []
        for plain, control in zip(self._encode_plain(runs), [*controls, None], strict=True):
            ids += plain
            if control is not None:
                ids.append(control)
        return ids

    def _cut(self, text: str) -> tuple[list[str], list[int]]:
        """n + 1 plain runs around the n control tokens of a text."""
        runs: list[str] = []
        controls: list[int] = []
        position = 0
        found = self._finder.encode(text, add_special_tokens=False)
        for index, (start, end) in zip(found.ids, found.offsets, strict=True):
            runs.append(text[position:start])
            controls.append(self._control_of[index])
            position = end
        return [*runs, text[position:]], controls

    def _encode_plain(self, runs: list[str]) -> list[list[int]]:
        encoded = self._encoder.encode_batch(runs, add_special_tokens=False)
        return [
            e.ids if self._forbidden.isdisjoint(e.ids) else self._encode_broken(run)
            for run, e in zip(runs, encoded, strict=True)
        ]

    def _encode_broken(self, run: str) -> list[int]:
        """A run whose BPE spells a control token: cut inside each, so that no merge can."""
        found = self._finder.encode(run, add_special_tokens=False)
        cuts = [0, *(start + 1 for start, _ in found.offsets), len(run)]
        parts = [run[a:b] for a, b in pairwise(cuts)]
        encoded = self._encoder.encode_batch(parts, add_special_tokens=False)
        ids = [i for e in encoded for i in e.ids]
        if not self._forbidden.isdisjoint(ids):
            raise PromptRefused("the text cannot be encoded without control tokens")
        return ids
