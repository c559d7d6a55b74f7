"""The token ids that a config.json names: ends, beginnings, and what stands for media.

- A nested config has them around its text part or in it; a key may be missing or null.
- Where a nested config does not name the placeholders of image, sound and video, they are those of
  the releases: transformers' own defaults, and what a tokenizer of the family has there.
- The bare text model knows no placeholders: to it these ids are tokens like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.model.checkpoint.config import Placeholders
from sapwood.model.checkpoint.files import ModelRefused, shown
from sapwood.model.checkpoint.keys import Keys

_PLACEHOLDERS = {"image_token_id": 258880, "audio_token_id": 258881, "video_token_id": 258884}
_DELIMITERS = ("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index")
_BOUNDED = ("bos_token_id", "eos_token_id", "pad_token_id")


def end_ids(top: Keys, text: Keys) -> tuple[int, ...]:
    """Of both places: the releases list the end of a turn in one and the end of a text in both."""
    return tuple(sorted(_ids(top, "eos_token_id") | _ids(text, "eos_token_id")))


def first_ids(top: Keys, text: Keys) -> tuple[int, ...]:
    """What begins a text, the text part's own before what is said around it."""
    return tuple(b for place in (text, top) for b in sorted(_ids(place, "bos_token_id")))


def placeholders(top: Keys, text: Keys, vocabulary: int) -> Placeholders:
    """What is fed as the pad token's rows; none in a flat config, whose `top` is its `text`."""
    if text.document is top.document:
        return Placeholders((), 0)
    named = [_placeholder(top, key) for key in _PLACEHOLDERS]
    ids = tuple(sorted({id for id in named if id is not None and id < vocabulary}))
    if not ids:
        return Placeholders((), 0)
    # As transformers: 0 where nothing is said. It is in the vocabulary: check_special_ids.
    pad = text.document.get("pad_token_id", 0)
    if type(pad) is not int:
        problem = f"is {shown(pad)}, not the token id to feed in place of an image or sound"
        raise text.refuse("pad_token_id", problem)
    return Placeholders(ids, pad)


def media_ids(top: Keys, known: Placeholders) -> frozenset[int]:
    """What stands for images, sound and video in a prompt, or begins and ends them."""
    return frozenset(known.ids).union(*(_ids(top, key) for key in _DELIMITERS))


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """One id or a list of them, as the eos keys of both config files are written."""
    listed = value if isinstance(value, list) else [value]
    if not listed or any(type(v) is not int or v < 0 for v in listed):
        raise ModelRefused(f"{where} is {shown(value)}, not a token id or a list of them")
    return tuple(listed)


def check_special_ids(document: Mapping[str, Any], where: str, vocabulary: int) -> None:
    """Raise ModelRefused, naming the key after `where`, unless its ids are in [0, vocabulary)."""
    for key in _BOUNDED:
        value = document.get(key)
        if value is not None and max(token_ids(value, where + key)) >= vocabulary:
            raise ModelRefused(
                f"{where}{key} is {shown(value)}, the logits reach only {vocabulary - 1}"
            )


def _placeholder(top: Keys, key: str) -> int | None:
    value = top.document.get(key, _PLACEHOLDERS[key])
    if value is not None and (type(value) is not int or value < 0):
        raise top.refuse(key, f"is {shown(value)}, not a token id")
    return value


def _ids(place: Keys, key: str) -> frozenset[int]:
    value = place.document.get(key)
    if value is None:
        return frozenset()
    return frozenset(token_ids(value, f"{place.file}: {place.prefix}{key}"))
