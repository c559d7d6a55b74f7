"""Chips, and what others have published about them: two figures that calibrate, others that judge.

- Nothing here was measured by us. Each figure says where it was published and how it differs from
  what the model describes: engine, prompt and context are the authors', and often not told.
- Steps are read by mlx-lm's own graph, rounds by ours: how each engine builds them is not known.
- Two constants of the model, the ends of a kernel's cost, are reckoned from two figures. Nothing is
  left of these to judge by; the other reports are for that, and none of them moved a constant.
- Pure: no device, no file.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.families import FAMILIES
from bench.step_work import CALIBRATING, Chip, StepWork, launch_s

# Memory as Apple publishes it. Arithmetic: M4 Pro and Max from huggingface/huggingface.js #1044,
# M2 Max from philipturner/applegpuinfo #10, M3 Max assumed, an Ultra twice a Max; M5's is not
# modelled, so what binds it there is left out.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("M1 Ultra", 800e9, 21e12),
        Chip("M2 Max", 400e9, 13.6e12),
        Chip("M3 Max", 400e9, 14e12),
        Chip("M3 Ultra", 819e9, 28e12),
        Chip("M4 Pro", 273e9, 9.2e12),
        Chip("M4 Max", 546e9, 18.4e12),
        Chip("M5", 153e9, None),
        Chip("M5 Max", 614e9, None),
    )
}


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """Tokens per second of one client without drafts, as published at `source`."""

    source: str
    chip: Chip
    step: StepWork
    tokens_s: float
    remark: str = ""

    @property
    def launch_s(self) -> float:
        """What a kernel costs if it is the whole rest of the step."""
        moved = self.step.moved_s(self.chip)
        return (1 / self.tokens_s - moved) / self.step.graph.kernels

    @property
    def range_tokens_s(self) -> tuple[float, float]:
        """What the model says, from its slow end to an engine whose host costs nothing."""
        return 1 / self.step.seconds(self.chip)[1], 1 / self.step.device_s(self.chip)[0]

    @property
    def residual(self) -> float:
        """Share by which the figure lies above the model's range, below it if negative, or 0."""
        low, high = self.range_tokens_s
        return self.tokens_s / min(max(self.tokens_s, low), high) - 1


@dataclass(frozen=True, slots=True)
class RoundReport:
    """Cost of a round with drafts, in plain steps of the same engine."""

    source: str
    chip: Chip
    step: StepWork
    cost: float
    remark: str

    @property
    def range_cost(self) -> tuple[float, float]:
        """What the model says: quick end by quick end, slow by slow."""
        pairs = zip(self.step.seconds(self.chip), self._plain.seconds(self.chip), strict=True)
        first, second = (drafted / alone for drafted, alone in pairs)
        return min(first, second), max(first, second)

    @property
    def cost_one_by_one(self) -> float:
        """And were nothing done at once: bytes, arithmetic, kernels, and the host's work."""
        drafted, alone = (
            step.moved_s(self.chip)
            + step.done_s(self.chip)
            + step.graph.kernels * launch_s()[1]
            + step.host_s[1]
            for step in (self.step, self._plain)
        )
        return drafted / alone

    @property
    def _plain(self) -> StepWork:
        return StepWork(self.step.family, packing=self.step.packing)


def _plain(family: str, packing: str = "4-bit") -> StepWork:
    return StepWork(FAMILIES[family], packing=packing, peer=True)


CALIBRATION = (
    SpeedReport(
        "lablup/mlxcel #358", CHIPS["M5 Max"], _plain("E2B"), CALIBRATING[0][1],
        "gemma3n E2B, whose shape is another, in another engine",
    ),
    SpeedReport(
        "0xBakeer/inference-atlas #71", CHIPS["M2 Max"], _plain("E2B"),
        CALIBRATING[1][1],
        "published as 89.72 with prompts, taken off at their own 656.52 tokens/s",
    ),
)  # fmt: skip

SPEED_REPORTS = (
    SpeedReport("raullenchai/Rapid-MLX #58", CHIPS["M3 Ultra"], _plain("E4B"), 83),
    SpeedReport("raullenchai/Rapid-MLX #1013", CHIPS["M3 Ultra"], _plain("12B"), 66.4),
    SpeedReport("raullenchai/Rapid-MLX #58", CHIPS["M3 Ultra"], _plain("26B-A4B"), 94),
    SpeedReport("raullenchai/Rapid-MLX #58", CHIPS["M3 Ultra"], _plain("31B"), 31),
    SpeedReport("magicnight/Mac-MLX #62", CHIPS["M5 Max"], _plain("E4B", "8-bit"), 81.8),
    SpeedReport("lablup/mlxcel #159", CHIPS["M5 Max"], _plain("12B"), 39, "published as ~39"),
    SpeedReport("lablup/mlxcel #159", CHIPS["M5 Max"], _plain("31B"), 26, "published as ~26"),
    SpeedReport(
        "lablup/mlxcel #216", CHIPS["M1 Ultra"], _plain("31B"), 18.2,
        "generation 13, of other kernels than the model's",
    ),
)  # fmt: skip

# Rounds by their drafts: 20 of none, 137 of one, 176 of two, 4 of three.
_DRAFTS = (137 + 2 * 176 + 3 * 4) / (20 + 137 + 176 + 4)

ROUND_REPORTS = (
    RoundReport(
        "lablup/mlxcel #1217", CHIPS["M3 Ultra"],
        StepWork(FAMILIES["31B"], depth=3, draft_packing="bf16"), 1.51, "published as 1.51 to 1.52",
    ),
    RoundReport(
        "raullenchai/Rapid-MLX #1013", CHIPS["M3 Ultra"],
        StepWork(FAMILIES["12B"], depth=2, draft_packing="bf16"),
        (1 + 0.66 * _DRAFTS) * 66.4 / 62.2,
        f"by our arithmetic: 66.4 tokens/s plain, 62.2 with {_DRAFTS:.1f} drafts a round, mostly 2,"
        " of which 0.66 are accepted",
    ),
)  # fmt: skip
