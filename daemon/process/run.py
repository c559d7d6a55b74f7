"""`sapwood serve` as a process: what it says, and the one code that it ends with.

- 0: it served and drained. 1: it failed, or a signal came before it served, or cut its drain short.
  2: the model and a flag do not fit. 130: Ctrl-C cut its drain short.
- Every end but 0 has one line on stderr, and no end leaves a ready file or a socket.
- Nothing is left to the caller while the engine thread works: the process ends here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from sapwood.daemon import entry
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.errors import StartError
from sapwood.daemon.faults import described
from sapwood.daemon.page.places import PAGE_PATH
from sapwood.daemon.process.host_memory import keep_freed_memory
from sapwood.daemon.process.ready import (
    ReadyFile,
    metrics_url,
    print_ready,
    ready_line,
    ready_path,
    require_stdout,
)
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.process.signals import Requests, heard
from sapwood.daemon.process.start_screen import Nowhere, Screen
from sapwood.daemon.process.supervisor import Supervisor
from sapwood.daemon.settings.config import Config

if TYPE_CHECKING:
    from sapwood.daemon.gateway.smg import Smg

# How long a thread that wants the GIL waits for one that computes. Python's own 5 ms, some times in
# a step, are as long as a step.
_SWITCH_S = 0.001

_log = logging.getLogger(__name__)


async def serve(config: Config, load: Callable[[], Loaded], screen: Screen | None = None) -> int:
    """Run one daemon until a signal or a fault; returns the exit code. screen: None is no terminal.

    It is closed here.
    """
    screen = screen or Nowhere()
    sys.setswitchinterval(_SWITCH_S)
    keep_freed_memory()
    daemon, beside = Daemon(config, load), AsyncExitStack()
    requests = Requests(daemon.drain, daemon.reload)
    supervisor = Supervisor.of(os.environ)
    with heard(requests.take):
        watching = asyncio.ensure_future(supervisor.watch(daemon.is_healthy))
        served, failure = await _served(daemon, config, beside, screen, supervisor)
        supervisor.stopping()
        ended = await daemon.stop()
        watching.cancel()
        await beside.aclose()  # what HTTP clients still read has left through it
        code, line = _verdict(daemon, requests, ended, served, failure)
        if line:
            entry.complain(line)
        if daemon.engine_alive:
            if served:  # else it loads, which nothing can cut short
                _log.warning("leaving without the engine thread, which is still at work")
            entry.leave(code)
    return code


async def _served(
    daemon: Daemon,
    config: Config,
    beside: AsyncExitStack,
    screen: Screen,
    supervisor: Supervisor,
) -> tuple[bool, str]:
    """Until it shall stop; whether it came to serve, and what kept it from going on.

    beside: ends what is to end after the daemon.
    """
    file, served = ReadyFile(ready_path(config.ready_file, os.environ)), False
    try:
        require_stdout()
        file.check()
        smg = _gateway(config)
        await daemon.start()
        if smg is not None and await daemon.wait_loaded():
            beside.push_async_callback(smg.stop)
            await _serve_http(smg, daemon)
        if await daemon.wait_loaded():
            assert daemon.metrics_address is not None
            listeners, metrics = daemon.grpc_addresses, daemon.metrics_address
            # What is loaded stays; nobody waits for a collection that looks through all of it.
            assert gc.isenabled(), "nobody has said that all is imported (entry)"
            gc.collect()
            gc.freeze()
            screen.close()
            http = None if smg is None else smg.address
            file.write(listeners, metrics, gateway=daemon.gateway_address, http=http)
            print_ready(ready_line(listeners, metrics, "" if smg is None else smg.base_url))
            served = True
            supervisor.ready()
            _show(screen, daemon, config, smg)
            await daemon.wait_ended()
    except StartError as error:
        return served, str(error)
    except Exception as fault:  # so that the engine ends before Python does
        _log.critical("the daemon failed: %s", described(fault))
        return served, f"the daemon failed with {type(fault).__name__}"
    finally:
        screen.close()
        file.remove()
    return served, ""


def _show(screen: Screen, daemon: Daemon, config: Config, smg: Smg | None) -> None:
    """What is served, and where."""
    assert daemon.metrics_address is not None, "it serves"
    addresses = [str(address) for address in daemon.grpc_addresses]
    addresses.append(f"{metrics_url(daemon.metrics_address)} (metrics)")
    if config.page:
        addresses.append(f"{metrics_url(daemon.metrics_address, PAGE_PATH)} (the live page)")
    if daemon.gateway_address is not None and smg is None:
        addresses.append(f"{daemon.gateway_address} (a gateway's worker)")
    if smg is not None:
        addresses.append(f"{smg.base_url} (OpenAI's and Anthropic's API)")
    screen.show(config, *daemon.served, addresses)


def _gateway(config: Config) -> Smg | None:
    """Not started yet, but able to start; None where nobody asked for one. Raises StartError."""
    if config.http is None:
        return None
    from sapwood.daemon.gateway.smg import Smg  # in an extra

    return Smg(config)


async def _serve_http(smg: Smg, daemon: Daemon) -> None:
    """Until it serves, or the daemon ends. Raises StartError."""
    assert daemon.gateway_address is not None, "a gateway has a worker"
    smg.start(daemon.gateway_address, daemon.model_folder)
    waits = [asyncio.ensure_future(wait()) for wait in (smg.wait_ready, daemon.wait_ended)]
    done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in rest:
        wait.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for wait in done:
        wait.result()


def _verdict(
    daemon: Daemon, requests: Requests, code: int, served: bool, failure: str
) -> tuple[int, str]:
    """The exit code, and the line that says why, "" for none. code: what stop() returned."""
    if failure:
        return 1, failure
    if daemon.fault is not None:
        return code, daemon.fault.message
    if not served and requests.first is not None:
        return 1, f"{requests.first.name} before the daemon served"
    if requests.forced is not None:
        line = f"{requests.forced.name} cut the drain short"
        return (entry.INTERRUPTED if requests.forced == signal.SIGINT else 1), line
    return code, ""
