"""The C library's memory in a process that computes: what is freed stays for whoever wants it next.

- glibc gives large blocks back to the system and gets them again page by page, each of them zeroed:
  on a CPU a third of a step. MLX's own cache hands a block out for nearly its own size only, and
  two steps are seldom of one size.
- One arena for all threads: another thread's consists of heaps of 64 MiB, which go back as soon as
  they are empty, whatever is set here.
- So a process stays as large as it has been; what arrays hold is counted elsewhere (the ledger).
- Other C libraries stay as they are.
"""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30  # a free end of the heap, and one block, up to this


def keep_freed_memory() -> bool:
    """Before the thread starts that computes: who has an arena keeps it. False: not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_TRIM_THRESHOLD: _KEPT_BYTES, _MMAP_THRESHOLD: _KEPT_BYTES, _ARENA_MAX: 1}
    return all(mallopt(option, value) == 1 for option, value in wanted.items())
