"""The folder that a disk tier lives in: whose it is, its lock, its salt, and what touches files.

- It is its owner's alone, 0700, and its files 0600. Another's folder, or one that others may look
  into, or that holds something else, is refused: what lies in it are conversations.
- One process at a time: the lock goes with the process, however that ends.
- A file comes whole or not at all: written beside its place, then renamed. Nothing is synced: what
  a power cut damages is found damaged when it is read.
- Names are plain and ours. At most a few files are open at once, however many there are.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path

SALT_BYTES = 32
LOCK, SALT, JOURNAL, QUARANTINE = "lock", "salt", "journal", "quarantine"
QUARANTINED_MAX = 16  # files; the oldest go
NEW = ".new"  # what is being written is named so
_OURS = re.compile(r"[0-9a-f]+\.(full|sliding)\.safetensors(\.new)?|(journal|salt)\.new")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class FolderRefused(Exception):
    """The folder cannot be used. The message says why, without its path."""


class Folder:
    """An open folder. All of its operations raise OSError."""

    def __init__(self, path: Path) -> None:
        """Make it if need be, and lock it. Raises FolderRefused, or OSError for a bad disk."""
        with suppress(FileExistsError):
            path.mkdir(0o700, parents=True)
        self._at = os.open(path, _DIRECTORY)
        self._lock = -1
        try:
            self._check_owner()
            self._check_content()
            self._take_lock()
            self.salt = self._read_salt()
            self._make_quarantine()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the folder back."""
        for descriptor in (self._lock, self._at):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._at = -1

    def names(self) -> set[str]:
        """All files of ours in it that may be removed at any time, left ones of writes too."""
        return {name for name in os.listdir(self._at) if _OURS.fullmatch(name)}

    def read(self, name: str, bytes_max: int) -> bytes:
        """A whole file, or as much as bytes_max of it."""
        with open(os.open(name, _READ, dir_fd=self._at), "rb") as file:
            return file.read(bytes_max)

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """A file of these parts, whole or not at all."""
        new = name + NEW
        try:
            with open(self._create(new), "wb", buffering=0) as file:
                for part in parts:
                    _write_whole(file, part)
            os.rename(new, name, src_dir_fd=self._at, dst_dir_fd=self._at)
        except OSError:
            with suppress(OSError):
                self.remove(new)
            raise

    def append(self, name: str, line: bytes) -> None:
        """At the end of a file."""
        descriptor = os.open(name, _WRITE | os.O_APPEND, 0o600, dir_fd=self._at)
        with open(descriptor, "wb", buffering=0) as file:
            _write_whole(file, line)

    def remove(self, name: str) -> None:
        """A file that may be gone already."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._at)

    def quarantine(self, name: str) -> None:
        """Put a damaged file aside, for who wants to look at it; a few of them are kept."""
        aside = f"{QUARANTINE}/{name}"
        self._make_quarantine()  # whoever looked may have removed it
        os.rename(name, aside, src_dir_fd=self._at, dst_dir_fd=self._at)
        # By the clock of the day, which jumps: whatever it says, this one is the newest.
        others = [old for old in self._quarantined() if old != aside]
        for old in others[: -(QUARANTINED_MAX - 1)]:
            self.remove(old)

    def release_quarantine(self) -> None:
        """Remove all that was put aside."""
        for name in self._quarantined():
            self.remove(name)

    def _quarantined(self) -> list[str]:
        """Oldest first."""
        try:
            at = os.open(QUARANTINE, _DIRECTORY, dir_fd=self._at)
        except FileNotFoundError:
            return []
        try:
            names = os.listdir(at)
            names.sort(key=lambda name: os.stat(name, dir_fd=at, follow_symlinks=False).st_ctime_ns)
        finally:
            os.close(at)
        return [f"{QUARANTINE}/{name}" for name in names]

    def _make_quarantine(self) -> None:
        with suppress(FileExistsError):
            os.mkdir(QUARANTINE, 0o700, dir_fd=self._at)

    def _create(self, name: str) -> int:
        with suppress(FileNotFoundError):  # of a process that was killed
            os.unlink(name, dir_fd=self._at)
        return os.open(name, _WRITE | os.O_EXCL, 0o600, dir_fd=self._at)

    def _check_owner(self) -> None:
        found = os.fstat(self._at)
        if found.st_uid != os.geteuid():
            raise FolderRefused("it is another user's")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise FolderRefused("others may look into it: expected mode 0700")

    def _check_content(self) -> None:
        """Without a look at all that may lie there."""
        with suppress(FileNotFoundError):
            os.stat(LOCK, dir_fd=self._at, follow_symlinks=False)
            return
        with os.scandir(self._at) as found:
            if next(found, None) is not None:
                raise FolderRefused("it holds something else: expected an empty folder, or none")

    def _take_lock(self) -> None:
        self._lock = os.open(LOCK, _WRITE, 0o600, dir_fd=self._at)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderRefused("another process uses it") from None

    def _read_salt(self) -> bytes:
        """Drawn once. Were it lost, nothing of before would be found, and would go with time."""
        with suppress(FileNotFoundError):
            salt = self.read(SALT, SALT_BYTES + 1)
            if len(salt) == SALT_BYTES:
                return salt
        salt = secrets.token_bytes(SALT_BYTES)
        self.write(SALT, salt)
        return salt


def _write_whole(file: FileIO, data: bytes | memoryview) -> None:
    """A full disk may take some of it before it refuses the rest."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
