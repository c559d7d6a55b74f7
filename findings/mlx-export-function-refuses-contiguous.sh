#!/usr/bin/env bash
# mlx: a function that calls mx.contiguous cannot be exported, neither to a file nor to a callback.
#
# Library: mlx 0.32.4, mx.export_function and mx.contiguous.
# Behaviour: nearly every operation has a state that exports; Contiguous has none, so one copy in a
#   model's forward makes the whole function "Unable to serialize primitive Contiguous". The message
#   comes after the function was traced whole, and does not say which call it is.
# Seen with 0.32.4: the four lines that are compared below.
# What helps: for a look at the graph, mx.stop_gradient or an identity in the place of mx.contiguous
#   while it is traced; mx.export_to_dot draws graphs with it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
mlx="mlx==0.32.4"
if [ "$(uname -s)" = Linux ]; then mlx="mlx[cpu]==0.32.4"; fi
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$mlx"

found=$("$work/venv/bin/python" - "$work/exported" <<'PY'
import sys

import mlx.core as mx

x = mx.zeros((4, 4))
functions = {"transposed": lambda a: a.T + 1, "contiguous": lambda a: mx.contiguous(a.T) + 1}
for name, function in functions.items():
    for target in (sys.argv[1], lambda event: None):
        where = "file" if isinstance(target, str) else "callback"
        try:
            mx.export_function(target, function, x)
            print(name, where, "exported")
        except ValueError as error:
            print(name, where, error)
PY
)
expected="transposed file exported
transposed callback exported
contiguous file [export_function] Unable to serialize primitive Contiguous
contiguous callback [export_function] Unable to get state for primitive Contiguous"

printf '%s\n' "$found"
if [ "$found" != "$expected" ]; then
    printf 'this has changed; expected was:\n%s\n' "$expected" >&2
    exit 1
fi
printf 'as described\n'
