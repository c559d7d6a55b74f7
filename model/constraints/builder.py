"""Builds grammars to see whether they can be built: a process of its own, which may be killed.

    python -m sapwood.model.constraints.builder

- The grammar library has no limit that stops every build, and a build cannot be interrupted; its
  memory is bounded here, by the system where it can and by a thread that looks at it.
- One JSON value a line. In: first the vocabulary {size, names, ends, bytes_max}, then grammars
  {grammar}. Out: {problem} for each, "" where it is built and its first mask computed.
- The vocabulary is one of bytes with the model's control tokens at their ids: what a build takes
  depends on the grammar, and what masks take is watched where they are computed.
- Ends with its input, and in the middle of a build when nobody is left to hear of it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from sapwood.model.constraints.matching import LIMITS, problem_of
from sapwood.model.constraints.vocabulary import trie_of

_OVER_MEMORY = 3  # what the process ends with where a build takes too much
_LOOK_S = 0.01
_STACKS_BYTES = 256 << 20  # addresses that threads ask for and nobody fills


def main() -> None:
    """Until the input ends."""
    told = json.loads(sys.stdin.readline())
    trie = _trie(told)
    _bound_memory(told["bytes_max"])
    for line in sys.stdin:
        matcher = LLMatcher(trie, json.loads(line)["grammar"], log_level=0, limits=LIMITS)
        problem = problem_of(matcher)
        if not problem:
            matcher.compute_bitmask()
            problem = problem_of(matcher)
        del matcher
        print(json.dumps({"problem": problem}), flush=True)


def _trie(told: dict[str, Any]) -> LLTokenizer:
    tokens = [b""] * told["size"]
    names = {int(id): name for id, name in told["names"].items()}
    free = (id for id in range(told["size"]) if id not in names and id not in told["ends"])
    of_byte = dict(zip(range(256), free, strict=False))
    for byte, id in of_byte.items():
        tokens[id] = bytes([byte])
    # What is forced is looked up as tokens.
    return trie_of(tokens, names, told["ends"], lambda text: [of_byte[b] for b in text.encode()])


def _bound_memory(bytes_max: int) -> None:
    """End the process where it has so much more than now."""
    if sys.platform == "linux":
        most = _pages()[0] * resource.getpagesize() + bytes_max + _STACKS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_watch, args=(_resident_bytes() + bytes_max,), daemon=True).start()


def _watch(bytes_max: int) -> None:
    daemon = os.getppid()
    while os.getppid() == daemon and _resident_bytes() <= bytes_max:
        time.sleep(_LOOK_S)
    os._exit(_OVER_MEMORY)


def _resident_bytes() -> int:
    """What the process has in memory; on macOS the most that it had, or who started it."""
    if sys.platform == "linux":
        return _pages()[1] * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _pages() -> tuple[int, int]:
    """Of addresses and of memory, as Linux tells them."""
    with open("/proc/self/statm") as file:
        addresses, resident = file.read().split()[:2]
    return int(addresses), int(resident)


if __name__ == "__main__":
    main()
