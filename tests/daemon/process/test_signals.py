"""Real signals to real processes: before the loop runs, while loading, serving and draining."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sapwood import Client, Unauthenticated
from tests.daemon.process.processes import (
    ROOT,
    WAIT_S_MAX,
    appeared,
    ended,
    first_delta,
    serving,
    started,
    wait_draining,
    wait_for,
)
from tests.daemon.tenants import Tokens

ASKING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


def terminal(own: int) -> dict[str, Any]:
    """Popen's options for a session whose terminal is `own`."""
    return {"stdin": own, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}


# Sends itself the signal where it begins to import the module, and is the command otherwise.
SIGNALLED = """
import os, runpy, sys
module, number = sys.argv[1:3]
class Hook:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Hook())
sys.argv[1:] = sys.argv[3:]
runpy.run_module("sapwood", run_name="__main__")
"""


def signalled_at(module: str, number: signal.Signals, *command: str) -> tuple[int, str, str]:
    """A command that gets a signal at an import: its code, and what it says."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, module, str(int(number)), *command],
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_S_MAX,
        start_new_session=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("sapwood.daemon.cli.main", signal.SIGTERM),
        ("sapwood.daemon.cli.main", signal.SIGINT),
        ("anyio", signal.SIGQUIT),
        ("sapwood.daemon.process.ready", signal.SIGTERM),
    ],
)
def test_before_the_loop_runs(folder: Path, module: str, number: signal.Signals) -> None:
    flags = ["--listen", f"unix:{folder}/s", "--ready-file", f"{folder}/ready.json"]
    line = f"sapwood: {number.name} before the daemon served\n"
    assert signalled_at(module, number, "serve", *flags) == (1, "", line)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("sapwood.daemon.cli.main", ["status"]),
        ("grpc", ["status"]),
        ("mlx.core", ["check", "/no/such"]),
    ],
)
def test_ctrl_c_of_another_command_in_its_first_second(module: str, command: list[str]) -> None:
    """Imports that swallow or rename a KeyboardInterrupt do not get one."""
    assert signalled_at(module, signal.SIGINT, *command) == (130, "", "sapwood: interrupted\n")


def test_ctrl_c_of_a_command_at_work(folder: Path) -> None:
    """Against a daemon that takes its connection and says nothing."""
    command = [sys.executable, "-m", "sapwood", "status", "--connect", f"unix:{folder}/s"]
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/s")
        silent.listen()
        process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=WAIT_S_MAX)[1] == "sapwood: interrupted\n"
    assert process.returncode == 130


def test_while_the_model_loads(folder: Path) -> None:
    with ExitStack() as stack:
        places = {number: folder / number.name for number in ASKING}
        for place in places.values():
            place.mkdir()
        at = {number: stack.enter_context(started(places[number], "loading")) for number in ASKING}
        for number, process in at.items():
            appeared(places[number] / "loading", process)
            process.send_signal(number)
        for number, process in at.items():
            line = f"sapwood: {number.name} before the daemon served\n"
            assert ended(process, places[number]) == (1, "", line)


def test_right_at_a_start_error(folder: Path) -> None:
    """One line: the error's, which is why nothing will ever be served. And once more, too late."""
    with started(folder, "refused") as process:
        assert ended(process, folder) == (1, "", "sapwood: no such model\n")


@pytest.mark.long
def test_sigquit_while_it_serves_is_as_sigterm(folder: Path) -> None:
    with serving(folder, "0.002") as (process, ready), Client(ready["grpc"][0]) as client:
        stream = client.generate([5, 6, 7], max_tokens=100, draft_tokens=0)
        next(iter(stream))
        process.send_signal(signal.SIGQUIT)
        assert len(stream.collect().token_ids) == 100
        assert ended(process, folder)[::2] == (0, "")


def test_what_means_nothing_is_ignored(folder: Path) -> None:
    with serving(folder, "0") as (process, ready), Client(ready["grpc"][0]) as client:
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGUSR2)
        assert len(client.generate([5, 6, 7], max_tokens=9).collect().token_ids) == 9
        process.send_signal(signal.SIGTERM)
        assert ended(process, folder)[::2] == (0, "")


def test_a_hang_up_without_a_terminal_is_a_line_in_the_log(folder: Path) -> None:
    with serving(folder, "0") as (process, ready), Client(ready["grpc"][0]) as client:
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "SIGHUP: there is nothing to reload" in process.stderr.readline()
        assert len(client.generate([5, 6, 7], max_tokens=9).collect().token_ids) == 9
        process.send_signal(signal.SIGTERM)
        assert ended(process, folder)[::2] == (0, "")


def test_a_hang_up_without_a_terminal_reads_tokens_again(folder: Path, tmp_path: Path) -> None:
    """At once, and not where the daemon would look by itself."""
    tokens = Tokens(tmp_path)
    with serving(folder, "0", settings={"tokens": str(tokens.path)}, reload_s=1000) as (
        process,
        ready,
    ):
        token = tokens.new("alice")
        with Client(ready["grpc"][1], token=token) as client:
            with pytest.raises(Unauthenticated):
                client.get_model()
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: known(client))
        process.send_signal(signal.SIGTERM)
        assert ended(process, folder)[::2] == (0, "")


def known(client: Client) -> bool:
    try:
        return bool(client.get_model())
    except Unauthenticated:
        return False


@pytest.mark.long
def test_a_hang_up_while_loading_without_a_terminal_changes_nothing(folder: Path) -> None:
    with started(folder, "loading") as process:
        appeared(folder / "loading", process)
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "SIGHUP: there is nothing to reload" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        line = "sapwood: SIGTERM before the daemon served\n"
        assert ended(process, folder) == (1, "", line)


def test_a_terminal_that_hangs_up_drains(folder: Path) -> None:
    ours, own = pty.openpty()
    with serving(folder, "0.002", popen=terminal(own)) as (process, ready):
        os.close(own)
        with Client(ready["grpc"][0]) as client:
            stream = client.generate([5, 6, 7], max_tokens=100, draft_tokens=0)
            next(iter(stream))
            os.close(ours)
            assert len(stream.collect().token_ids) == 100
        assert ended(process, folder)[::2] == (0, "")


@pytest.mark.long
def test_a_hang_up_before_serving_ends_a_daemon_with_a_terminal(folder: Path) -> None:
    ours, own = pty.openpty()
    with started(folder, "loading", **terminal(own)) as process:
        os.close(own)
        appeared(folder / "loading", process)
        os.close(ours)
        line = "sapwood: SIGHUP before the daemon served\n"
        assert ended(process, folder) == (1, "", line)


@pytest.mark.long
def test_a_hang_up_does_not_cut_a_drain_short(folder: Path) -> None:
    ours, own = pty.openpty()
    with serving(folder, "0.005", popen=terminal(own)) as (process, ready):
        os.close(own)
        with Client(ready["grpc"][0]) as client:
            stream = client.generate([5, 6, 7], max_tokens=300, draft_tokens=0)
            next(iter(stream))
            process.send_signal(signal.SIGINT)
            wait_draining(client)
            os.close(ours)
            assert len(stream.collect().token_ids) == 300
        assert ended(process, folder)[::2] == (0, "")


@pytest.mark.long
def test_nohup_is_honoured(folder: Path) -> None:
    ours, own = pty.openpty()
    options = terminal(own)

    def ignoring() -> None:
        options["preexec_fn"]()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with serving(folder, "0", popen={"stdin": own, "preexec_fn": ignoring}) as (process, ready):
        os.close(own)
        os.close(ours)
        with Client(ready["grpc"][0]) as client:
            assert len(client.generate([5, 6, 7], max_tokens=9).collect().token_ids) == 9
        process.send_signal(signal.SIGTERM)
        assert ended(process, folder)[::2] == (0, "")


def test_a_storm_of_signals_leaves_one_line_and_no_file(folder: Path) -> None:
    """Whatever moment they find, the process ends by its own code, never by the signal's."""
    with serving(folder, "0.01") as (process, ready), Client(ready["grpc"][0]) as client:
        first_delta(client)
        while process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGHUP):
                process.send_signal(number)
            time.sleep(0.01)  # nobody reads the lines of SIGHUP yet: a full pipe stops the daemon
        code, _, err = ended(process, folder)
    said = [line for line in err.splitlines() if "nothing to reload" not in line]
    assert code == 1
    assert len(said) == 1
    assert said[0].endswith("cut the drain short")
