"""A turn of a session: what its first messages say for all of them, and what later ones may say.

- System, tools and `thinking` stand at the beginning of a conversation, so they are the first
  turn's. What a later turn needs of them to be rendered, the session keeps: tools and `thinking`.
- A later turn is checked, held and rendered as if it had come with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.session_events import HeldSession
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2

_FIRST_TURN_ONLY = ("system", "developer")


@dataclass(frozen=True, slots=True)
class TurnStyle:
    """Of a session's first messages. tools: as they came, serialised."""

    thinking: bool | None
    tools: tuple[bytes, ...]


def first_style(request: pb.GenerateRequest, limits: Limits) -> TurnStyle | None:
    """What is kept of a first turn; None where it came without messages. Raises Refused."""
    if request.WhichOneof("prompt") != "messages":
        return None
    messages = request.messages
    tools = tuple(tool.SerializeToString() for tool in messages.tools)
    if sum(map(len, tools)) > limits.constraint_bytes_max:
        problem = f"tools of a session have at most {limits.constraint_bytes_max} bytes"
        _bad(problem, "messages.tools")
    return TurnStyle(messages.thinking if messages.HasField("thinking") else None, tools)


def later_turn(request: pb.GenerateRequest, held: HeldSession) -> pb.GenerateRequest:
    """The request as it would be with the first turn's tools and `thinking`. Raises Refused."""
    if request.WhichOneof("prompt") != "messages":
        return request
    style = held.style if isinstance(held.style, TurnStyle) else TurnStyle(None, ())
    _check_later(request.messages, style)
    whole = pb.GenerateRequest()
    whole.CopyFrom(request)
    whole.messages.tools.extend(map(prompt_pb2.Tool.FromString, style.tools))
    if style.thinking is not None:
        whole.messages.thinking = style.thinking
    return whole


def _check_later(messages: prompt_pb2.Messages, style: TurnStyle) -> None:
    if messages.tools:
        _bad("tools come with the first turn of a session", "messages.tools")
    if messages.HasField("thinking") and messages.thinking != style.thinking:
        _bad("the first turn of a session says whether the model thinks", "messages.thinking")
    for index, message in enumerate(messages.messages):
        if message.role in _FIRST_TURN_ONLY:
            field = f"messages.messages[{index}].role"
            _bad(f"role {message.role} comes with the first turn of a session", field)


def _bad(problem: str, field: str) -> NoReturn:
    raise Refused(Reason.BAD_REQUEST, problem, field=field)
