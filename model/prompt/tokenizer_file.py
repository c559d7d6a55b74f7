"""Reads what a model directory says of its tokenizer, and refuses what could not be served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused, parse_object, shown
from sapwood.model.prompt.generation_config import FILE, read_generation
from sapwood.model.prompt.named_templates import NamedTemplates, read_chat_templates
from sapwood.model.prompt.pieces import PieceEncoder
from sapwood.model.prompt.special_tokens import SETTINGS, SpecialTokens
from sapwood.model.prompt.token_bytes import byte_table
from sapwood.model.prompt.token_floor import TokenFloor
from sapwood.model.prompt.tokenizer import Tokenizer

_TOKENIZER_BYTES_MAX = 128 << 20
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def load_tokenizer(
    directory: ModelDirectory,
    vocabulary: int,
    eos_fallback: tuple[int, ...] = (),
    bos_fallback: tuple[int, ...] = (),
    media_ids: frozenset[int] = frozenset(),
) -> Tokenizer:
    """Read tokenizer.json, the files beside it, the chat template and generation_config.json.

    vocabulary: the width of the logits. eos_fallback: config.json's eos ids, which
    end a turn too. bos_fallback: its bos ids, for where nothing else says. media_ids: what no
    template may write where a user said a word. Raises ModelRefused.
    """
    settings = _optional(directory, SETTINGS)
    generation = read_generation(directory, _optional(directory, FILE), vocabulary)
    where = str(directory.path / "tokenizer.json")
    document = parse_object(directory.text("tokenizer.json", _TOKENIZER_BYTES_MAX), where)
    added = {t["id"]: t["content"] for t in _added_tokens(document, where)}
    bos_ids = (*generation.bos_ids, *bos_fallback)
    special = SpecialTokens(directory, settings, document, added, bos_ids)
    names = special.names
    sources = read_chat_templates(directory, settings)
    texts = "\n".join(source.text for source in sources.values())
    control = _mark_control(document, set(names.values()), texts, where)
    encoder = _encoder(document, where)
    words = encoder.get_vocab(with_added_tokens=True)
    _check_words(words, vocabulary, where)
    control_ids = {text: words[text] for text in control}
    eos = {*generation.eos_ids, *eos_fallback, *special.eos_ids(words)}
    if not eos:
        raise ModelRefused(f"{directory.path / FILE}: eos_token_id is missing, no file names one")
    token_bytes = byte_table(
        document.get("decoder"), words, set(control_ids.values()), vocabulary, where
    )
    tokenizer = Tokenizer(
        pieces=PieceEncoder(encoder, document),
        control=control,
        control_ids=control_ids,
        templates=NamedTemplates(sources, names, control),
        token_bytes=token_bytes,
        floor=TokenFloor(document, token_bytes, control),
        bos_id=special.bos_id(words),
        unknown_id=words.get(names.get("unk_token", "")),
        eos_token_ids=frozenset(eos),
        defaults=generation.defaults,
        suppressed=generation.suppressed,
    )
    tokenizer.check_templates(media_ids)
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


def _mark_control(
    document: dict[str, Any], named: set[str], templates: str, where: str
) -> dict[str, AddedToken]:
    """Mark every control token special in tokenizer.json's own table; return them by text.

    Other added tokens (line breaks, HTML tags in Gemma's vocabulary) are ordinary text.
    """
    control: dict[str, AddedToken] = {}
    for token in _added_tokens(document, where):
        text = token["content"]
        used = not text.isspace() and text in templates
        if token["special"] or text in named or used or "<|" in text or "|>" in text:
            token["special"] = True
            flags = {flag: token[flag] is True for flag in _FLAGS}
            control[text] = AddedToken(text, special=True, **flags)
    return control


def _added_tokens(document: dict[str, Any], where: str) -> list[dict[str, Any]]:
    listed = document.get("added_tokens")
    known = {"id", "content", "special", *_FLAGS}
    if not isinstance(listed, list) or any(
        not isinstance(t, dict)
        or not known <= t.keys()
        or not _is_text(t["content"])
        or type(t["id"]) is not int
        for t in listed
    ):
        raise ModelRefused(f"{where}: added_tokens is not a list of added tokens")
    return listed


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
