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


class SpecialTokens:
    """What the files of one directory name. Immutable.

    `names`: `bos_token`, `eot_token`, ... by their texts, with a `bos_token` where any file tells.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        settings: Mapping[str, Any],
        document: Mapping[str, Any],
        added: Mapping[int, str],
        bos_ids: Sequence[int],
    ) -> None:
        """settings: tokenizer_config.json. document: tokenizer.json; added: its added tokens by id.

        bos_ids: `bos_token_id` of the config files; the first counts, and may be no added token.
        """
        special = _special_map(directory, settings)
        named = _named(settings, special, added)
        self._place = directory.path
        self._bos_file = MAP if "bos_token" in special else SETTINGS
        self._bos_ids = tuple(bos_ids[:1])
        told = [text for text in _framing(document.get("post_processor")) if text in added.values()]
        told += [named.get("bos_token", "")]
        told += [added.get(id, "") for id in self._bos_ids]
        self._bos = next(filter(None, told), "")
        self.names: Mapping[str, str] = {"bos_token": self._bos, **named} if self._bos else named

    def bos_id(self, words: Mapping[str, int]) -> int | None:
        """The id that begins a plain text; None, with a warning, where no file names one.

        words: the vocabulary. Raises ModelRefused.
        """
        named = self.names.get("bos_token", "")
        if named and named not in words:
            place = f"{self._place / self._bos_file}: bos_token is {shown(named)}"
            raise ModelRefused(f"{place}, which is not in the vocabulary")
        found = words[self._bos] if self._bos else next(iter(self._bos_ids), None)
        if found is None:
            _log.warning("%s: no file names a BOS token, so texts begin without one", self._place)
        return found

    def eos_ids(self, words: Mapping[str, int]) -> tuple[int, ...]:
        """The id of `eos_token`, which ends a turn as those of the config files do."""
        text = self.names.get("eos_token", "")
        if text and text not in words:
            told = "%s: eos_token is %s, which is not in the vocabulary, so it ends nothing"
            _log.warning(told, self._place, shown(text))
        return (words[text],) if text in words else ()


def _named(
    settings: Mapping[str, Any], special: Mapping[str, Any], added: Mapping[int, str]
) -> dict[str, str]:
    names: dict[str, Any] = {}
    if settings.get("tokenizer_class") in _GEMMA_CLASSES:
        texts = {f"{name}_token": f"<{name}>" for name in _GEMMA_NAMES}
        names = {key: text for key, text in texts.items() if text in added.values()}
    found: dict[str, str] = {}
    for key, value in {**names, **settings, **special}.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str) and text:
            found[key] = text
    return found


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
