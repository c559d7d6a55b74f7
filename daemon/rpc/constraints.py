"""What a request's constraint and tool_choice ask for: a ConstraintSpec, or Refused.

- Sizes and what goes beside what are checked here, before anything is built.
- A reply that may not call is no matter of masks: its sampler never draws what begins a call.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NoReturn

from sapwood.daemon.engine.card import ServedConstraints
from sapwood.daemon.rpc.rules import unsupported
from sapwood.model.constraints.spec import ConstraintSpec
from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import Sampling
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2

TOOL_CHOICE: Literal["tool_choice"] = "tool_choice"


def constraint_spec(
    request: pb.GenerateRequest,
    control: ControlTokens,
    served: ServedConstraints | None,
    limits: Limits,
) -> ConstraintSpec | None:
    """None where the reply is held to nothing. Raises Refused."""
    field: str | None = request.WhichOneof("constraint")
    chosen = request.HasField(TOOL_CHOICE)
    if chosen:
        _check_choice(request)
        chosen = request.tool_choice.mode != prompt_pb2.TOOL_CHOICE_MODE_NONE
    if field is None and not chosen:
        return None
    if served is None:
        raise unsupported(field or TOOL_CHOICE)
    if field is not None and chosen:
        _bad("a reply is held to a constraint or to a choice of tools, not to both", TOOL_CHOICE)
    if request.ignore_eos:
        _bad("a reply that is held to something ends where that ends", "ignore_eos")
    if request.min_tokens:
        _bad("a reply that is held to something ends where that ends", "min_tokens")
    thinks = request.WhichOneof("prompt") == "messages" and request.messages.thinking
    spec = _calls(request, control) if field is None else _of_text(request, field, served)
    size = len(spec.text.encode()) + sum(len(text.encode()) for _, text in spec.tools)
    if size > limits.constraint_bytes_max:
        problem = f"it has more than {limits.constraint_bytes_max} bytes"
        raise Refused(Reason.BAD_CONSTRAINT, problem, field=field or TOOL_CHOICE)
    return replace(spec, thinks=thinks)


def without_calls(
    request: pb.GenerateRequest, sampling: Sampling, control: ControlTokens
) -> Sampling:
    """The sampler of a reply that may not call a tool, where it may not."""
    forbidden = request.tool_choice.mode == prompt_pb2.TOOL_CHOICE_MODE_NONE
    if not forbidden or control.call_start is None:
        return sampling
    biases = dict(sampling.logit_bias) | {control.call_start: -math.inf}
    return replace(sampling, logit_bias=tuple(sorted(biases.items())))


def _of_text(request: pb.GenerateRequest, field: str, served: ServedConstraints) -> ConstraintSpec:
    text: str = getattr(request, field)
    if not text:
        raise Refused(Reason.BAD_CONSTRAINT, "it is empty", field=field)
    match field:
        case "json_schema":
            return ConstraintSpec("json_schema", text)
        case "regex":
            return ConstraintSpec("regex", text)
        case _:
            if not served.takes_lark:
                problem = "grammar: this daemon takes none (it runs without --grammar lark)"
                raise Refused(Reason.UNSUPPORTED, problem, field=field)
            return ConstraintSpec("grammar", text)


def _check_choice(request: pb.GenerateRequest) -> None:
    choice, tools = request.tool_choice, request.messages.tools
    kind = choice.WhichOneof("choice")
    known = choice.mode in prompt_pb2.ToolChoiceMode.values()
    if kind is None or (kind == "mode" and not (known and choice.mode)):
        _bad("it is a mode (auto, none, required) or the name of a tool", TOOL_CHOICE)
    if kind == "mode" and choice.mode == prompt_pb2.TOOL_CHOICE_MODE_NONE:
        return
    if not tools:
        _bad("there are no tools to choose from", TOOL_CHOICE)
    if kind == "name" and choice.name not in {tool.name for tool in tools}:
        _bad("there is no tool of this name", f"{TOOL_CHOICE}.name")


def _calls(request: pb.GenerateRequest, control: ControlTokens) -> ConstraintSpec:
    if None in (control.call_start, control.call_end, control.quote):
        problem = "tool_choice: the model's vocabulary has no tokens for calls"
        raise Refused(Reason.UNSUPPORTED, problem, field=TOOL_CHOICE)
    choice = request.tool_choice
    named = choice.WhichOneof("choice") == "name"
    tools = tuple(
        (tool.name, tool.parameters)
        for tool in request.messages.tools
        if not named or tool.name == choice.name
    )
    talks = not named and choice.mode == prompt_pb2.TOOL_CHOICE_MODE_AUTO
    return ConstraintSpec("calls", tools=tools, talks=talks, once=named)


def _bad(problem: str, field: str) -> NoReturn:
    raise Refused(Reason.BAD_REQUEST, problem, field=field)
