"""`[principals.NAME]`: what is taken, at the limit and past it, and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sapwood.daemon.errors import UsageError
from sapwood.daemon.settings.config import Config, load_config
from sapwood.daemon.settings.principals import PrincipalSettings, Quotas, Role


def config_of(text: str, tmp_path: Path, **flags: Any) -> Config:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load_config({"config": str(file), **flags})


def test_all_settings_of_a_principal(tmp_path: Path) -> None:
    text = (
        '[principals."spiffe://mesh/alice"]\nrole = "operator"\nweight = 1000\nrunning_max = 1\n'
        'queued_max = 0\ntokens_per_minute_max = 1\npin_bytes_max = "1GiB"\nsessions_max = 0\n'
        'pool = "team"\n[principals.default]\nweight = 1\n'
    )
    assert config_of(text, tmp_path).principals == {
        "spiffe://mesh/alice": PrincipalSettings(
            Role.OPERATOR, 1000, Quotas(1, 0, 1, 1 << 30, 0), "team"
        ),
        "default": PrincipalSettings(),
    }
    assert load_config({}).principals == {}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("a = 1", "principals: a is a table"),
        ('[principals."a b"]', "'a b' is not a name"),
        (f'[principals."{"x" * 256}"]', "is not a name"),
        ('[principals.""]', "'' is not a name"),
        ("[principals.a]\nrate = 1", "a: unknown setting 'rate'"),
        ('[principals.a]\nrole = "admin"', "a.role: 'admin' is not a role: user or operator"),
        ("[principals.a]\nrole = 1", "a.role: 1 is not a role"),
        ('[principals.default]\nrole = "operator"', "who is not named is no operator"),
        ("[principals.a]\nweight = 0", "a.weight: 0 is not a whole number, 1 to 1000"),
        ("[principals.a]\nweight = 1001", "1 to 1000"),
        ("[principals.a]\nweight = 1.5", "1 to 1000"),
        ("[principals.a]\nrunning_max = 0", "a.running_max: 0 is not a whole number, at least 1"),
        ("[principals.a]\nrunning_max = true", "at least 1"),
        ("[principals.a]\nqueued_max = -1", "at least 0"),
        ("[principals.a]\ntokens_per_minute_max = 0", "at least 1"),
        ("[principals.a]\nsessions_max = -1", "at least 0"),
        ('[principals.a]\npin_bytes_max = "much"', "a.pin_bytes_max: 'much' is not a size"),
        ('[principals.a]\npool = ""', "a.pool: '' is not the name of a pool"),
        ("[principals.a]\npool = 1", "is not the name of a pool"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(table: str, says: str, tmp_path: Path) -> None:
    text = table if table.startswith("[") else f"[principals]\n{table}"
    with pytest.raises(UsageError, match="principals: ") as caught:
        config_of(text, tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("listen", "says"),
    [
        ("unix:/s,principal=", "nobody can be called ''"),
        ("unix:/s,principal=local", "nobody can be called 'local'"),
        ("unix:/s,principal=default", "nobody can be called 'default'"),
        ("unix:/s,principal=a b", "nobody can be called 'a b'"),
        ("127.0.0.1:1,principal=a", "only a unix socket stands for a principal"),
        ("unix:,principal=a", "needs the path"),
    ],
)
def test_sockets_that_stand_for_nobody(listen: str, says: str) -> None:
    with pytest.raises(UsageError, match="listen: ") as caught:
        load_config({"listen": [listen]})
    assert says in str(caught.value)


def test_a_socket_stands_for_who_is_named(tmp_path: Path) -> None:
    listen = ["unix:/a,b,principal=x", "unix:/c", "127.0.0.1:1"]
    config = load_config({"listen": listen})
    assert [str(address) for address in config.listen] == ["unix:/a,b", "unix:/c", "127.0.0.1:1"]
    assert config.socket_principals == {config.listen[0]: "x"}


TLS = {"tls_cert": "/c", "tls_key": "/k"}


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({}, "--tls-cert and --tls-key, and --tokens or --tls-client-ca"),
        ({"tokens": "/t"}, "--tls-cert and --tls-key"),
        (TLS, "--tokens or --tls-client-ca"),
        (TLS | {"tokens": "/t"}, ""),
        (TLS | {"tls_client_ca": "/a"}, ""),
        (TLS | {"tls_client_ca": "/a", "tokens": "/t"}, ""),
    ],
)
@pytest.mark.parametrize("name", ["listen", "metrics"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.168.1.2", "example.org", "[fe80::1]"])
def test_a_network_is_not_served_without_tls_and_proof_of_who_calls(
    flags: dict[str, str], missing: str, name: str, host: str
) -> None:
    address = f"{host}:1"
    given: dict[str, Any] = {name: [address] if name == "listen" else address, **flags}
    if not missing:
        load_config(given)
        return
    with pytest.raises(UsageError) as caught:
        load_config(given)
    line = f"{name}: '{address}' is not a loopback address: serving it needs {missing}"
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tls_cert": "/c"}, "TLS needs --tls-key too"),
        ({"tls_key": "/k"}, "TLS needs --tls-cert too"),
        ({"tls_client_ca": "/a"}, "TLS needs --tls-cert and --tls-key too"),
    ],
)
def test_half_of_tls_is_refused(flags: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(flags)
    assert str(caught.value) == says


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_nothing(address: str) -> None:
    load_config({"listen": [address], "metrics": address})
