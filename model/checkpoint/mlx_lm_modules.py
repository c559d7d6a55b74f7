"""What we take of mlx-lm: its modules of Gemma 4, without what its package imports beside them.

- `import mlx_lm` imports its converter, its generator and transformers: three quarters of the CPU
  seconds of our whole start, and nothing of it is used. So the package's own lines are left out
  while its modules are imported; whoever imports `mlx_lm` afterwards gets all of it.
- Imported on one thread: meanwhile nobody else may import mlx-lm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def _without_its_own_lines(package: str) -> Iterator[None]:
    """Its modules can be imported, and it was not: none of its own names is there."""
    spec = find_spec(package)
    if package in sys.modules or spec is None:
        yield
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _without_its_own_lines("mlx_lm"):
    from mlx_lm.models.gemma4_text import (
        MLP,
        DecoderLayer,
        Gemma4TextModel,
        Model,
        ModelArgs,
        logit_softcap,
    )
    from mlx_lm.models.rope_utils import initialize_rope
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear

__all__ = [
    "MLP",
    "DecoderLayer",
    "Gemma4TextModel",
    "Model",
    "ModelArgs",
    "QuantizedSwitchLinear",
    "initialize_rope",
    "logit_softcap",
]
