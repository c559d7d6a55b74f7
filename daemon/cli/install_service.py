"""`sapwood install-service`: a service of the user's own that serves what `serve` would serve here.

- What flags and environment say goes into the file, with paths that hold in any folder; a file of
  settings is named there, and read anew with each start.
- Nothing is started, and nothing overwritten that was not written by this command, as it stands.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sapwood.daemon.cli.service_files import (
    LABEL,
    Service,
    is_ours,
    launchd_plist,
    systemd_unit,
)
from sapwood.daemon.errors import StartError
from sapwood.daemon.settings.addresses import parse_listening
from sapwood.daemon.settings.config import PATH_SETTINGS, effective_settings, load_config

# Where models lie, and which BLAS computes: a service has none of the user's own environment.
_KEPT = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "LD_PRELOAD")


def run_install_service(arguments: argparse.Namespace) -> int:
    """Write the file, or print it. Raises UsageError for settings, StartError for the rest."""
    flags = vars(arguments)
    shows, force = flags.pop("print"), flags.pop("force")
    flags.pop("run")
    service = _service(flags, os.environ)
    if sys.platform == "darwin":
        path = Path.home() / f"Library/LaunchAgents/{LABEL}.plist"
        text, manager = launchd_plist(service), "launchctl"
    elif sys.platform == "linux":
        path = _config_home(os.environ) / f"systemd/user/{LABEL}.service"
        text, manager = systemd_unit(service), "systemctl"
    else:
        raise StartError(f"services are for launchd and systemd, not for {sys.platform}")
    if shows:
        print(text, end="")
        return 0
    if shutil.which(manager) is None:
        raise StartError(f"there is no {manager} here; --print shows the file")
    replaced = _write(path, text, force)
    print(f"{path} is written; to start it:")
    for command in _commands(path, replaced):
        print(f"    {shlex.join(command)}")
    return 0


def _service(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Service:
    config = load_config(flags, environ)
    return Service(
        command=[*_program(), "serve", *_flags(flags, environ)],
        environ={name: environ[name] for name in _KEPT if environ.get(name)},
        drain_s=config.limits.drain_s_max,
        log=str(Path.home() / f"Library/Logs/{LABEL}.log"),
    )


def _program() -> list[str]:
    """This very installation."""
    script = Path(sys.executable).with_name("sapwood")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "sapwood"]


def _flags(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    """What was said, but for what stands in a file of settings: that is named."""
    if file := flags["config"] or environ.get("SAPWOOD_CONFIG"):
        yield from ("--config", _absolute(file))
    for name, value, where in effective_settings(flags, environ):
        flag = f"--{name.replace('_', '-')}"
        if not where.startswith(("--", "SAPWOOD_")):
            continue
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        for each in [] if isinstance(value, bool) else _texts(name, value):
            yield from (flag, each)


def _texts(name: str, value: Any) -> list[str]:
    """A value, as it holds in any folder."""
    if name == "listen":
        found = [parse_listening(text) for text in ([value] if isinstance(value, str) else value)]
        return [f"{each.address}{_standing_for(each.principal)}" for each in found]
    names_folder = name in ("model", "draft") and Path(value).expanduser().is_dir()
    return [_absolute(value) if names_folder or name in PATH_SETTINGS else str(value)]


def _standing_for(principal: str | None) -> str:
    return "" if principal is None else f",principal={principal}"


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _config_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _write(path: Path, text: str, force: bool) -> bool:
    """Whether there was one of ours. Raises StartError for what is not ours, unless forced."""
    there = path.exists() or path.is_symlink()
    if there and not force and not _was_ours(path):
        raise StartError(
            f"{path} is not as `sapwood install-service` wrote it; --force overwrites it"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")
        beside.replace(path)
    except OSError as error:
        raise StartError(f"cannot write {path}: {error.strerror}") from None
    return there


def _was_ours(path: Path) -> bool:
    try:
        return is_ours(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return False


def _commands(path: Path, replaced: bool) -> Sequence[Sequence[str]]:
    """Two commands that start it; where another one runs, it ends first."""
    if sys.platform == "darwin":
        domain = f"gui/{os.getuid()}"
        before = ("bootout" if replaced else "enable", f"{domain}/{LABEL}")
        return ("launchctl", *before), ("launchctl", "bootstrap", domain, str(path))
    user = ("systemctl", "--user")
    start = ("restart", LABEL) if replaced else ("enable", "--now", LABEL)
    return (*user, "daemon-reload"), (*user, *start)
