"""Whether strict numerics hold on this device: tried before anything is served with them.

- One text is evaluated in several ways (one_text). Its logits have to be the same bits in all of
  them.
- That a product of one shape gives a row the same bits at every place is BLAS's affair, or a
  kernel's. Nobody documents it, so nobody is believed.
"""

from __future__ import annotations

import numpy as np

from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.one_text import ALL_ALONE, TEXT_TOKENS, WAYS, OneText
from sapwood.model.pair import Pair


def refuse_unless_strict(pair: Pair) -> None:
    """Raises ModelRefused where a row's bits depend on anything but the row."""
    text = OneText(pair)
    expected = text.logits(ALL_ALONE).view(np.int32)
    for way in WAYS:
        found = text.logits(way).view(np.int32)
        if not np.array_equal(found, expected):
            rows = int((found != expected).any(axis=1).sum())
            raise ModelRefused(
                f"strict numerics do not hold with this device and BLAS: computed {way.told}, "
                f"{rows} of {TEXT_TOKENS} rows have other bits than alone; --numerics fast serves"
            )
