#!/usr/bin/env bash
# mlx: rows of an embedding packed as mxfp4, mxfp8 or nvfp4 come as bfloat16, whatever the model's dtype.
#
# Library: mlx 0.32.4 (CPU build), mlx.nn.QuantizedEmbedding.
# Behaviour: an Embedding of float32 or float16 weights, packed with mode="mxfp4", "mxfp8" or "nvfp4",
#   looks tokens up as bfloat16, 8 bits of mantissa. The same module used as a tied head
#   (`as_linear`), and a packed Linear, keep the dtype of their input; mode="affine" keeps the
#   weights' own everywhere. So a model that runs in float32 or float16 silently starts every token
#   from bfloat16 values, and a float16 one mixes two half precisions from its first addition on.
#   mx.dequantize has a `dtype` argument and defaults to bfloat16 for these modes; the embedding
#   does not pass one.
# Seen with 0.32.4: the table that is compared below.
# What helps: cast the rows to the model's dtype right after the lookup.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "mlx==0.32.4" "mlx-cpu==0.32.4" "numpy==2.4.6"

cat > "$work/look.py" <<'PY'
import mlx.core as mx
import mlx.nn as nn

KINDS = {"affine": (32, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
for mode, (group_size, bits) in KINDS.items():
    for dtype in (mx.float32, mx.float16):
        plain = nn.Embedding(64, 64)
        plain.weight = plain.weight.astype(dtype)
        packed = plain.to_quantized(group_size=group_size, bits=bits, mode=mode)
        row = packed(mx.array([1])).dtype
        head = packed.as_linear(mx.ones((1, 64), dtype)).dtype
        print(mode, *(str(d).removeprefix("mlx.core.") for d in (dtype, row, head)))
PY

found=$("$work/venv/bin/python" "$work/look.py")
expected="affine float32 float32 float32
affine float16 float16 float16
mxfp4 float32 bfloat16 float32
mxfp4 float16 bfloat16 float16
mxfp8 float32 bfloat16 float32
mxfp8 float16 bfloat16 float16
nvfp4 float32 bfloat16 float32
nvfp4 float16 bfloat16 float16"

printf 'mode, weights, looked-up row, tied head:\n%s\n' "$found"
if [ "$found" != "$expected" ]; then
    printf 'this has changed; expected was:\n%s\n' "$expected" >&2
    exit 1
fi
printf 'as described\n'
