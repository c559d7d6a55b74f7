"""A user's service as its system wants it written: a unit for systemd, a property list for launchd.

- The first line behind what the format begins with says who wrote the file, and the digest of the
  rest: a file that somebody changed since is not what we wrote.
- Both start a daemon again that failed, not one that was stopped; and both wait for its drain.
- What stands in SERVICE holds for every unit of a daemon: those of a fleet have it too.
"""

from __future__ import annotations

import hashlib
import json
import math
import plistlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABEL = "sapwood"
_WRITER = "Written by `sapwood install-service`"
_MARK = re.compile(rf"^(?:# |<!-- ){_WRITER}, sha256 ([0-9a-f]{{64}})(?: -->)?\n", re.MULTILINE)
_LEAVE_S = 10  # past the drain, for what is left
# Of a daemon that systemd starts. Loading may take minutes; from then on it gives signs of life.
SERVICE = {
    "Type": "notify",
    "TimeoutStartSec": "15min",
    "WatchdogSec": "60",
    "ExecReload": "/bin/kill -HUP $MAINPID",
    # The daemon alone is told to end: it lets replies finish, and ends what it started.
    "KillMode": "mixed",
    "RestartPreventExitStatus": "2",  # bad usage, which another try does not mend
    "LimitNOFILE": "8192",
    "LimitCORE": "0",  # it would hold what people wrote
    "NoNewPrivileges": "yes",
}


@dataclass(frozen=True, slots=True)
class Service:
    """command: the daemon's, whole. environ: what it needs of ours. drain_s: as it is configured.

    log: where launchd puts what it writes.
    """

    command: Sequence[str]
    environ: Mapping[str, str]
    drain_s: float
    log: str

    @property
    def stop_s(self) -> int:
        """How long its system waits for its end."""
        return math.ceil(self.drain_s) + _LEAVE_S


def systemd_unit(service: Service) -> str:
    """Of `systemctl --user`."""
    settings = {"ExecStart": " ".join(_word(word, "%$") for word in service.command)}
    settings |= SERVICE | {
        "TimeoutStopSec": str(service.stop_s),
        "Restart": "on-failure",
        "RestartSec": "5",
    }
    lines = ["[Unit]", "Description=Sapwood, which serves Gemma 4", "", "[Service]"]
    for name, value in service.environ.items():
        lines.append(f"Environment={_word(f'{name}={value}', '%')}")
    lines += [f"{name}={value}" for name, value in settings.items()]
    return _marked("", "\n".join([*lines, "", "[Install]", "WantedBy=default.target", ""]))


def launchd_plist(service: Service) -> str:
    """Of an agent: a user's, which runs while the user is logged in."""
    content: dict[str, Any] = {"Label": LABEL, "ProgramArguments": list(service.command)}
    if service.environ:
        content["EnvironmentVariables"] = dict(service.environ)
    content |= {
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ExitTimeOut": service.stop_s,
        "ProcessType": "Interactive",  # launchd holds others' CPU and I/O down
        "SoftResourceLimits": {"NumberOfFiles": 8192},  # 256 otherwise, each connection is one
        "StandardErrorPath": service.log,
    }
    text = plistlib.dumps(content, sort_keys=False).decode()
    head, body = re.fullmatch(r"(.*?)(<plist.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return _marked(head, body)


def is_ours(text: str) -> bool:
    """Whether we wrote all of it, as it stands there."""
    found = _MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()], text[found.end() :])


def _marked(head: str, body: str) -> str:
    mark = f"{_WRITER}, sha256 {_digest(head, body)}"
    return f"{head}{f'<!-- {mark} -->' if head else f'# {mark}'}\n{body}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("".join(texts).encode("utf-8", "surrogateescape")).hexdigest()


def _word(text: str, doubled: str) -> str:
    """As a unit has it: in quotes where needed, and twice what systemd would replace."""
    for sign in doubled:
        text = text.replace(sign, 2 * sign)
    return text if re.fullmatch(r"[\w@%+=:,./$-]+", text) else json.dumps(text, ensure_ascii=False)
