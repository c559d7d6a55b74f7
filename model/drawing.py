"""The rows that draw in a step: the decode rows, then the prompts that end in it, and their masks.

- What is drawn behind a reply that was parked counts nowhere: it has no mask.
- The host reads the drafts only where the masks of some row depend on which they are, and where it
  does not know them: what a constraint forces it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from sapwood.model.constraints.step_masks import HeldRow, StepMasks
from sapwood.model.drafting import Drafts
from sapwood.model.sampler import Sampler
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.masking import packed_masks
from sapwood.model.step_values import read_drafts
from sapwood.scheduler.plan import DecodeRow, PrefillSlice


def drawing_slots(
    decodes: Sequence[DecodeRow], prefills: Sequence[PrefillSlice]
) -> tuple[int, ...]:
    """Whose rows draw, in their order."""
    return tuple([d.slot for d in decodes] + [p.slot for p in prefills if p.draws])


def draw_rows(
    decodes: Sequence[DecodeRow], firsts: Sequence[PrefillSlice], samplers: Sequence[Sampler]
) -> DrawRows | None:
    """Every row that draws. firsts: the prompts that end. samplers: of them all, in order."""
    if not samplers:
        return None
    depths = [d.depth for d in decodes] + [0] * len(firsts)
    counts = [True] * len(decodes) + [not p.index for p in firsts]
    masked = tuple(
        count and sampler.masks(depth)
        for sampler, depth, count in zip(samplers, depths, counts, strict=True)
    )
    forced = tuple([d.forced for d in decodes] + [0] * len(firsts))
    tallies = tuple(sampler.tally for sampler in samplers)
    bounds = tuple(s.length.bounds if s.length is not None else None for s in samplers)
    return DrawRows(
        tuple(sampler.sampling for sampler in samplers),
        tuple(depths),
        tuple([d.index for d in decodes] + [p.index for p in firsts]),
        tallies if any(tallies) else (),
        masked if any(masked) else (),
        bounds if any(bounds) else (),
        forced if any(forced) else (),
    )


def follows_drafts(rows: DrawRows, samplers: Sequence[Sampler]) -> bool:
    """Whether some mask depends on what the drafter drew."""
    return any(
        samplers[row].follows(rows.depth[row]) and _forced(rows, row) < rows.depth[row]
        for row in _masked(rows)
    )


def step_masks(
    masks: StepMasks, rows: DrawRows, samplers: Sequence[Sampler], drafts: Drafts | None
) -> mx.array:
    """uint8 [places of rows with masks, bytes], of rows in order.

    drafts: None where no mask follows them; else it waits for the drafter. Raises DeviceFault.
    """
    table = None if drafts is None else read_drafts(drafts, masks.vocabulary)
    held = []
    for row in _masked(rows):
        sampler, depth = samplers[row], rows.depth[row]
        path: Sequence[int] = sampler.forced[: _forced(rows, row)]
        if table is not None and depth:
            path = table[row, :depth].tolist()
        held.append(HeldRow(sampler.guide, sampler.length, depth, path))
    return packed_masks(masks.of_rows(held))


def _forced(rows: DrawRows, row: int) -> int:
    return rows.forced[row] if rows.forced else 0


def _masked(rows: DrawRows) -> list[int]:
    return [row for row, masked in enumerate(rows.constrained) if masked]
