"""Tokens for tests: a file of them, and how a call shows one."""

from __future__ import annotations

from pathlib import Path

from sapwood.daemon.settings.principals import Role
from sapwood.daemon.settings.tokens import new_token

Shown = tuple[tuple[str, str], ...]


class Tokens:
    """A file in a folder. Names are users', but for those that say otherwise."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens"
        self.path.touch(mode=0o600)

    def new(self, name: str, role: Role = Role.USER) -> str:
        return new_token(self.path, name, role, None)

    def take_back(self, name: str) -> None:
        lines = self.path.read_text().splitlines(keepends=True)
        self.path.write_text("".join(line for line in lines if not line.startswith(f"{name} ")))


def shown(token: str, scheme: str = "Bearer") -> Shown:
    """Metadata of a call."""
    return (("authorization", f"{scheme} {token}"),)
