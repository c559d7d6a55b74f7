"""`sapwood serve` as a process: ready file, signals, exit codes (D1, D3, D4)."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import pytest

from sapwood import Client, Unavailable
from sapwood.v1 import generation_pb2_grpc
from tests.daemon.conftest import prompt_of, reason_of
from tests.daemon.process.processes import ended, first_delta, serving, wait_draining


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


@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGTERM, 1), (signal.SIGQUIT, 1), (signal.SIGINT, 130)]
)
def test_d1_a_second_signal_forces(folder: Path, second: signal.Signals, code: int) -> None:
    with serving(folder, "0.01") as (process, ready), Client(ready["grpc"][0]) as client:
        stream = first_delta(client)
        process.send_signal(signal.SIGTERM)
        wait_draining(client)
        process.send_signal(second)
        with pytest.raises(Unavailable):
            stream.collect()
        line = f"sapwood: {second.name} cut the drain short\n"
        assert ended(process, folder)[::2] == (code, line)


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
