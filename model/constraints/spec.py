"""What a reply is to be held to, as the door asks for it, and why that may be refused.

Values only: whoever imports this imports no grammar library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConstraintKind = Literal["json_schema", "regex", "grammar", "calls"]


class ConstraintRefused(ValueError):
    """The client's constraint is not one that can be kept. The message is for the client."""


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """One request's constraint, not looked at yet.

    text: a JSON schema, a regular expression or a Lark grammar. tools: of "calls", the functions
    that may be called: names and the JSON texts of their parameters. talks: text beside calls is
    free, and there need be no call; else the reply is calls, of which `once` allows one.
    thinks: the reply may begin with a channel of thought, which nothing constrains.
    """

    kind: ConstraintKind
    text: str = ""
    tools: tuple[tuple[str, str], ...] = ()
    talks: bool = False
    once: bool = False
    thinks: bool = False

    @property
    def chars(self) -> int:
        """Of all texts in it."""
        return len(self.text) + sum(len(parameters) for _, parameters in self.tools)
