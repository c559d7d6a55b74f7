"""Which tokens a model's files name: those that its template writes by name, BOS, EOS.

- Names are looked for where transformers looks, the later over the earlier: what Gemma's tokenizer
  class has without being told, tokenizer_config.json, special_tokens_map.json (unless
  tokenizer_config.json lists its added tokens itself).
- A plain text begins with what tokenizer.json's post-processor puts there; without one with
  `bos_token`; without that with `bos_token_id` of generation_config.json, then of config.json.
- A template that writes `bos_token` gets that token too where no name is spelled: it would lose it.
- What is named and no token, or not named at all, is refused or warned of by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused, shown

_log = logging.getLogger(__name__)

SETTINGS, MAP = "tokenizer_config.json", "special_tokens_map.json"
_GEMMA_CLASSES = ("GemmaTokenizer", "GemmaTokenizerFast")
_GEMMA_NAMES = ("bos", "eos", "unk", "pad", "mask")


def named_tokens(
    directory: ModelDirectory, settings: Mapping[str, Any], added: Mapping[int, str]
) -> dict[str, str]:
    """`bos_token`, `eot_token`, ... by their texts. added: tokenizer.json's added tokens by id."""
    names: dict[str, Any] = {}
    if settings.get("tokenizer_class") in _GEMMA_CLASSES:
        texts = {f"{name}_token": f"<{name}>" for name in _GEMMA_NAMES}
        names = {key: text for key, text in texts.items() if text in added.values()}
    names |= settings
    names |= _special_map(directory, settings)
    found: dict[str, str] = {}
    for key, value in names.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str) and text:
            found[key] = text
    return found


def settle_bos(
    names: dict[str, str],
    document: Mapping[str, Any],
    added: Mapping[int, str],
    ids: Sequence[int],
) -> str:
    """The text of the token that begins a plain text, "" for none; `names` gets one if it has none.

    document: tokenizer.json. ids: the `bos_token_id` of the config files; the first counts.
    """
    framing = _framing(document.get("post_processor"))
    told = [text for text in framing if text in added.values()]
    told += [names.get("bos_token", "")]
    told += [added.get(id, "") for id in ids[:1]]
    bos = next(filter(None, told), "")
    if bos:
        names.setdefault("bos_token", bos)
    return bos


def bos_id(
    directory: ModelDirectory,
    settings: Mapping[str, Any],
    bos: str,
    named: str,
    words: Mapping[str, int],
    ids: Sequence[int],
) -> int | None:
    """The id that begins a plain text; None, with a warning, where no file names one.

    bos: what settle_bos found. named: `bos_token`, "" for none. ids: as there; one may be a token
    that is no added one. Raises ModelRefused.
    """
    if named and named not in words:
        file = MAP if "bos_token" in _special_map(directory, settings) else SETTINGS
        place = directory.path / file
        raise ModelRefused(f"{place}: bos_token is {shown(named)}, which is not in the vocabulary")
    found = words[bos] if bos else next(iter(ids), None)
    if found is None:
        _log.warning("%s: no file names a BOS token, so texts begin without one", directory.path)
    return found


def eos_of_names(
    directory: ModelDirectory, names: Mapping[str, str], words: Mapping[str, int]
) -> tuple[int, ...]:
    """The id of `eos_token`, which ends a turn as those of the config files do."""
    text = names.get("eos_token", "")
    if text and text not in words:
        told = "%s: eos_token is %s, which is not in the vocabulary, so it ends nothing"
        _log.warning(told, directory.path, shown(text))
    return (words[text],) if text in words else ()


def _special_map(directory: ModelDirectory, settings: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json, where transformers reads it."""
    if "added_tokens_decoder" in settings or not directory.has(MAP):
        return {}
    return directory.json(MAP)


def _framing(post_processor: Any) -> list[str]:
    """What a post-processor puts before a text, the first first."""
    parts = [post_processor]
    match post_processor:
        case {"type": "Sequence", "processors": [*listed]}:
            parts = listed
    found = []
    for part in parts:
        match part:
            case {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": str(text)}}, *_],
            }:
                found.append(text)
            case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(text), int()]}:
                found.append(text)
    return found
