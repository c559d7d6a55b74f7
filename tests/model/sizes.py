"""How much memory the released models take, by the product's own ledger, as a page to read.

- Weights are those of the true shapes, packed as `convert` packs them (model/convert/shards.py) and
  counted buffer by buffer as on Metal. What clients take beside them is `slots_bytes`, which the
  daemon admits by: rows, rings and a step's largest workspace.
- Speeds are those of bench/step_work.py, an estimate.
- `python -m tests.model.sizes --rewrite` writes docs/sizes.md; a test holds it.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from mlx import nn

from bench.families import FAMILIES, Family
from bench.reports import CHIPS
from bench.step_work import StepWork
from sapwood.cache.geometry import buffer_bytes
from sapwood.model import device
from sapwood.model.checkpoint.packing import packings, parse_packing
from sapwood.model.checkpoint.safetensors import TensorEntry
from sapwood.model.checkpoint.weights import arrays
from sapwood.model.convert.shards import Piece
from sapwood.model.pair import model_facts
from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.sampling import SuppressedTokens
from tests.model.hollow import hollow_pair
from tests.model.reference import parameters
from tests.test_rooms import ROOT

PAGE = ROOT / "docs/sizes.md"
PACKINGS: dict[str, str | None] = {"4-bit": "4bit", "8-bit": "8bit", "bf16": None}
CLIENTS, CONTEXT = (1, 8, 32), 8192
DRAFTS, ACCEPTANCE = 3, 0.7
SHOWN = ("M4 Pro", "M4 Max", "M5 Max", "M3 Ultra")
_TOKENIZER = SimpleNamespace(
    eos_token_ids=frozenset({1, 50, 106}),
    control_tokens=ControlTokens(),
    suppressed=SuppressedTokens(),
)


@dataclass(frozen=True, slots=True)
class Size:
    """A family's target and drafter. weights: bytes by packing, of each."""

    family: Family
    facts: ModelFacts
    target: dict[str, int]
    drafter: dict[str, int]

    def budget_bytes(self, packing: str, drafter: str, clients: int) -> int:
        """What `--memory` must be for so many clients with CONTEXT tokens each."""
        demands = [Demand(CONTEXT)] * clients
        slots = slots_bytes(self.facts, Limits(), demands)
        return self.target[packing] + self.drafter[drafter] + slots


@cache
def size_of(family: Family) -> Size:
    """Nothing is computed: a second or so."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(device, "_is_cpu", bool):
        pair = hollow_pair(family, Path(folder))
        served = replace(pair, tokenizer=cast("Any", _TOKENIZER))
        facts = model_facts(served, Limits().draft_depth_max)
        assert pair.assistant is not None
        return Size(family, facts, _packed(pair.target), _packed(pair.assistant))


def _packed(module: nn.Module) -> dict[str, int]:
    return {name: sum(_buffers(module, wanted)) for name, wanted in PACKINGS.items()}


def _buffers(module: nn.Module, wanted: str | None) -> Iterator[int]:
    """Bytes that each array of a module takes on Metal."""
    how = packings(module, None if wanted is None else parse_packing(wanted, None))
    for name, array in parameters(module).items():
        entry = TensorEntry("", name, "BF16", array.shape, 0, array.nbytes)
        dtype = "I32" if array.dtype.size == 4 else "BF16"  # ids, or weights
        packing = how.get(name.removesuffix(".weight"))
        piece = Piece(name, entry, Path(), 0, None, dtype, packing)
        yield from (_buffer(tensor.bytes) for tensor in piece.tensors)
    named = {id(array) for array in parameters(module).values()}
    yield from (_buffer(array.nbytes) for array in arrays(module) if id(array) not in named)


def _buffer(count: int) -> int:
    """A page more than it takes, which a kept one may be larger by."""
    return buffer_bytes(count, device.GPU_PAGE_BYTES) + device.GPU_PAGE_BYTES


# As they were public in autumn 2026: targets in 4 bits, and drafters in bfloat16.
HUB = {
    "E2B": ("gemma-4-e2b-it-4bit", "gemma-4-E2B-it-assistant-bf16"),
    "E4B": ("gemma-4-e4b-it-4bit", "gemma-4-E4B-it-assistant-bf16"),
    "12B": ("gemma-4-12B-it-4bit", "gemma-4-12B-it-assistant-bf16"),
    "26B-A4B": ("gemma-4-26b-a4b-it-4bit", "gemma-4-26B-A4B-it-assistant-bf16"),
    "31B": ("gemma-4-31b-it-4bit", "gemma-4-31B-it-assistant-bf16"),
}
_HEAD = """\
# How much memory a model needs, and how fast it is

**Reckoned, not measured**: none of us has run a released checkpoint or a Mac. Memory is what the
daemon's own ledger reserves on Metal for true shapes, so an upper bound; speed is
[an estimate](bench/expected.md) that says what it assumes. `python -m tests.model.sizes --rewrite`
writes this page, and a test holds it to the code.

- **Memory** is what `--memory` must be: weights of target and drafter, K/V of so many clients that
  decode at once with {context:,} tokens of context each, and the largest step. What the prefix tree
  keeps comes on top: whatever is left is its. Clients who share a prefix hold its full K/V once, so
  they need less.
- The drafter is in bfloat16, as it is published. `sapwood convert --quantize-draft 4bit` makes it a
  quarter of that.
- **Speed** is tokens a second of one client with {drafts} drafts a round of which each is accepted
  with probability {acceptance:g}. More clients together get more.
- By itself a daemon takes 85 % of what Metal recommends for a working set, less what its process
  takes beside arrays ([memory](memory.md#the-budget)). `sapwood status` says what that came to.
- `sapwood show ID` says it of a model that is here, read off its own files. Vision and audio towers
  are in a download and are not loaded.
"""
_FAMILY = """\
## {name}

`sapwood pull {target}` fetches it, and its drafter
`{drafter}`.

{name} 4-bit needs {one} of memory for one client and {eight} for eight.

{table}

A client's window of sliding layers is {ring}, and each 1,000 tokens of its context are {full}.
"""


def page() -> str:
    """The whole page."""
    head = _HEAD.format(context=CONTEXT, drafts=DRAFTS, acceptance=ACCEPTANCE)
    sections = [_section(size_of(family)) for family in FAMILIES.values()]
    return "\n".join([head, *sections])


def _section(size: Size) -> str:
    target, drafter = (f"mlx-community/{name}" for name in HUB[size.family.name])
    one, eight = (size.budget_bytes("4-bit", "bf16", clients) for clients in (1, 8))
    return _FAMILY.format(
        name=size.family.name,
        target=target,
        drafter=drafter,
        one=_gib(one),
        eight=_gib(eight),
        table="\n".join(_table(size)),
        ring=f"{round(size.facts.ring_bytes / 2**20)} MiB",
        full=f"{round(1000 * size.facts.full_bytes_per_token / 2**20)} MiB",
    )


def _table(size: Size) -> Iterator[str]:
    clients = [f"{count} client{'s' * (count > 1)}" for count in CLIENTS]
    yield _row(["packing", "weights", "drafter", *clients])
    yield _row(["---"] * (3 + len(clients)))
    for packing in PACKINGS:
        needs = [size.budget_bytes(packing, "bf16", count) for count in CLIENTS]
        held = (size.target[packing], size.drafter["bf16"], *needs)
        yield _row([packing, *map(_gib, held)])
    yield from ("", _row(["tokens/s", *SHOWN]), _row(["---"] * (1 + len(SHOWN))))
    for packing in PACKINGS:
        yield _row([packing, *_speeds(size.family, packing)])


def _speeds(family: Family, packing: str) -> Iterator[str]:
    step = StepWork(family, depth=DRAFTS, packing=packing, draft_packing="bf16")
    for chip in SHOWN:
        slow, quick = step.tokens_s(CHIPS[chip], ACCEPTANCE)
        yield f"{slow:.0f} to {quick:.0f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gib(count: int) -> str:
    """Rounded up: as much does."""
    return f"{math.ceil(10 * count / 2**30) / 10:.1f} GiB"


if __name__ == "__main__":
    if sys.argv[1:] == ["--rewrite"]:
        PAGE.write_text(page())
    else:
        print(page(), end="")
