"""A daemon process on a real pair that tells what it imports once it is loaded.

`python -m tests.system.serve_watched FOLDER [MODEL DRAFT]`: two directories, none for the bundled
pair. The socket `s` and `ready.json` appear in FOLDER, and `imports`: a line for each module that
somebody looks for after the load, with the thread that did.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import anyio

from sapwood.daemon import entry
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.process import assemble
from sapwood.daemon.process.run import serve
from sapwood.daemon.settings.config import load_config


class Watch:
    """A finder that finds nothing and writes down what it was asked for."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        os.write(self._file, f"{threading.current_thread().name} {name}\n".encode())
        return None


def main(folder: str, model: str | None = None, draft: str | None = None) -> NoReturn:
    entry.begin(serves=True)
    logging.basicConfig(stream=sys.stderr)
    config = load_config(
        {
            "model": model,
            "draft": draft,
            "listen": [f"unix:{folder}/s"],
            "metrics": "127.0.0.1:0",
            "ready_file": f"{folder}/ready.json",
        }
    )

    def load() -> Loaded:
        entry.all_imported()
        loaded = assemble.load(config)
        sys.meta_path.insert(0, Watch(f"{folder}/imports"))
        return loaded

    entry.leave(anyio.run(serve, config, load))


if __name__ == "__main__":
    main(*sys.argv[1:])
