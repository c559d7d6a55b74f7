"""How many files and sockets the process may have open: its starter's to say, no library's.

Importing `mlx_lm.utils` sets RLIMIT_NOFILE to (2048, 4096): a service that was given a million is
lowered for good, and one with a hard limit below is refused and does not start.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def descriptors_beyond(kept: int) -> int:
    """How many more than `kept` the process may have open; 0 where it may not even have those."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(0, soft - kept)


@contextmanager
def own_descriptor_limits() -> Iterator[None]:
    """Inside, RLIMIT_NOFILE stays as it is, whatever is imported; other limits can be set."""
    set_limit = resource.setrlimit

    def guarded(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            set_limit(which, limits)

    resource.setrlimit = guarded
    try:
        yield
    finally:
        resource.setrlimit = set_limit
