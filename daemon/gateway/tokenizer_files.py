"""The files that a router makes its tokenizer of, as one zip.

Plain files of the model's own folder and of known names only; no weights.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smg_grpc_proto.generated import common_pb2 as common

_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
)
_CHUNK_BYTES = 64 * 1024


def tokenizer_zip(folder: Path) -> bytes:
    """Reads all of it. Raises OSError."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in _NAMES:
            if (folder / name).is_file():
                file.write(folder / name, name)
    return archive.getvalue()


def tokenizer_chunks(archive: bytes) -> Iterator[Any]:
    """The last one has the digest of all."""
    for start in range(0, len(archive), _CHUNK_BYTES):
        data = archive[start : start + _CHUNK_BYTES]
        last = start + _CHUNK_BYTES >= len(archive)
        sha256 = hashlib.sha256(archive).hexdigest() if last else ""
        yield common.GetTokenizerChunk(data=data, sha256=sha256)
