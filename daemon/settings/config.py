"""What the operator set: by flags, the environment, a TOML file (sources.py has the order).

- `load_config` is the only way to a Config; a Config is complete, checked and frozen.
- `[limits]` may set any field of Limits, with a value of its type.
- What is not built is refused here, with exit code 2, before anything is opened.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sapwood.daemon.errors import UsageError
from sapwood.daemon.log import FORMATS, LEVELS
from sapwood.daemon.settings.addresses import (
    Address,
    Listening,
    TcpAddress,
    UnixAddress,
    default_listeners,
    is_loopback,
    parse_any_tcp,
    parse_listening,
    parse_tcp,
)
from sapwood.daemon.settings.principals import (
    LOCAL,
    REST,
    PrincipalSettings,
    is_name,
    parse_principals,
)
from sapwood.daemon.settings.sources import WrittenSetting, gather
from sapwood.daemon.settings.tls import TlsFiles
from sapwood.daemon.sizes import parse_size
from sapwood.daemon.suggestion import suggestion
from sapwood.scheduler.limits import Limits

DEFAULT_METRICS = "127.0.0.1:9464"
DTYPES = ("auto", "float32", "bfloat16", "float16")
ITL_TARGET_MAX = 100.0
DEFAULT_ITL_TARGET = Limits().itl_target
NUMERICS, SELF_CHECKS = ("fast", "strict"), ("count", "stop", "off")
DEFAULT_CACHE_DISK = 20 << 30
DEFAULT_CACHE_WRITES = 100 << 30
STORAGES = ("exact", "8bit")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that `sapwood serve` can be told."""

    model: str | None  # a directory or hub id; None: the bundled demo pair
    draft: str | None  # a directory, hub id or "none"; None: the bundle's own
    draft_depth: int | None  # None: the scheduler decides round by round
    listen: tuple[Address, ...]
    socket_principals: Mapping[Address, str]  # of sockets that stand for one, and not for local
    metrics: TcpAddress
    page: bool  # whether the live page is served beside them
    tls: TlsFiles | None
    tokens: Path | None
    principals: Mapping[str, PrincipalSettings]
    cache_dir: Path | None  # where prefixes are kept over a restart; None: in memory alone
    cache_disk_bytes: int  # that it may take
    cache_writes_bytes: int  # that may be written there in a day
    cache_storage: Literal["exact", "8bit"]  # bit for bit, or in 8 bits
    memory_bytes: int | None  # None: derived from the device
    wire_memory: bool  # whether the device keeps it resident
    numerics: str
    self_check: str  # of rounds, as they are served; off where numerics are strict
    dtype: str
    log_level: str
    log_format: str
    ready_file: Path | None
    reflection: bool
    record: Path | None  # of what reaches the core, without text
    takes_lark: bool  # whether clients may send grammars
    gateway: TcpAddress | None  # of the worker's protocol; None: it is not served
    gateway_principal: str  # whose all is that comes by it
    http: TcpAddress | None  # of the gateway beside the daemon; None: there is none
    http_key_file: Path | None
    limits: Limits


def load_config(flags: Mapping[str, Any], environ: Mapping[str, str] = {}) -> Config:
    """flags: by name, None is not given. environ: read for settings. Raises UsageError."""
    written = gather(flags, environ, _PARSERS)
    settings = {name: each.value for name, each in written.items()}
    _check_disk(settings)
    parsed = {name: _parsed(name, written.get(name)) for name in _PARSERS}
    parsed["self_check"] = _self_check(settings, parsed)
    listenings: tuple[Listening, ...] = parsed.pop("listen")
    if (itl_target := parsed.pop("itl_target")) is not None:
        parsed["limits"] = dataclasses.replace(parsed["limits"], itl_target=itl_target)
    config = Config(
        memory_bytes=parsed.pop("memory"),
        cache_disk_bytes=parsed.pop("cache_disk") or DEFAULT_CACHE_DISK,
        cache_writes_bytes=parsed.pop("cache_writes") or DEFAULT_CACHE_WRITES,
        listen=tuple(each.address for each in listenings),
        socket_principals={e.address: e.principal for e in listenings if e.principal is not None},
        tls=_tls(*(parsed.pop(name) for name in ("tls_cert", "tls_key", "tls_client_ca"))),
        takes_lark=parsed.pop("grammar") == "lark",
        **parsed,
    )
    listening = [("listen", each) for each in config.listen]
    for name, address in (*listening, ("metrics", config.metrics)):
        _require_safe(name, address, config)
    _check_http(config)
    return config


def names_without_tokens(config: Config) -> frozenset[str]:
    """Of all who may come without a token, but by a certificate."""
    return frozenset({LOCAL, config.gateway_principal, *config.socket_principals.values()})


def _self_check(settings: Mapping[str, Any], parsed: Mapping[str, Any]) -> str:
    """Off where there is nothing to tell apart. Raises UsageError where it is asked for there."""
    rounds = parsed["numerics"] == "fast" and parsed["cache_storage"] == "exact"
    if not rounds and settings.get("self_check", "off") != "off":
        raise UsageError("self-check: neither with --numerics strict nor with 8bit cache-storage")
    return str(parsed["self_check"]) if rounds else "off"


def _check_disk(settings: Mapping[str, Any]) -> None:
    """Raises UsageError for what says how, and not that."""
    if "cache_dir" not in settings:
        for name in ("cache_disk", "cache_writes", "cache_storage"):
            if name in settings:
                raise UsageError(f"{name.replace('_', '-')} is for --cache-dir, which is not given")
    elif "record" in settings:
        raise UsageError("record: what comes from --cache-dir is not recorded, so not both")
    elif settings.get("cache_storage") == "8bit" and settings.get("numerics") == "strict":
        problem = "8bit changes what is read again, and --numerics strict promises the bits"
        raise UsageError(f"cache-storage: {problem}: expected exact")


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if cert is not None and key is not None:
        return TlsFiles(cert, key, client_ca)
    given = {"tls-cert": cert, "tls-key": key, "tls-client-ca": client_ca}
    if any(path is not None for path in given.values()):
        missing = [name for name in ("tls-cert", "tls-key") if given[name] is None]
        raise UsageError(f"TLS needs {_flags(missing)} too")
    return None


def _require_safe(name: str, address: Address, config: Config) -> None:
    """Raises UsageError for an address that a network reaches, with all that it lacks."""
    if isinstance(address, UnixAddress) or is_loopback(address.host):
        return
    missing = [] if config.tls is not None else [_flags(["tls-cert", "tls-key"])]
    if config.tokens is None and (config.tls is None or config.tls.client_ca is None):
        missing.append("--tokens or --tls-client-ca")
    if missing:
        told = f"'{address}' is not a loopback address"
        raise UsageError(f"{name}: {told}: serving it needs {', and '.join(missing)}")


def _flags(names: Sequence[str]) -> str:
    return " and ".join(f"--{name}" for name in names)


def _check_http(config: Config) -> None:
    """Beyond loopback nothing is served in the clear, nor to everybody. Raises UsageError."""
    if config.http is None:
        if config.http_key_file is not None:
            raise UsageError("http-key-file is for --http, which is not given")
        return
    needed = {"--http-key-file": config.http_key_file, "--tls-cert and --tls-key": config.tls}
    missing = [flag for flag, given in needed.items() if given is None]
    if not is_loopback(config.http.host) and missing:
        told = f"'{config.http}' is not a loopback address"
        raise UsageError(f"http: {told}: serving it needs {', and '.join(missing)}")


def _parsed(name: str, written: WrittenSetting | None) -> Any:
    if written is None:
        return _PARSERS[name](None)
    try:
        return _PARSERS[name](written.value)
    except UsageError as error:
        raise UsageError(f"{written.where}: {error}") from None


def effective_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[tuple[str, Any, str]]:
    """Each setting's name, value and where it was written, "" for a default. Raises UsageError.

    A default is as it was parsed, None where there is none.
    """
    load_config(flags, environ)  # what does not fit together is no configuration
    written = gather(flags, environ, _PARSERS)
    for name in _PARSERS:
        if name in written:
            yield name, written[name].value, written[name].where
        else:
            yield name, _PARSERS[name](None), ""


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise UsageError(f"{value!r} is not a name")
    return value


def _draft_depth(value: Any) -> int | None:
    if value is None or value == "auto":
        return None
    most = Limits().usual_depth_max
    digits = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,2}", digits, re.ASCII):
        raise UsageError(f"{value!r} is neither auto nor 0 to {most}")
    if int(digits) > most:
        raise UsageError(f"{value!r} is neither auto nor 0 to {most}")
    return int(digits)


def _itl_target(value: Any) -> float | None:
    """1: prompts have what they always have beside those who decode, and no more."""
    if value is None:
        return None
    try:
        ratio = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        ratio = math.nan
    if not 1.0 <= ratio <= ITL_TARGET_MAX:
        raise UsageError(f"{value!r} is not a number from 1 to {ITL_TARGET_MAX:g}")
    return ratio


def _listen(value: Any) -> tuple[Listening, ...]:
    if value is None:
        return default_listeners(os.environ)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UsageError(f"{value!r} is not a list of addresses")
    listenings = tuple(parse_listening(text) for text in texts)
    addresses = [listening.address for listening in listenings]
    taken = [a for a in addresses if not (isinstance(a, TcpAddress) and a.port == 0)]
    if len(set(taken)) < len(taken):
        raise UsageError("an address is given twice")
    return listenings


def _metrics(value: Any) -> TcpAddress:
    return parse_any_tcp(DEFAULT_METRICS if value is None else _text(value) or "")


def _gateway(value: Any) -> TcpAddress | None:
    return None if value is None else parse_tcp(_text(value) or "")


def _http(value: Any) -> TcpAddress | None:
    return None if value is None else parse_any_tcp(_text(value) or "")


def _one_of(values: Sequence[str], default: str, value: Any) -> str:
    if value is not None and value not in values:
        raise UsageError(f"{value!r} is not one of {', '.join(values)}")
    return default if value is None else str(value)


def _grammar(value: Any) -> str | None:
    if value not in (None, "lark"):
        raise UsageError(f"{value!r} is not a kind of grammar: lark")
    return _text(value)


def _gateway_principal(value: Any) -> str:
    name = "gateway" if value is None else _text(value) or ""
    if not is_name(name) or name in (LOCAL, REST):
        raise UsageError(f"nobody can be called {name!r}")
    return name


def _path(value: Any) -> Path | None:
    text = _text(value)
    return None if text is None else Path(text).expanduser().absolute()


def _flag(default: bool, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{value!r} is not true or false")
    return default if value is None else value


def _limits(value: Any) -> Limits:
    if value is None:
        return Limits()
    if not isinstance(value, dict):
        raise UsageError("is a table")
    defaults = dataclasses.asdict(Limits())
    for name, setting in value.items():
        if name not in defaults:
            raise UsageError(f"there is no limit {name!r}{suggestion(name, defaults)}")
        wanted = type(defaults[name])
        fits = type(setting) is int or (wanted is float and type(setting) is float)
        if not fits or not setting > 0:
            raise UsageError(f"{name} is a positive {'number' if wanted is float else 'integer'}")
    return dataclasses.replace(Limits(), **value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "model": _text,
    "draft": _text,
    "draft_depth": _draft_depth,
    "itl_target": _itl_target,
    "listen": _listen,
    "metrics": _metrics,
    "page": partial(_flag, False),
    "tls_cert": _path,
    "tls_key": _path,
    "tls_client_ca": _path,
    "tokens": _path,
    "principals": parse_principals,
    "memory": parse_size,
    "cache_dir": _path,
    "cache_disk": parse_size,
    "cache_writes": parse_size,
    "cache_storage": partial(_one_of, STORAGES, "exact"),
    "wire_memory": partial(_flag, False),
    "numerics": partial(_one_of, NUMERICS, "fast"),
    "self_check": partial(_one_of, SELF_CHECKS, "count"),
    "dtype": partial(_one_of, DTYPES, "auto"),
    "log_level": partial(_one_of, LEVELS, "info"),
    "log_format": partial(_one_of, FORMATS, "human"),
    "ready_file": _path,
    "reflection": partial(_flag, True),
    "record": _path,
    "grammar": _grammar,
    "gateway": _gateway,
    "gateway_principal": _gateway_principal,
    "http": _http,
    "http_key_file": _path,
    "limits": _limits,
}

#: Settings that name a file or folder.
PATH_SETTINGS = frozenset(name for name, parser in _PARSERS.items() if parser is _path)
