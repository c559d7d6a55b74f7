"""`sapwood serve` as a process: ready file, signals, exit codes (D1, D3, D4)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from sapwood import Client, Delta, Unavailable
from sapwood.v1 import generation_pb2_grpc
from tests.daemon.conftest import prompt_of, reason_of

ROOT = Path(__file__).parents[3]


@contextmanager
def serving(
    folder: Path, step: str, **limits: float
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A process that serves, and what its ready file says."""
    ready = folder / "ready.json"
    config = folder / "c.toml"
    config.write_text("[limits]\n" + "\n".join(f"{k} = {v}" for k, v in limits.items()))
    command = [sys.executable, "-m", "tests.daemon.serve_fake", step, str(folder)]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        yield process, json.loads(ready.read_text())
    finally:
        process.kill()
        process.communicate()


def first_delta(client: Client) -> Any:
    """A long reply that has begun."""
    stream = client.generate([5, 6, 7], max_tokens=4000, draft_tokens=0)
    for event in stream:
        if isinstance(event, Delta):
            break
    return stream


def ended(process: subprocess.Popen[str], folder: Path) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    assert not (folder / "ready.json").exists()
    assert not (folder / "s").exists()
    return process.returncode, out, err


def test_the_ready_file_names_every_listener_and_goes_at_exit(folder: Path) -> None:
    with serving(folder, "0") as (process, ready):
        assert ready["grpc"][0] == f"unix:{folder}/s"
        assert ready["grpc"][1].startswith("127.0.0.1:")
        assert ready["metrics"].startswith("127.0.0.1:")
        assert ready["pid"] == process.pid
        for address in ready["grpc"]:
            with Client(address) as client:
                assert client.is_serving()
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process, folder)
    assert (code, err) == (0, "")
    assert out == (
        f"sapwood ready: grpc {' '.join(ready['grpc'])} metrics http://{ready['metrics']}/metrics\n"
    )


def test_d1_sigterm_lets_a_reply_finish_and_exits_0(folder: Path) -> None:
    with serving(folder, "0.002") as (process, ready), Client(ready["grpc"][0]) as client:
        stream = client.generate([5, 6, 7], max_tokens=100, draft_tokens=0)
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        assert len(stream.collect().token_ids) == 100
        assert ended(process, folder)[0] == 0


def test_d1_what_runs_longer_than_drain_s_max_is_cut_and_the_exit_is_still_0(folder: Path) -> None:
    with serving(folder, "0.01", drain_s_max=0.3) as (process, ready):
        with Client(ready["grpc"][0]) as client:
            stream = first_delta(client)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(Unavailable) as caught:
                stream.collect()
        assert caught.value.reason == "DRAINING"
        assert ended(process, folder)[0] == 0


def test_d1_a_second_signal_forces(folder: Path) -> None:
    with serving(folder, "0.01") as (process, ready), Client(ready["grpc"][0]) as client:
        stream = first_delta(client)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(Unavailable):
            stream.collect()
        assert ended(process, folder)[0] == 1


def failure(address: str) -> tuple[str, str]:
    """How one request fails, without the client's retries: the daemon is about to be gone."""
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(prompt_of(5), timeout=10))
        return reason_of(caught.value)


def test_d3_a_broken_device_ends_the_process_with_1(folder: Path) -> None:
    with serving(folder, "broken") as (process, ready):
        assert failure(ready["grpc"][0]) == ("UNAVAILABLE", "ENGINE_FAILED")
        code, _, err = ended(process, folder)
    assert code == 1
    assert "RuntimeError" in err
    assert "broken" not in err


def test_d4_a_stuck_device_ends_the_process_with_1(folder: Path) -> None:
    with serving(folder, "stuck", stall_s_max=0.2) as (process, ready):
        assert failure(ready["grpc"][0]) == ("UNAVAILABLE", "ENGINE_FAILED")
        code, _, err = ended(process, folder)
    assert code == 1
    assert "no step ended" in err


def test_a_killed_daemons_socket_does_not_hinder_the_next(folder: Path) -> None:
    with serving(folder, "0") as (process, _):
        process.kill()
        process.wait()
        assert (folder / "s").exists()
        (folder / "ready.json").unlink()
    with serving(folder, "0") as (process, ready), Client(ready["grpc"][0]) as client:
        assert client.is_serving()
