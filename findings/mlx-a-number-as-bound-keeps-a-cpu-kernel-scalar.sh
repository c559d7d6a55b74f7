#!/usr/bin/env bash
# mlx on a CPU: a compiled function that clips to a Python number takes four times as long as one that is
# given the same bound as an array, and computes the same bits.
#
# Library: mlx 0.32.4 (CPU build for Linux), mx.compile; g++ 12.2 as the compiler it calls.
# Behaviour: numbers are written into the kernel's source as constants. Where a value is clipped to
#   one and goes into a polynomial, g++ sees that the polynomial is a constant for all that was
#   clipped, makes a branch of it, and does not vectorize a loop with a branch. A bound that comes as
#   an array of one number is read in the loop: nothing can be folded, and it is vectorized.
# Seen with 0.32.4 and g++ 12.2.0 on x86-64: 2.7 ns an element with the number, 0.6 with the array.
# What helps: pass bounds of compiled functions as arrays.
set -euo pipefail

command -v g++ >/dev/null || { echo "g++ is needed: mlx compiles CPU kernels with it" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4"

"$work/venv/bin/python" - <<'PY'
import sys
import time

import mlx.core as mx

TERMS = (0.8, 0.07, 0.007, 0.0003)


def curve(x, bound):
    near = mx.minimum(mx.abs(x), bound)
    square = mx.square(near)
    low, high = TERMS[0] + TERMS[1] * square, TERMS[2] + TERMS[3] * square
    return x / (low + high * mx.square(square))


by_number = mx.compile(lambda x: curve(x, 5.0))
by_array = mx.compile(curve)
x, bound = 3 * mx.random.normal((1 << 20,)), mx.array(5.0)
mx.eval(x)
least = {"number": 1.0, "array": 1.0}
for _ in range(15):
    for name, ask in (("number", lambda: by_number(x)), ("array", lambda: by_array(x, bound))):
        begun = time.perf_counter()
        mx.eval(ask())
        least[name] = min(least[name], time.perf_counter() - begun)
same = bool(mx.array_equal(by_number(x), by_array(x, bound)))
for name, seconds in least.items():
    print(f"bound as {name}: {seconds * 1e9 / x.size:.2f} ns an element")
print(f"the same bits: {same}")
if not same or least["number"] < 1.3 * least["array"]:
    sys.exit("this has changed: expected was that the number takes at least 1.3 times as long")
PY
printf 'as described\n'
