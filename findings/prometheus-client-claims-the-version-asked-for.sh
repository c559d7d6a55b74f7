#!/usr/bin/env bash
# prometheus_client: the content type claims whatever OpenMetrics version the client asked for.
#
# Library: prometheus_client 0.26.0, exposition.choose_encoder.
# Behaviour: any version of application/openmetrics-text from 1.0.0 on is echoed into the content
#   type, also one that does not exist, while the text is that of 1.0.0. The order of the ranges
#   counts, their weights do not: a range with q=0, which says "not this", is served. A version in
#   quotes, which HTTP takes for the same, and one that is no number raise TypeError.
# Seen with 0.26.0: the lines that are compared below.
# What helps: parse Accept, sort by q, and show choose_encoder one range with a version that is known.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "prometheus_client==0.26.0"

cat > "$work/look.py" <<'PY'
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

registry = CollectorRegistry()
Gauge("x", "help", registry=registry).set(1)
OPENMETRICS = "application/openmetrics-text"
plain = choose_encoder(f"{OPENMETRICS}; version=1.0.0")[0](registry)
for accept in (
    f"{OPENMETRICS}; version=2.0.0",
    f"{OPENMETRICS}; version=77.1",
    f"{OPENMETRICS}; q=0, text/plain",
    f'{OPENMETRICS}; version="1.0.0"',
    f"{OPENMETRICS}; version=x",
):
    try:
        encode, content_type = choose_encoder(accept)
        same = "as for 1.0.0" if encode(registry) == plain else "another text"
        print(accept, "->", content_type.partition("; charset")[0], same)
    except TypeError:
        print(accept, "-> TypeError")
PY

"$work/venv/bin/python" "$work/look.py" | tee "$work/seen"
diff "$work/seen" - <<'EXPECTED'
application/openmetrics-text; version=2.0.0 -> application/openmetrics-text; version=2.0.0 as for 1.0.0
application/openmetrics-text; version=77.1 -> application/openmetrics-text; version=77.1 as for 1.0.0
application/openmetrics-text; q=0, text/plain -> application/openmetrics-text; version=1.0.0 as for 1.0.0
application/openmetrics-text; version="1.0.0" -> TypeError
application/openmetrics-text; version=x -> TypeError
EXPECTED
echo "as described"
