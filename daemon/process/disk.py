"""A disk tier put together: a folder on disk, its catalogue for the core, its store.

- Opened before the model is loaded: a folder that is in use, or not ours, ends a start at once.
- A disk that is full or read-only does not: then there is memory alone, and a line in the log.
- What lies in it is read by the store, once the engine runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sapwood.cache.arrays.eight_bits import GROUP, kv_share
from sapwood.cache.disk.block_file import BlockLayout, FileTensor
from sapwood.cache.disk.folder import Folder, FolderRefused
from sapwood.cache.disk.store import RawReport, Store
from sapwood.cache.prefix.blocks import Names, Storage, block_tokens
from sapwood.cache.prefix.catalogue import DISK_KINDS, Catalogue, Kind
from sapwood.daemon.errors import StartError
from sapwood.daemon.rpc.principals import Directory, root_key
from sapwood.daemon.settings.config import Config, names_without_tokens
from sapwood.daemon.settings.tokens import read_tokens
from sapwood.model.pager import Pager
from sapwood.scheduler.disk import DiskFolder
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts

_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_NO_SALT = b"nothing lies there"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A folder, locked. None: the disk does not do. salts: of all who may come, None: not known."""

    folder: Folder | None
    bytes_max: int
    bytes_a_day: int
    storage: Storage
    salts: frozenset[bytes] | None

    def for_core(self, facts: ModelFacts, item_bytes: int, head_dims: Iterable[int]) -> DiskFolder:
        """What the core is to own of it. item_bytes: of a number of K/V as the device holds it.

        Raises StartError.
        """
        if self.storage == "8bit" and any(size % GROUP for size in head_dims):
            problem = f"this model's heads are not multiples of {GROUP}: expected exact"
            raise StartError(f"--cache-storage 8bit: {problem}")
        dearest = max(facts.full_bytes_per_token, facts.sliding_bytes_per_token)
        salt = _NO_SALT if self.folder is None else self.folder.salt
        names = Names(salt, block_tokens(dearest), self.storage)
        tenants = None
        if self.salts is not None:
            tenants = frozenset(names.tenant(root_key(b"", salt)) for salt in self.salts)
        return DiskFolder(
            names,
            Catalogue(self.bytes_max, names.top),
            self.bytes_a_day,
            budget_bytes=0,  # until the folder says
            failed=self.folder is None,
            loading=self.folder is not None,
            tenants=tenants,
            kv_share=(1, 1) if self.storage == "exact" else kv_share(item_bytes),
        )

    def opener(
        self, pager: Pager, tokens: int
    ) -> Callable[[Callable[[RawReport], None]], Store] | None:
        """What starts the thread that reads and writes blocks of so many tokens."""
        if self.folder is None:
            return None
        layouts = dict[Kind, BlockLayout]()
        for kind in DISK_KINDS:
            if (shape := pager.shape(kind, tokens)) is not None:
                layouts[kind] = _layout(shape, pager.dtype_name, self.storage)
        folder, most, a_day = self.folder, self.bytes_max, self.bytes_a_day
        return lambda report: Store(folder, layouts, report, most, a_day)

    def close(self) -> None:
        """Give the folder back: there will be no store."""
        if self.folder is not None:
            self.folder.close()


def open_disk(config: Config) -> OpenDisk | None:
    """None: nobody wants one. Raises StartError."""
    path, budget = config.cache_dir, config.cache_writes_bytes
    if path is None:
        return None
    folder = None
    try:
        folder = _folder(path)
    except OSError as error:
        _log.warning("prefixes are kept in memory alone: --cache-dir: %s", error.strerror)
    salts = known_salts(config)
    return OpenDisk(folder, config.cache_disk_bytes, budget, config.cache_storage, salts)


def known_salts(config: Config) -> frozenset[bytes] | None:
    """Of all who may come; None where certificates say who they are. Raises StartError."""
    if config.tls is not None and config.tls.client_ca is not None:
        return None
    named = {*names_without_tokens(config), *config.principals}
    if config.tokens is not None:
        named.update(read_tokens(config.tokens).names)
    directory = Directory(config.principals)
    return frozenset(directory.named(name).salt for name in named)


def _layout(shape: tuple[int, int, int], dtype: str, storage: Storage) -> BlockLayout:
    if storage == "exact":
        return BlockLayout((FileTensor("kv", dtype, _ITEM_BYTES[dtype], shape),))
    rows, tokens, size = shape
    scales = FileTensor("scales", "F16", 2, (rows, tokens, size // GROUP))
    return BlockLayout((FileTensor("kv", "I8", 1, shape), scales))


def _folder(path: Path) -> Folder:
    try:
        return Folder(path)
    except FolderRefused as refused:
        raise StartError(f"--cache-dir {path}: {refused}") from None
    except NotADirectoryError:
        raise StartError(f"--cache-dir {path}: it is no folder") from None


def disk_bytes(limits: Limits) -> int:
    """What the process takes at most for what is being read and written."""
    return 6 * limits.read_bytes_max
