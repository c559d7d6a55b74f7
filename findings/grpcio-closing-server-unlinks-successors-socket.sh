#!/usr/bin/env bash
# grpcio: a server that closes removes whatever unix socket stands at its path, also its successor's.
#
# Library: grpcio 1.85.1, grpc.server and add_insecure_port("unix:PATH").
# Behaviour: gRPC unlinks the path by name when the listener closes, without a look at whether the
#   socket there is still the one that it bound. Where a new server took the path over meanwhile (a
#   restart in which the old process still drains), the old one's stop() leaves the new server
#   running, bound, and unreachable: no error on either side, and no file.
#   The same happens on bind: a second server on the path of a live one gets it without an error,
#   since gRPC unlinks what is there first; the first server can then be reached by nobody new.
# Seen with 1.85.1: the two lines that are compared below.
# What helps: bind under a name of one's own beside the path, link the socket into place, and remove
#   the place by device and inode.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "grpcio==1.85.1"

cat > "$work/look.py" <<'PY'
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

path = sys.argv[1]


def started():
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    return server, os.lstat(path).st_ino


def answers():
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


old, first = started()
new, second = started()
print("second server on a live one's path:", "took it" if second != first else "was refused")
assert answers()
old.stop(None).wait()
old = None
print("after the first server's stop(): path", "there" if os.path.exists(path) else "gone")
new.stop(None).wait()
PY

"$work/venv/bin/python" "$work/look.py" "$work/socket" | tee "$work/seen"
diff "$work/seen" - <<'EXPECTED'
second server on a live one's path: took it
after the first server's stop(): path gone
EXPECTED
echo "as described"
