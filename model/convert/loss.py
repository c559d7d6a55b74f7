"""What packing took from weights: the packed values against those that were read, in float64 sums.

- Measured while a weight is packed, on what lies in the file, so that it costs no second reading.
- A loss is told of a whole weight; those of a model add up to the model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True)
class PackingLoss:
    """Of one weight, or of several under one name.

    squares: the sum of the weights' own, errors: of the differences. zeroed: weights that were not
    zero, in groups that are all zero now.
    """

    name: str
    squares: float = 0.0
    errors: float = 0.0
    zeroed: int = 0

    @property
    def share(self) -> float:
        """The root mean square of the differences over that of the weights; 0: nothing was lost."""
        return float((self.errors / self.squares) ** 0.5) if self.squares else 0.0


def loss_of(name: str, before: mx.array, after: mx.array, group_size: int) -> PackingLoss:
    """The loss of rows [n, m], both float32."""
    groups = (-1, group_size)
    lost = (after.reshape(groups) == 0).all(axis=1, keepdims=True) & (before.reshape(groups) != 0)
    squares, errors = (_squares(array) for array in (before, after - before))
    return PackingLoss(name, squares, errors, int(np.array(lost).sum()))


def total_loss(name: str, losses: Iterable[PackingLoss]) -> PackingLoss:
    """All of them as one."""
    kept = list(losses)
    return PackingLoss(
        name,
        sum(loss.squares for loss in kept),
        sum(loss.errors for loss in kept),
        sum(loss.zeroed for loss in kept),
    )


def _squares(rows: mx.array) -> float:
    # Row by row on the device, then wide: one float32 sum of a matrix would drift. Scaled, since
    # the square of a small weight is no float32.
    largest = float(np.array(mx.abs(rows).max()))
    if not 0 < largest < math.inf:
        return largest
    sums = mx.square(rows / largest).sum(axis=-1)
    return float(np.array(sums).sum(dtype=np.float64)) * largest**2
