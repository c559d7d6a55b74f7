"""Flags over file over defaults, and every refusal with exit code 2's exception."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sapwood.daemon.errors import UsageError
from sapwood.daemon.settings.addresses import TcpAddress, UnixAddress
from sapwood.daemon.settings.config import load_config
from sapwood.scheduler.limits import Limits


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    config = load_config({"model": None, "config": None})
    assert config.listen == (
        UnixAddress(tmp_path / "sapwood.sock"),
        TcpAddress("127.0.0.1", 50551),
    )
    assert config.metrics == TcpAddress("127.0.0.1", 9464)
    assert (config.model, config.draft, config.draft_depth) == (None, None, None)
    assert (config.memory_bytes, config.ready_file, config.reflection) == (None, None, True)
    assert config.self_check == "count"
    in_8_bits = load_config({"cache_dir": "d", "cache_storage": "8bit"})
    assert in_8_bits.self_check == "off"
    assert load_config({"numerics": "strict"}).self_check == "off"
    assert load_config({"numerics": "strict", "self_check": "off"}).self_check == "off"
    assert (config.numerics, config.dtype, config.limits) == ("fast", "auto", Limits())


def test_without_a_runtime_folder_the_socket_lies_in_the_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    path = Path("/home/somebody/.sapwood/sapwood.sock")
    assert load_config({}).listen[0] == UnixAddress(path)


def test_flags_win_over_the_file_which_wins_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "sapwood.toml"
    file.write_text(
        'model = "from/file"\ndraft_depth = 3\nmemory = "2GiB"\nreflection = false\n'
        'listen = ["127.0.0.1:1", "[::1]:2"]\nitl_target = 2\n'
        "[limits]\nslots_max = 4\ndrain_s_max = 3\n"
    )
    config = load_config({"config": str(file), "model": "from/flag", "memory": None})
    assert config.model == "from/flag"
    assert config.draft_depth == 3
    assert config.memory_bytes == 2 << 30
    assert config.reflection is False
    assert config.listen == (TcpAddress("127.0.0.1", 1), TcpAddress("::1", 2))
    assert config.limits == Limits(slots_max=4, drain_s_max=3, itl_target=2.0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("8GiB", 8 << 30), ("1.5 MiB", 3 << 19), ("500MB", 500_000_000), (4096, 4096)),
        *(("12", 12), ("8G", 8 << 30), ("8g", 8 << 30), ("1.5m", 3 << 19), ("2 T", 2 << 40)),
        *(("8gib", 8 << 30), ("8GIB", 8 << 30), ("500mb", 500_000_000), ("64k", 1 << 16)),
        *(("64kB", 64_000), ("7b", 7)),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert load_config({"memory": text}).memory_bytes == size


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"numerics": "exact"}, "not one of fast, strict"),
        ({"self_check": "maybe"}, "not one of count, stop, off"),
        ({"self_check": "stop", "numerics": "strict"}, "neither with --numerics strict nor"),
        ({"self_check": "count", "cache_dir": "d", "cache_storage": "8bit"}, "neither with"),
        ({"dtype": "int4"}, "not one of"),
        ({"log_level": "loud"}, "log-level: 'loud' is not one of debug, info, warning, error"),
        ({"log_format": "xml"}, "log-format: 'xml' is not one of human, json"),
        ({"draft_depth": "9"}, "neither auto nor 0 to 8"),
        ({"draft_depth": "-1"}, "neither auto nor 0 to 8"),
        ({"draft_depth": True}, "neither auto nor 0 to 8"),
        ({"itl_target": "0.9"}, "itl-target: '0.9' is not a number from 1 to 100"),
        ({"itl_target": "nan"}, "not a number from 1 to 100"),
        ({"itl_target": True}, "not a number from 1 to 100"),
        ({"itl_target": "soon"}, "not a number from 1 to 100"),
        ({"memory": "8 GiBs"}, "not a size"),
        ({"memory": "0"}, "more than 0"),
        ({"memory": "much"}, "not a size"),
        ({"listen": ["0.0.0.0:1"]}, "not a loopback address"),
        ({"gateway": "0.0.0.0:1"}, "gateway: '0.0.0.0:1' is not a loopback address"),
        ({"http": "unix:/x"}, "is not HOST:PORT"),
        ({"http_key_file": "/k"}, "for --http, which is not given"),
        ({"listen": ["example.org:1"]}, "not a loopback address"),
        ({"listen": ["[::]:1"]}, "not a loopback address"),
        ({"listen": ["127.0.0.1"]}, "neither unix:PATH nor HOST:PORT"),
        ({"listen": ["127.0.0.1:65536"]}, "neither unix:PATH nor HOST:PORT"),
        ({"listen": ["127.0.0.1:-1"]}, "neither unix:PATH nor HOST:PORT"),
        ({"listen": ["unix:"]}, "needs the path"),
        ({"listen": ["unix:/" + "x" * 120]}, "at most 100 bytes"),
        ({"listen": ["127.0.0.1:5", "127.0.0.1:5"]}, "given twice"),
        ({"listen": []}, "not a list of addresses"),
        ({"metrics": "10.0.0.1:9"}, "not a loopback address"),
        ({"metrics": "unix:/x"}, "is not HOST:PORT"),
        ({"model": ""}, "not a name"),
        ({"config": "/does/not/exist"}, "No such file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_name(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        load_config(flags)
    assert next(iter(flags)).replace("_", "-") in str(caught.value) or "config" in flags


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"models = 'x'", "unknown setting 'models'"),
        (b"[limits]\nslots = 3", "no limit 'slots'"),
        (b"[limits]\nslots_max = 0", "positive integer"),
        (b"[limits]\nslots_max = 2.5", "positive integer"),
        (b"[limits]\nslots_max = true", "positive integer"),
        (b"[limits]\nwrite_s_max = nan", "positive number"),
        (b"limits = 3", "is a table"),
        (b"reflection = 'yes'", "not true or false"),
        (b"model = [", "not TOML"),
        (b"\xff", "not TOML"),
        (b"#" * ((1 << 20) + 1), "longer than"),
    ],
)
def test_a_bad_file_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        load_config({"config": str(file)})


def test_port_0_may_be_asked_for_twice() -> None:
    assert len(load_config({"listen": ["127.0.0.1:0", "127.0.0.1:0"]}).listen) == 2


def test_grammars_are_taken_where_they_are_asked_for() -> None:
    assert not load_config({}).takes_lark
    assert load_config({"grammar": "lark"}).takes_lark
    with pytest.raises(UsageError, match="grammar: 'gbnf' is not a kind of grammar: lark"):
        load_config({"grammar": "gbnf"})


TLS = {"tls_cert": "/c", "tls_key": "/t"}


def test_http_beyond_loopback_needs_a_key_and_tls() -> None:
    key = {"http_key_file": "/k"}
    found = load_config({"http": "0.0.0.0:80", **key, **TLS}).http
    assert found == TcpAddress("0.0.0.0", 80)
    assert load_config({"http": "localhost:80"}).http_key_file is None
    for host in ("0.0.0.0", "[::]", "192.168.1.2", "example.org"):
        with pytest.raises(UsageError, match=r"serving it needs --tls-cert and --tls-key$"):
            load_config({"http": f"{host}:80", **key})
        with pytest.raises(UsageError, match=r"serving it needs --http-key-file$"):
            load_config({"http": f"{host}:80", **TLS})


def test_who_comes_by_a_gateway_is_one_principal() -> None:
    assert load_config({}).gateway_principal == "gateway"
    assert load_config({"gateway_principal": "web"}).gateway_principal == "web"
    for name in ("local", "default", "a b"):
        with pytest.raises(UsageError, match="gateway-principal: nobody can be called"):
            load_config({"gateway_principal": name})
