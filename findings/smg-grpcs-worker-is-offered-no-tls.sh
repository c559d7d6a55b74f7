#!/usr/bin/env bash
# SMG: to a worker named by grpcs:// it connects and hangs up, without a byte of TLS.
#
# Package: smg 1.13.0.
# Behaviour: `smg launch --worker-urls grpcs://HOST:PORT` opens one connection after another and closes
#   each before it has sent anything; one carries a plaintext GET, which looks for a server of HTTP.
#   TLS begins with a record of type 22, which never comes, so no worker that serves TLS is ever used.
#   With grpc:// the same listener gets the preface of HTTP/2. --ca-cert-paths, --client-cert-path and
#   --client-key-path change nothing (tried by hand).
# Seen with 1.13.0: the lines that are compared below, from the first eight seconds.
# What helps: grpc:// to a proxy on the same machine that makes TLS of it.
set -euo pipefail

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check "smg==1.13.0"

cat > "$work/look.py" <<'PY'
import os
import socket
import subprocess
import sys
import threading
import time

SMG, LOOKS_S = sys.argv[1], 8


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def kind(data):
    if data[:1] == b"\x16":
        return "TLS"
    return {b"PRI": "HTTP/2", b"GET": "GET", b"": "nothing"}.get(data[:3], "another")


def seen(scheme):
    """What connections of SMG's began with."""
    found = set()

    def read(connection):
        with connection:
            found.add(kind(connection.recv(14)))

    def listen(server):
        while True:
            threading.Thread(target=read, args=server.accept()[:1], daemon=True).start()

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=listen, args=(server,), daemon=True).start()
    flags = ["--host", "127.0.0.1", "--port", free_port(), "--prometheus-port", free_port()]
    flags += ["--backend", "vllm", "--worker-startup-check-interval", "1"]
    flags += ["--worker-urls", f"{scheme}://127.0.0.1:{server.getsockname()[1]}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen([SMG, "launch", *flags], env=environ, **quiet) as smg:
        time.sleep(LOOKS_S)
        smg.kill()
    return ", ".join(sorted(found))


for scheme in ("grpcs", "grpc"):
    print(f"{scheme}: {seen(scheme)}")
PY

"$python" "$work/look.py" "$work/venv/bin/smg" | tee "$work/seen"
diff "$work/seen" - <<'EXPECTED'
grpcs: GET, nothing
grpc: GET, HTTP/2
EXPECTED
echo "as described"
