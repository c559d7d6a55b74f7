"""How many files and sockets the process may have open: its starter's to say, no library's.

Importing `mlx_lm.utils` would set RLIMIT_NOFILE to (2048, 4096); no command imports it.
"""

from __future__ import annotations

import resource
import sys


def descriptors_beyond(kept: int) -> int:
    """How many more than `kept` the process may have open; 0 where it may not even have those."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(0, soft - kept)
