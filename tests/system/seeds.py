"""Replies drawn with seeds, as they were once drawn: by backend, for seeds do not carry over.

    python -m tests.system.seeds --write && git diff tests/system/seeds.json

- Log and log1p round differently from backend to backend, and so does a logit's last digit: what a
  seed gives on a CPU need not be what it gives on Metal or CUDA (docs/metal.md).
- `--write` draws anew for the backend that it runs on and leaves the others as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import DEMO, pair, prompts
from tests.system.stack import Stack

FILE = Path(__file__).with_suffix(".json")
REPLY = 16
SAMPLERS = (
    Sampling(temperature=2.0, seeded=True, noise_key=1),
    Sampling(temperature=2.5, top_p=0.9, seeded=True, noise_key=2),
    Sampling(temperature=3.0, top_k=40, min_p=0.02, seeded=True, noise_key=3 << 40),
    Sampling(temperature=2.0, repetition_penalty=1.2, seeded=True, noise_key=4),
)


def backend() -> str:
    """What computes here, with its dtype: the key of its replies."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu float32"
    return f"{'metal' if mx.metal.is_available() else 'cuda'} float32"


def drawn() -> list[list[int]]:
    """Every prompt of the bundled pair with every sampler, all together, with drafts."""
    stack = Stack(pair(DEMO), Limits(slots_max=8))
    streams = [
        stack.submit(prompt, REPLY, sampling=sampling, depth=3)
        for prompt in prompts(DEMO)[:3]
        for sampling in SAMPLERS
    ]
    stack.run()
    stack.close()
    return [stream.tokens for stream in streams]


def known() -> dict[str, list[list[int]]]:
    """Committed replies by backend."""
    found: dict[str, list[list[int]]] = json.loads(FILE.read_text())
    return found


def main() -> int:
    if sys.argv[1:] != ["--write"]:
        print(__doc__)
        return 2
    replies = known() | {backend(): drawn()}
    lines = [
        f'"{name}": [\n' + ",\n".join(map(str, replies[name])) + "\n]" for name in sorted(replies)
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
