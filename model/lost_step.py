"""A step for which MLX could not allocate: told apart from what else fails, and given up whole.

- MLX has one type for whatever fails, so an allocation is known by MLX's words.
- An array that MLX was about to make may say that it is there. So nothing that took part in the
  step is used again: whoever owns it drops it, here, and the step is lost.
- Before it is dropped the error has to be gone: its traceback holds the frames with the arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from sapwood.scheduler.result import StepLost

_T = TypeVar("_T")

# Of mlx/allocator.cpp and of the allocators of its backends, read in 0.32. On Metal also where
# there are too many buffers; a command buffer that runs out of memory under way ends the process.
_NO_MEMORY = re.compile(
    r"unable to allocate|attempting to allocate|resource limit .*exceeded|out of memory",
    re.IGNORECASE,
)


def attempted(work: Callable[[], _T], drop: Callable[[], object]) -> _T:
    """What `work` gives; raises StepLost, behind `drop`, where an allocation failed in it.

    `work` itself may hold no array: it is still there when all is dropped.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        said = str(error)
    drop()  # no context manager: that would hold the error meanwhile
    raise StepLost(said)


def lacks_memory(error: BaseException) -> bool:
    """Whether it is an allocation that failed."""
    return isinstance(error, MemoryError) or (
        type(error) is RuntimeError and _NO_MEMORY.search(str(error)) is not None
    )
