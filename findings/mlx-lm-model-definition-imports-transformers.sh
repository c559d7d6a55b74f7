#!/usr/bin/env bash
# mlx-lm: importing one model definition imports transformers, most of the start of a process.
#
# Library: mlx-lm 0.32.2 with transformers 5.23.0, mlx 0.32.4 (CPU build).
# Behaviour: mlx_lm/models/gemma4_text.py and all that it imports need mlx and the standard library
#   alone. But `import mlx_lm.models.gemma4_text` runs the package's own file first, which imports its
#   converter, generator and loader, and with them transformers, huggingface_hub, an HTTP client and
#   jinja2: over five hundred modules, and some thirty times the CPU time. Nothing is deferred until it is
#   used, and no environment variable leaves it out.
# Seen: the lines that are compared below; the times are printed and not judged (0.98 and 0.03 CPU
#   seconds on one machine).
# What helps: put a module made by importlib.util.module_from_spec, not executed, in sys.modules
#   under the package's name while the definition is imported, and take it out afterwards. A later
#   `import mlx_lm` then runs the whole package and finds the same classes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "mlx-lm==0.32.2" "transformers==5.23.0" "mlx==0.32.4" "mlx-cpu==0.32.4"

cat > "$work/look.py" <<'PY'
import sys
import time
from importlib.util import find_spec, module_from_spec

how, name = sys.argv[1], "mlx_lm"
began, before = time.process_time(), len(sys.modules)
if how == "bare":
    sys.modules[name] = module_from_spec(find_spec(name))
import mlx_lm.models.gemma4_text as definition

print(f"{how}: {time.process_time() - began:.2f} CPU seconds", file=sys.stderr)
found = len(sys.modules) - before
print(how, "over 500 modules" if found > 500 else "under 250" if found < 250 else found, end=" ")
print(*(each for each in ("transformers", "huggingface_hub", "jinja2") if each in sys.modules))
if how == "bare":
    del sys.modules[name]
    import mlx_lm
    from mlx_lm.models import gemma4_text as again

    print("afterwards", mlx_lm.load.__name__, again.Model is definition.Model)
PY

found=$(for how in whole bare; do "$work/venv/bin/python" "$work/look.py" "$how"; done)
expected="whole over 500 modules transformers huggingface_hub jinja2
bare under 250 
afterwards load True"

printf '%s\n' "$found"
if [ "$found" != "$expected" ]; then
    printf 'this has changed; expected was:\n%s\n' "$expected" >&2
    exit 1
fi
printf 'as described\n'
