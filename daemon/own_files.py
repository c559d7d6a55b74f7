"""Files that others find us by, removed only while they are still ours; and files for us alone.

A path says nothing about whose file stands there: a second daemon may have put its own in place of
ours. Device and inode do, as long as ours is open somewhere: else its number is given out again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import BinaryIO

Identity = tuple[int, int]

_log = logging.getLogger(__name__)


def identity_of(path: Path) -> Identity:
    """Device and inode of what stands there, a link itself. Raises OSError."""
    status = path.lstat()
    return status.st_dev, status.st_ino


def create_private(path: Path) -> BinaryIO:
    """A new file that its owner alone may read. Raises OSError, also where something stands."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb")


def remove_own(path: Path, ours: Identity) -> None:
    """Remove the file if it is still that one. What cannot be removed is worth a log line only."""
    try:
        if identity_of(path) == ours:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error.strerror)
