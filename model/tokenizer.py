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

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder
from tokenizers.models import BPE

from model.chat_template import ChatTemplate, read_chat_template
from model.config_file import check_special_ids, token_ids
from model.files import ModelDirectory, ModelRefused, parse_object, shown
from model.prompt_errors import PromptRefused, PromptTooLong
from model.token_bytes import byte_table
from model.token_floor import TokenFloor
from scheduler.plan import Marks, SamplingDefaults

_TOKENIZER_BYTES_MAX = 128 << 20
_MARKS = {
    "turn_start": "<|turn>",
    "channel_start": "<|channel>",
    "channel_end": "<channel|>",
    "call_start": "<|tool_call>",
    "call_end": "<tool_call|>",
    "quote": '<|"|>',
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class Tokenizer:
    """The tokenizer of one model directory; `load_tokenizer` makes it."""

    def __init__(
        self,
        encoder: Encoder,
        control: Mapping[str, AddedToken],
        control_ids: Mapping[str, int],
        template: ChatTemplate | None,
        token_bytes: list[bytes],
        floor: TokenFloor,
        bos_id: int | None,
        unknown_id: int | None,
        eos_token_ids: frozenset[int],
        defaults: SamplingDefaults,
    ) -> None:
        self.token_bytes = token_bytes
        self.eos_token_ids = eos_token_ids
        self.defaults = defaults
        self.bos_id = bos_id
        self._encoder = encoder
        self._template = template
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

    @property
    def vocabulary(self) -> int:
        return len(self.token_bytes)

    @property
    def features(self) -> frozenset[str]:
        """What of a conversation the template uses; see ChatTemplate. Empty without a template."""
        return frozenset() if self._template is None else self._template.features

    @property
    def marks(self) -> Marks:
        """The ids of Gemma's own control tokens, where this vocabulary has them."""
        return Marks(**{part: self._control_ids.get(text) for part, text in _MARKS.items()})

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
        if self._template is None:
            raise PromptRefused("the model has no chat template")
        parts = self._template.render(messages, tools, thinking)
        controls = [self._control_ids[token] for token in parts[1::2]]
        return self._encode(parts[::2], controls, tokens_max)

    def check_template(self, where: str) -> None:
        """Raise ModelRefused if the template builds control tokens from pieces: unseen here."""
        assert self._template is not None
        try:
            parts = self._template.render([{"role": "user", "content": "x"}])
        except PromptRefused:
            return
        for run in parts[::2]:
            if self._finder.encode(run, add_special_tokens=False).ids:
                raise ModelRefused(f"{where}: builds control tokens from pieces, in {run[:40]!r}")

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


def load_tokenizer(
    directory: ModelDirectory, vocabulary: int, eos_fallback: tuple[int, ...] = ()
) -> Tokenizer:
    """Read tokenizer.json, tokenizer_config.json, the chat template and generation_config.json.

    vocabulary: the width of the logits. eos_fallback: config.json's eos ids, which
    end a turn too. Raises ModelRefused.
    """
    settings = _optional(directory, "tokenizer_config.json")
    names = _named_tokens(settings)
    template = read_chat_template(directory, settings)
    where = str(directory.path / "tokenizer.json")
    document = parse_object(directory.text("tokenizer.json", _TOKENIZER_BYTES_MAX), where)
    control = _mark_control(document, set(names.values()), template[0] if template else "", where)
    encoder = _encoder(document, where)
    words = encoder.get_vocab(with_added_tokens=True)
    _check_words(words, vocabulary, where)
    bos = names.get("bos_token", "")
    if bos and bos not in words:
        place = directory.path / "tokenizer_config.json"
        raise ModelRefused(f"{place}: bos_token is {shown(bos)}, which is not in the vocabulary")
    control_ids = {text: words[text] for text in control}
    generation = _optional(directory, "generation_config.json")
    token_bytes = byte_table(
        document.get("decoder"), words, set(control_ids.values()), vocabulary, where
    )
    tokenizer = Tokenizer(
        encoder=encoder,
        control=control,
        control_ids=control_ids,
        template=ChatTemplate(template[0], names, control, template[1]) if template else None,
        token_bytes=token_bytes,
        floor=TokenFloor(document, token_bytes),
        bos_id=words.get(bos),
        unknown_id=words.get(names.get("unk_token", "")),
        eos_token_ids=_eos_ids(directory, generation, eos_fallback, vocabulary),
        defaults=_defaults(directory, generation),
    )
    if template is not None:
        tokenizer.check_template(template[1])
    return tokenizer


def _optional(directory: ModelDirectory, name: str) -> dict[str, Any]:
    return directory.json(name) if directory.has(name) else {}


def _encoder(document: dict[str, Any], where: str) -> Encoder:
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        found = model.get("type") if isinstance(model, dict) else model
        raise ModelRefused(f"{where}: model type is {shown(found)}, supported is 'BPE'")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ModelRefused(f"{where}: model.{key} is {shown(model[key])}, expected none")
    # What frames a prompt is ours to add, and these can break at the first text they are used on.
    unused = dict.fromkeys(("post_processor", "truncation", "padding"))
    try:
        encoder = Encoder.from_str(json.dumps(document | unused))
        encoder.encode("a \U0010ffff")  # an unknown token that is missing shows only now
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The library raises bare Exceptions, and where it panics not even those.
        raise ModelRefused(f"{where}: cannot be used: {str(error)[:200]}") from None
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def _check_words(words: Mapping[str, int], vocabulary: int, where: str) -> None:
    if max(words.values(), default=-1) >= vocabulary:
        raise ModelRefused(
            f"{where}: token ids reach {max(words.values())}, the logits only {vocabulary - 1}"
        )
    first: dict[int, str] = {}
    for word, index in words.items():
        if first.setdefault(index, word) != word:
            pair = " and ".join(sorted((shown(first[index]), shown(word))))
            raise ModelRefused(f"{where}: the id {index} is both {pair}")


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eot_token`, ...: plain strings or objects with their content."""
    names: dict[str, str] = {}
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str) and text:
            names[key] = text
    return names


def _mark_control(
    document: dict[str, Any], named: set[str], template: str, where: str
) -> dict[str, AddedToken]:
    """Mark every control token special in tokenizer.json's own table; return them by text.

    Other added tokens (line breaks, HTML tags in Gemma's vocabulary) are ordinary text.
    """
    control: dict[str, AddedToken] = {}
    for token in _added_tokens(document, where):
        text = token["content"]
        used = not text.isspace() and text in template
        if token["special"] or text in named or used or "<|" in text or "|>" in text:
            token["special"] = True
            flags = {flag: token[flag] is True for flag in _FLAGS}
            control[text] = AddedToken(text, special=True, **flags)
    return control


def _added_tokens(document: dict[str, Any], where: str) -> list[dict[str, Any]]:
    listed = document.get("added_tokens")
    known = {"id", "content", "special", *_FLAGS}
    if not isinstance(listed, list) or any(
        not isinstance(t, dict) or not known <= t.keys() or not _is_text(t["content"])
        for t in listed
    ):
        raise ModelRefused(f"{where}: added_tokens is not a list of added tokens")
    return listed


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _eos_ids(
    directory: ModelDirectory,
    generation: Mapping[str, Any],
    fallback: tuple[int, ...],
    vocabulary: int,
) -> frozenset[int]:
    place = f"{directory.path / 'generation_config.json'}: "
    check_special_ids(generation, place, vocabulary)
    where = f"{place}eos_token_id"
    value = generation.get("eos_token_id")
    ids = (*fallback, *(() if value is None else token_ids(value, where)))
    if not ids:
        raise ModelRefused(f"{where} is missing, and config.json has none")
    return frozenset(ids)


def _defaults(directory: ModelDirectory, generation: Mapping[str, Any]) -> SamplingDefaults:
    """Without `do_sample` the model is greedy; the filters stay for a client that samples."""
    where = str(directory.path / "generation_config.json")

    def number(key: str, absent: float, low: float, high: float) -> float:
        value = generation.get(key)
        value = absent if value is None else value
        if type(value) not in (int, float) or not low <= value <= high:
            raise ModelRefused(f"{where}: {key} is {shown(value)}, not a number in [{low}, {high}]")
        return float(value)

    sampled = generation.get("do_sample")
    if sampled is not None and type(sampled) is not bool:
        raise ModelRefused(f"{where}: do_sample is {shown(sampled)}, not true or false")
    largest = math.nextafter(math.inf, 0.0)
    temperature = number("temperature", 1.0, 0.0, largest)
    top_k = number("top_k", 0.0, 0.0, 1 << 24)
    if not top_k.is_integer():
        raise ModelRefused(f"{where}: top_k is {top_k}, not a whole number")
    return SamplingDefaults(
        temperature=temperature if sampled else 0.0,
        top_k=int(top_k),
        top_p=number("top_p", 1.0, math.ulp(0.0), 1.0),
        min_p=number("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1.0, math.ulp(0.0), largest),
    )
