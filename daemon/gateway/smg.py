"""SMG beside the daemon: started, watched, started again, and ended with us.

- It is a process of its own, in a session of its own: Ctrl-C reaches the daemon alone, which lets
  replies finish before it ends the gateway. leash.py ends it where we cannot.
- One that ends is started again, after a pause that doubles up to RESTART_S_MAX while it does not
  hold. The daemon and its gRPC clients go on meanwhile. Only one that never came to serve keeps the
  daemon from being ready.
- It serves this daemon alone, loads nothing from a hub, keeps no conversations, and has its
  metrics on loopback. Its lines go to our log, labelled, cut, and not too many of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

from sapwood.daemon.errors import StartError
from sapwood.daemon.gateway.http_key import read_key
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.daemon.settings.bind_errors import require_bindable
from sapwood.daemon.settings.config import Config

_START_S_MAX = 60.0  # until it is ready
_STOP_S_MAX = 0.5  # from SIGTERM to SIGKILL: nothing runs any more
RESTART_S_MIN, RESTART_S_MAX = 0.5, 30.0
HOLDS_S = 60.0  # after which the next pause is the shortest again
_FAILURES_MAX = 3  # before it ever served
_PROBE_S = 0.2
_LINE_CHARS_MAX, _LINES_MAX, _LINES_S = 500, 50, 60.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LOOPBACK = TcpAddress("127.0.0.1", 0)

_log = logging.getLogger(__name__)


class Smg:
    """One gateway. `start`, `wait_ready`, `stop`, in this order."""

    def __init__(self, config: Config) -> None:
        """Raises StartError for an address or a key that cannot be used."""
        assert config.http is not None, "no --http"
        require_bindable(config.http, config.http)
        self.address = config.http if config.http.port else _with_free_port(config.http)
        self._config = config
        if config.http_key_file is not None:
            read_key(config.http_key_file)  # refused now, not by each start of the gateway
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._serves = False

    @property
    def base_url(self) -> str:
        """What an OpenAI client is told."""
        scheme = "http" if self._config.tls is None else "https"
        return f"{scheme}://{self.address}/v1"

    def start(self, worker: TcpAddress, tokenizer: Path | None) -> None:
        """`worker`: where VllmEngine is served. tokenizer: the model's folder, None for no such."""
        running = self._keep_running(lambda: self._command(worker, tokenizer))
        self._task = asyncio.get_running_loop().create_task(running)

    async def wait_ready(self) -> None:
        """Until it answers. Raises StartError where it does not come so far."""
        assert self._task is not None, "not started"
        until = time.monotonic() + _START_S_MAX
        while not await self._is_ready():
            if self._task.done():
                raise StartError("--http: SMG ends as soon as it starts; the log has its words")
            if time.monotonic() > until:
                raise StartError(f"--http: SMG did not serve within {_START_S_MAX:.0f} s")
            await asyncio.sleep(_PROBE_S)
        self._serves = True

    async def stop(self) -> None:
        """End it, and do not start it again. Safe where it never started."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_S_MAX)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _keep_running(self, command: Callable[[], list[str]]) -> None:
        pause, failures = RESTART_S_MIN, 0
        while self._serves or failures < _FAILURES_MAX:
            began = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                *command(),
                stdin=PIPE,
                stdout=PIPE,
                stderr=STDOUT,
                start_new_session=True,
                env=_environment(),
            )
            await _relay(self._process)
            code = await self._process.wait()
            failures += 1
            if time.monotonic() - began > HOLDS_S:
                pause = RESTART_S_MIN
            _log.error("smg ended with exit code %d; starting it again in %g s", code, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RESTART_S_MAX)

    def _command(self, worker: TcpAddress, tokenizer: Path | None) -> list[str]:
        config = self._config
        key = [] if config.http_key_file is None else ["--key-file", str(config.http_key_file)]
        tls = []
        if config.tls is not None:
            cert, secret = str(config.tls.cert), str(config.tls.key)
            tls = ["--tls-cert-path", cert, "--tls-key-path", secret]
        folder = [] if tokenizer is None else ["--tokenizer-path", str(tokenizer)]
        return [
            *(sys.executable, "-m", "sapwood.daemon.gateway.leash", *key),
            *("--host", self.address.host, "--port", str(self.address.port)),
            *("--worker-urls", f"grpc://{worker}", *folder, *tls),
            *("--prometheus-port", str(_with_free_port(_LOOPBACK).port)),
            *_FLAGS,
        ]

    async def _is_ready(self) -> bool:
        """It lists the model sooner, and refuses requests until it has the tokenizer as well."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)
        request = f"GET /readiness HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(2.0):
                context = None if self._config.tls is None else _any_certificate()
                reader, writer = await asyncio.open_connection(host, self.address.port, ssl=context)
                writer.write(request.encode())
                answer = await reader.read()
                writer.close()
            return b" 200 " in answer.partition(b"\r\n")[0]
        return False


_FLAGS = (
    *("--backend", "vllm", "--policy", "round_robin"),  # there is one worker
    # Its own error is the client's soonest, and none of them says anything of the next request.
    *("--disable-retries", "--disable-circuit-breaker"),
    *("--worker-startup-check-interval", "1", "--health-check-interval-secs", "5"),
    *("--history-backend", "none"),
    *("--reasoning-parser", "gemma4", "--tool-call-parser", "gemma4"),
    *("--max-payload-size", str(8 << 20), "--shutdown-grace-period-secs", "1"),
    *("--prometheus-host", "127.0.0.1", "--log-level", "error"),
)


async def _relay(process: Process) -> None:
    """Its lines to our log, until it ends: so many in so long, as each bad request gives one."""
    assert process.stdout is not None
    since, told, dropped = 0.0, 0, 0
    async for line in _lines(process.stdout):
        if time.monotonic() - since > _LINES_S:
            if dropped:
                _log.warning("smg: (%d lines were dropped)", dropped)
            since, told, dropped = time.monotonic(), 0, 0
        if told < _LINES_MAX:
            _log.warning("smg: %s", line)
            told += 1
        else:
            dropped += 1


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    rest = b""
    while data := await stream.read(4096):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if text := _COLOURS.sub("", line.decode(errors="replace")).strip():
                yield text[:_LINE_CHARS_MAX]
        rest = rest[:_LINE_CHARS_MAX]


def _environment() -> dict[str, str]:
    """Ours, but that nothing is fetched: the model lies here."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _any_certificate() -> ssl.SSLContext:
    """For the probe, which asks on this machine whether the port answers."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _with_free_port(address: TcpAddress) -> TcpAddress:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.create_server((address.host, 0), family=family) as probe:
        return TcpAddress(address.host, probe.getsockname()[1])
