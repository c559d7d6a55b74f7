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
# Maps of code and threads' stacks, which nobody fills.
_ADDRESSES_BYTES = 2 << 30


def main() -> None:
    """Until the input ends."""
    told = json.loads(sys.stdin.readline())
    _bound_memory(told["bytes_max"])
    trie = _trie(told)
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
    """End the process where it has more than this."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES_BYTES + bytes_max,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_watch, args=(bytes_max,), daemon=True).start()


def _watch(bytes_max: int) -> None:
    daemon, bound = os.getppid(), bytes_max
    if sys.platform != "linux":  # where a peak may be that of who started the process
        bound += _resident_bytes()
    while os.getppid() == daemon and _resident_bytes() <= bound:
        time.sleep(_LOOK_S)
    os._exit(_OVER_MEMORY)


def _resident_bytes() -> int:
    """What the process has in memory; elsewhere than on Linux the most that it had."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
