#!/usr/bin/env bash
# mlx: a group of next to nothing, packed as mxfp4 or mxfp8, comes back as the largest numbers there are.
#
# Library: mlx 0.32.4 (CPU build), mx.quantize and mx.dequantize.
# Behaviour: the shared scale of a group is a power of two in one byte, 2**-127 to 2**127. Where the
#   scale that a group needs lies below that (its largest value under 2**-125 for mxfp4, 2**-119 for
#   mxfp8, about 1e-36), the exponent is not clamped but wraps: the byte says some 2**120, and values of
#   1e-38 come back as 1e38 or infinity. No error, no warning, no NaN in what is stored. Groups that
#   are exactly zero are right, and so is affine, which gives zeros there.
# Seen with 0.32.4: the table that is compared below. bfloat16 and float32 weights can hold such rows,
#   of tokens that no training text had for instance.
# What helps: make zeros of what is below 2**-110 before it is packed.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "mlx==0.32.4" "mlx-cpu==0.32.4" "numpy==2.4.6"

cat > "$work/look.py" <<'PY'
import mlx.core as mx

for mode, bits in (("mxfp4", 4), ("mxfp8", 8), ("affine", 4)):
    for exponent in (-110, -122, -128, -134):
        rows = mx.full((1, 32), 2.0**exponent)
        packed = mx.quantize(rows, 32, bits, mode)
        back = mx.dequantize(*packed, group_size=32, bits=bits, mode=mode, dtype=mx.float32)
        print(f"{mode} 2**{exponent} -> {back[0, 0].item():.0e}")
PY

found=$("$work/venv/bin/python" "$work/look.py")
expected="mxfp4 2**-110 -> 8e-34
mxfp4 2**-122 -> 2e-37
mxfp4 2**-128 -> inf
mxfp4 2**-134 -> 5e+36
mxfp8 2**-110 -> 8e-34
mxfp8 2**-122 -> inf
mxfp8 2**-128 -> inf
mxfp8 2**-134 -> 5e+36
affine 2**-110 -> 0e+00
affine 2**-122 -> 0e+00
affine 2**-128 -> 0e+00
affine 2**-134 -> 0e+00"

printf '%s\n' "$found"
if [ "$found" != "$expected" ]; then
    printf 'this has changed; expected was:\n%s\n' "$expected" >&2
    exit 1
fi
printf 'as described\n'
