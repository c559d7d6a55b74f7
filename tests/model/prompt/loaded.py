"""Tokenizers of the committed pairs, loaded once, and edits of their files."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer as Encoder

from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.checkpoint.locate import DEMO
from sapwood.model.prompt.tokenizer import Tokenizer
from sapwood.model.prompt.tokenizer_file import load_tokenizer
from tests.model.reference import checkpoint

DEMO_TARGET = ModelDirectory(DEMO / "target")
PLACES = {"e2b-tiny": (checkpoint("e2b-tiny"), 1024), "demo": (DEMO_TARGET, 2048)}


@cache
def loaded(place: str) -> Tokenizer:
    directory, vocabulary = PLACES[place]
    return load_tokenizer(directory, vocabulary, (1,))


@cache
def whole_encoder(place: str) -> Encoder:
    return Encoder.from_file(str(PLACES[place][0].path / "tokenizer.json"))


def vocabulary_edit(directory: ModelDirectory, token: str, **model: Any) -> None:
    """Put an ordinary token in place of <unused5>, id 5."""
    document = json.loads((directory.path / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    del vocabulary["<unused5>"]
    vocabulary[token] = 5
    document["model"] |= model
    (directory.path / "tokenizer.json").write_text(json.dumps(document))
