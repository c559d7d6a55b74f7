"""The files that a fleet is started with say what `sapwood serve` and SMG take."""

from __future__ import annotations

import importlib.util
import plistlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sapwood.daemon.settings.config import load_config
from sapwood.scheduler.limits import Limits
from tests.system.test_http import pytestmark as needs_smg
from tests.test_rooms import ROOT

FLEET = ROOT / "examples/fleet"
WORKER, ENVOY_WORKER, ENVOY_GATEWAY = 50552, 50553, (50561, 50562)


def plist(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = plistlib.loads((FLEET / name).read_bytes())
    return loaded


def unit(name: str) -> dict[str, str]:
    lines = (FLEET / name).read_text().replace("\\\n", " ").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] not in "#")


def commands(systemd: str, launchd: str) -> Iterator[list[str]]:
    yield shlex.split(unit(systemd)["ExecStart"])
    yield plist(launchd)["ProgramArguments"]


def test_both_start_a_worker_that_a_gateway_can_reach() -> None:
    """Flags and settings have the same names."""
    for program, command, *given in commands("sapwood.service", "sapwood.daemon.plist"):
        assert (program, command) == ("/opt/sapwood/bin/sapwood", "serve")
        flags = {name.removeprefix("--"): value for name, value in batched(given)}
        config = load_config({**flags, "listen": [flags["listen"]]})
        assert config.gateway is not None and config.gateway.port == WORKER


def test_both_wait_for_a_drain() -> None:
    drain = Limits().drain_s_max
    for name in ("sapwood.service", "sapwood-gateway.service"):
        assert float(unit(name)["TimeoutStopSec"]) > drain + 5
    for name in ("sapwood.daemon.plist", "sapwood.gateway.plist"):
        assert plist(name)["ExitTimeOut"] > drain + 5
    assert unit("sapwood.service")["KillMode"] == "mixed", "or what it started ends before it"


def test_what_one_file_serves_the_next_one_asks() -> None:
    worker, gateway = ((FLEET / f"envoy-{at}.yaml").read_text() for at in ("worker", "gateway"))
    assert f"address: 127.0.0.1, port_value: {WORKER}" in worker
    assert f"address: 0.0.0.0, port_value: {ENVOY_WORKER}" in worker
    assert f"port_value: {ENVOY_WORKER}" in gateway
    assert f"address: 127.0.0.1, port_value: {ENVOY_GATEWAY[0]}" in gateway
    for command in commands("sapwood-gateway.service", "sapwood.gateway.plist"):
        for port in ENVOY_GATEWAY:
            assert f"grpc://127.0.0.1:{port}" in command


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[str], str]:
    def key(name: str) -> str:
        file = tmp_path / Path(name).name
        file.write_text("k" * 20 + "\n")
        return str(file)

    return key


@needs_smg
def test_its_files_are_what_smg_takes(keys: Callable[[str], str]) -> None:
    from smg.launch_router import parse_router_args

    for program, script, *given in commands("sapwood-gateway.service", "sapwood.gateway.plist"):
        assert (program, script) == ("/opt/sapwood/bin/python", "/opt/sapwood/gateway.py")
        given = [keys(each) if each.endswith(".key") else each for each in given]
        parsed = parse_router_args(gateway().router_arguments(given))
        assert parsed.policy == "cache_aware" and len(parsed.worker_urls) == 2
        assert (parsed.host, parsed.port, parsed.api_key) == ("0.0.0.0", 8443, "k" * 20)


@needs_smg
def test_it_is_closed(keys: Callable[[str], str]) -> None:
    arguments = gateway().router_arguments
    key = ["--key-file", keys("a")]
    tls = ["--tls-cert-path", "a", "--tls-key-path", "b"]
    for open_to_all in ([], key, tls):
        with pytest.raises(SystemExit):
            arguments(["--host", "0.0.0.0", *open_to_all])
    assert arguments(["--host", "0.0.0.0", *key, *tls])
    assert arguments([])[:2] == ["--host", "127.0.0.1"], "and not SMG's own, which is all"
    admin = [arguments([])[-1] for _ in range(2)]
    assert admin[0] != admin[1] and admin[0].startswith("fleet:fleet:admin:")


@needs_smg
def test_a_short_key_is_none(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(SystemExit, match="16 characters"):
        gateway().router_arguments(["--key-file", str(tmp_path / "key")])


def batched(given: list[str]) -> Iterator[tuple[str, str]]:
    return zip(given[::2], given[1::2], strict=True)


def gateway() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fleet_gateway", FLEET / "gateway.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
