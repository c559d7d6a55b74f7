"""The process's own memory: how much it takes, and that what is freed stays for who wants it next.

- glibc gives large blocks back to the system and gets them again page by page, each of them zeroed:
  on a CPU a third of a step. MLX's own cache hands a block out for nearly its own size only, and
  two steps are seldom of one size.
- One arena for all threads: another thread's consists of heaps of 64 MiB, which go back as soon as
  they are empty, whatever is set here.
- So a process stays as large as it has been; what arrays hold is counted elsewhere (the ledger).
- Other C libraries stay as they are.
- What it takes beside arrays is reckoned before it is taken: what it has without a model, and every
  queue and buffer at its limit.
"""

from __future__ import annotations

import ctypes
import resource
import sys

from sapwood.scheduler.limits import Limits

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30  # a free end of the heap, and one block, up to this
# Of Python and of the tokenizer's own, for each token of the vocabulary, measured with 262,144.
_TOKEN_BYTES = 512


def keep_freed_memory() -> bool:
    """Before the thread starts that computes: who has an arena keeps it. False: not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_TRIM_THRESHOLD: _KEPT_BYTES, _MMAP_THRESHOLD: _KEPT_BYTES, _ARENA_MAX: 1}
    return all(mallopt(option, value) == 1 for option, value in wanted.items())


def peak_resident_bytes() -> int:
    """The most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def host_bytes(limits: Limits, vocabulary: int) -> int:
    """What Python takes at most beside that, once it serves: prompts, replies, tokens' bytes."""
    replies = (limits.slots_max + limits.queued_max) * limits.mailbox_bytes_max
    prompts = limits.tokenise_bytes_max + limits.codec_bytes_max
    return replies + prompts + vocabulary * _TOKEN_BYTES
