"""Ways to damage a sound pair's files, in the words of a test's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.model.checkpoint.sound import (
    INDEX,
    ONE,
    TWO,
    Files,
    arrays_of,
    change,
    header_of,
    safetensors,
    with_header,
)

CONFIG, TOKENIZER = "target/config.json", "target/tokenizer.json"
ONE_PATH, TWO_PATH = f"target/{ONE}", f"target/{TWO}"


@dataclass
class Damage:
    """Edits of one pair's files."""

    files: Files

    def put(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def remove(self, name: str) -> None:
        del self.files[name]

    def document(self, name: str, edit: Callable[[Any], Any]) -> None:
        """Edit a JSON document in place; `edit` may return another in its stead."""
        change(self.files, name, edit)

    def key(self, name: str, key: str, value: Any) -> None:
        self.document(name, lambda d: d | {key: value})

    def text(self, key: str, value: Any) -> None:
        """A key of the target's text_config."""
        self.document(CONFIG, lambda d: d["text_config"].update({key: value}))

    def model(self, **values: Any) -> None:
        """Keys of the tokenizer's model."""
        self.document(TOKENIZER, lambda d: d["model"].update(values))

    def place(self, tensor: str, shard: str) -> None:
        """Where the index says that a tensor is."""
        self.document(INDEX, lambda d: d["weight_map"].update({tensor: shard}))

    def header(self, edit: Callable[[dict[str, Any]], Any], file: str = ONE_PATH) -> None:
        header, data = header_of(self.files[file])
        changed = edit(header)
        self.files[file] = with_header(header if changed is None else changed, data)

    def entry(self, tensor: str, **values: Any) -> None:
        """Keys of a tensor's entry in the header."""
        self.header(lambda h: h[tensor].update(values))

    def move(self, tensor: str, by: int) -> None:
        """A tensor's place in the file, its length kept."""
        self.header(
            lambda h: h[tensor].update(data_offsets=[v + by for v in h[tensor]["data_offsets"]])
        )

    def tensor(self, name: str, array: np.ndarray[Any, Any] | None, file: str = ONE_PATH) -> None:
        """Give a tensor other values, add one, or take it out; the index follows."""
        arrays = arrays_of(self.files[file])
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
        self.files[file] = safetensors(arrays)
        if file.startswith("target/"):
            shard = {} if array is None else {name: file.removeprefix("target/")}
            self.document(INDEX, lambda d: d | {"weight_map": _without(d, name) | shard})


def _without(index: dict[str, Any], name: str) -> dict[str, str]:
    return {k: v for k, v in index["weight_map"].items() if k != name}
