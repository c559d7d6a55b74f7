"""Text to token ids and back, with control tokens only where they may be.

- Control tokens are those that the tokenizer marks special, those that tokenizer_config.json
  names, and added ones written `<|...` or `...|>` or used by the chat template.
- Text is cut at control tokens first and only plain runs reach the model's own BPE, which parses
  none: in `encode_text` the cut finds them everywhere, in `encode_messages` they are those that
  the template itself wrote, never a content.
- A plain run never gives a control id, whatever the vocabulary merges.
- What is certainly too long is refused before any of it is tokenised (TokenFloor), the rest where
  its ids become too many.
- No call holds the GIL in proportion to a text: every step works in pieces (PieceEncoder), and
  between two of them the caller is asked whether anybody still waits.
- Ids decode through the byte table, the same one that streams use: joined bytes, UTF-8, invalid
  sequences replaced.
- Immutable once loaded: safe to use from several threads.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken

from sapwood.model.checkpoint.files import ModelRefused, shown
from sapwood.model.prompt.chat_template import ChatTemplate
from sapwood.model.prompt.control_finder import ControlFinder
from sapwood.model.prompt.errors import (
    GivenUp,
    PromptAbandoned,
    PromptRefused,
    PromptTooLong,
    never,
)
from sapwood.model.prompt.named_templates import NamedTemplates
from sapwood.model.prompt.pieces import LookUp, PieceEncoder
from sapwood.model.prompt.token_floor import TokenFloor
from sapwood.scheduler.control_tokens import SPELLED_QUOTE, ControlTokens
from sapwood.scheduler.sampling import SamplingDefaults, SuppressedTokens

_Utf8 = getincrementaldecoder("utf-8")
_DECODED_IDS = 16 * 1024
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
        pieces: PieceEncoder,
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
        self._pieces = pieces
        self._templates = templates
        self._floor = floor
        self.control_ids = dict(control_ids)
        self._finder = ControlFinder(control, control_ids)
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
            **{part: self.control_ids.get(text) for part, text in _CONTROL_TOKENS.items()}
        )

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text without control tokens, and without BOS. Raises PromptRefused."""
        return self._encode([text], [], None, never)

    def encode_text(
        self,
        text: str,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
        *,
        bos: bool = True,
    ) -> list[int]:
        """Ids of a text that may contain control tokens. bos: it comes first where it is missing.

        Raises PromptTooLong where there are certainly more than `tokens_max`, and PromptAbandoned
        soon after `given_up` says so.
        """
        _check_length(self._floor.of_uncut(text), tokens_max)
        runs, controls = self._finder.cut(text, given_up)
        ids = self._encode(runs, controls, tokens_max, given_up)
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        tokens_max: int | None = None,
        given_up: GivenUp = never,
    ) -> list[int]:
        """Ids of a conversation in the model's template, the assistant's turn opened.

        Nothing in messages or tools gives a control token. Raises PromptRefused, and what
        `encode_text` does.
        """
        parts = self._template(tools).render(messages, tools, thinking, given_up)
        controls = [self.control_ids[token] for token in parts[1::2]]
        return self._encode(parts[::2], controls, tokens_max, given_up)

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
        """As `encode_messages`, of what follows a reply that ended with the token `after`.

        What the template writes first, an end of turn or what announces a call's result, is left
        out where the reply ended with it. calls: of the reply, where `messages` begin with results.
        """
        template = self._template(tools)
        parts = template.render_turn(messages, calls, tools, thinking, given_up)
        runs, controls = parts[::2], [self.control_ids[token] for token in parts[1::2]]
        if not runs[0] and controls[:1] == [after]:
            runs, controls = runs[1:], controls[1:]
        return self._encode(runs, controls, tokens_max, given_up)

    def _template(self, tools: Sequence[Mapping[str, Any]]) -> ChatTemplate:
        template = self._templates.of(bool(tools))
        if template is None:
            raise PromptRefused("the model has no chat template")
        return template

    def check_templates(self, media_ids: Collection[int] = ()) -> None:
        """Raise ModelRefused if one fails, writes media tokens into a plain turn, or builds control
        tokens from pieces: unseen here.
        """
        for where, parts in self._templates.tried_out():
            media = [token for token in parts[1::2] if self.control_ids[token] in media_ids]
            if media:
                raise ModelRefused(f"{where}: writes {shown(media[0])} into a turn of mere text")
            for run in parts[::2]:
                if self._finder.cut(run)[1]:
                    what = f"builds control tokens from pieces, in {run[:40]!r}"
                    raise ModelRefused(f"{where}: {what}")

    def decode(self, ids: Sequence[int], given_up: GivenUp = never) -> str:
        """Text of ids < vocabulary, without control tokens. Raises PromptAbandoned."""
        texts: list[str] = []
        decoder = _Utf8("replace")
        for start in range(0, len(ids), _DECODED_IDS):
            some = ids[start : start + _DECODED_IDS]
            texts.append(decoder.decode(b"".join(self.token_bytes[i] for i in some)))
            if given_up():
                raise PromptAbandoned
        texts.append(decoder.decode(b"", True))
        return "".join(texts)

    def _encode(
        self, runs: list[str], controls: list[int], tokens_max: int | None, given_up: GivenUp
    ) -> list[int]:
        """Ids of n + 1 plain runs (possibly empty) around n control ids. Linear in their length.

        A content and the template text around it are one run: encoding it alone would miss merges
        across the border.
        """
        _check_length(len(controls) + self._floor.of(runs), tokens_max)

        def look_up(tokens: int) -> None:
            _check_length(len(controls) + tokens, tokens_max)
            if given_up():
                raise PromptAbandoned

        ids: list[int] = []
        for run, plain, control in zip(
            runs, self._pieces.encode(runs, look_up), [*controls, None], strict=True
        ):
            free = self._forbidden.isdisjoint(plain)
            ids += plain if free else self._encode_broken(run, look_up, given_up)
            if control is not None:
                ids.append(control)
        return ids

    def _encode_broken(self, run: str, look_up: LookUp, given_up: GivenUp) -> list[int]:
        """A run whose BPE spells a control token: cut inside each, so that no merge can."""
        cuts = [0, *(at + 1 for at in self._finder.starts(run, given_up)), len(run)]
        parts = [run[a:b] for a, b in pairwise(cuts)]
        ids = [i for plain in self._pieces.encode(parts, look_up) for i in plain]
        if not self._forbidden.isdisjoint(ids):
            raise PromptRefused("the text cannot be encoded without control tokens")
        return ids


def _check_length(fewest: int, tokens_max: int | None) -> None:
    if tokens_max is not None and fewest > tokens_max:
        raise PromptTooLong(fewest)
