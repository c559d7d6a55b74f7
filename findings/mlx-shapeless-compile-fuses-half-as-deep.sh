#!/usr/bin/env bash
# mlx: a function compiled with shapeless=True falls into several kernels where the same one is one.
#
# Library: mlx 0.32.4 (CPU build here; fusing is the same code on every backend), mx.compile.
# Behaviour: fusing stops at chains of eleven operations. With shapeless=True both operands of every
#   binary operation are broadcast within the graph, also where their shapes are equal, and each
#   Broadcast counts as an operation of the chain. So `shapeless=True`, meant to save compiling anew
#   for each shape, halves what is fused: a polynomial of degree 4 by Horner's rule is one kernel
#   without it, and with it two that each read and write whole arrays, with Broadcast nodes between
#   them. Nothing warns.
# Seen with 0.32.4: the four lines that are compared below (nodes of the graph that is evaluated).
# What helps: compile for shapes where there are few of them; else write the expression shallow
#   (Estrin's scheme instead of Horner's).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
mlx="mlx==0.32.4"
if [ "$(uname -s)" = Linux ]; then mlx="mlx[cpu]==0.32.4"; fi
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$mlx"

found=$("$work/venv/bin/python" - "$work/graph.dot" <<'PY'
import re
import sys

import mlx.core as mx

TERMS = (1.0, 0.5, 0.25, 0.125, 0.1)


def horner(x, terms):
    total = x * terms[-1]
    for term in terms[-2:0:-1]:
        total = (total + term) * x
    return total + terms[0]


x = mx.zeros((4, 4))
mx.eval(x)
for degree in (2, 4):
    for shapeless in (False, True):
        terms = TERMS[: degree + 1]
        compiled = mx.compile(lambda a, terms=terms: horner(a, terms), shapeless=shapeless)
        mx.export_to_dot(sys.argv[1], compiled(x))
        labels = re.findall(r'label ="([^"]*)"', open(sys.argv[1]).read())
        kernels = sum(label.startswith("Compiled") for label in labels)
        print(f"degree {degree}, shapeless={shapeless}: {kernels} compiled of {len(labels)} nodes")
PY
)
expected="degree 2, shapeless=False: 1 compiled of 1 nodes
degree 2, shapeless=True: 1 compiled of 1 nodes
degree 4, shapeless=False: 1 compiled of 1 nodes
degree 4, shapeless=True: 2 compiled of 4 nodes"

printf '%s\n' "$found"
if [ "$found" != "$expected" ]; then
    printf 'this has changed; expected was:\n%s\n' "$expected" >&2
    exit 1
fi
printf 'as described\n'
