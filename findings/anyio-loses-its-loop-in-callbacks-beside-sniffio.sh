#!/usr/bin/env bash
# anyio: its functions work in what a thread posts to the event loop until sniffio is installed.
#
# Libraries: anyio 4.16.0, which needs no sniffio; sniffio 1.3.1, which other packages bring
#   (openai's client does).
# Behaviour: what another thread posts with loop.call_soon_threadsafe is no task. anyio.current_time()
#   there gives the loop's time. With sniffio in the same environment, imported by nobody here, the
#   same line raises: anyio asks sniffio then, which knows tasks and their context alone. So
#   installing a package that has nothing to do with a program changes what the program's callbacks
#   do, and asyncio only logs what they raise.
# Seen with 4.16.0 and 1.3.1: the lines that are compared below.
# What helps: in callbacks asyncio.get_running_loop().time(), and no function of anyio's.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check "anyio==4.16.0"

cat > "$work/look.py" <<'PY'
import asyncio
import threading

import anyio


def told():
    try:
        return "the time" if anyio.current_time() == asyncio.get_running_loop().time() else "a time"
    except Exception as error:
        return type(error).__name__


async def main():
    loop, seen = asyncio.get_running_loop(), asyncio.Queue()
    loop.time = lambda: 7.0  # so that two readings are one
    post = lambda: loop.call_soon_threadsafe(lambda: seen.put_nowait(told()))
    threading.Thread(target=post).start()
    print(f"task: {told()}, callback: {await seen.get()}")


anyio.run(main)
PY

alone=$("$python" "$work/look.py")
"$python" -m pip install --quiet --disable-pip-version-check "sniffio==1.3.1"
beside=$("$python" "$work/look.py")
printf 'without sniffio  %s\nwith sniffio     %s\n' "$alone" "$beside"
[ "$alone" = "task: the time, callback: the time" ]
[ "$beside" = "task: the time, callback: NoEventLoopError" ]
