"""From a worker's GenerateRequest to ours, or Refused by the name of a field.

- `_HONOURED` and `_CONSTRAINTS` are the one place that says what is done here. Any other field that
  is set is refused by its name: whoever teaches the daemon a new thing adds a name here.
- Zero is "unset" in this contract wherever a field has no presence of its own.
- Ranges are judged by the one door that all requests pass (daemon/rpc/rules.py), not here.
- What shapes the text alone (special tokens, the stop string in it) is for who makes the text.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2

_UINT64 = 1 << 64
_REQUEST = frozenset({"request_id", "tokenized", "text", "sampling_params", "stream"})
_OF_THE_TEXT = frozenset(
    {"skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"}
)
_SAMPLER = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    }
)
_HONOURED = frozenset(
    {
        *("max_tokens", "stop", "stop_token_ids", "ignore_eos", "n", "logprobs", "seed"),
        *("min_tokens", "prompt_logprobs", "logit_bias", *_SAMPLER, *_OF_THE_TEXT),
    }
)
# Theirs to ours. Which of ours the daemon does is said by its own rules, under the same names.
_CONSTRAINTS = {"json_schema": "json_schema", "regex": "regex"}


def our_request(given: Any, limits: Limits) -> pb.GenerateRequest:
    """`given`: a vllm.grpc.engine.GenerateRequest. Raises Refused."""
    params = given.sampling_params
    _refuse_others(given, _REQUEST, "")
    _refuse_others(params, _HONOURED | _CONSTRAINTS.keys(), "sampling_params.")
    request = pb.GenerateRequest(
        max_tokens=_max_tokens(params, limits),
        sampling=_sampling(params),
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        candidates=params.n,
        min_tokens=params.min_tokens,
        top_logprobs=_alternatives(params, "logprobs", limits),
        prompt_logprobs=_alternatives(params, "prompt_logprobs", limits),
    )
    if request.prompt_logprobs and not given.HasField("tokenized"):
        raise _unsupported("prompt_logprobs", "sampling_params.")  # they are told with the ids
    _set_prompt(request, given)
    for theirs, ours in _CONSTRAINTS.items():
        if params.WhichOneof("constraint") == theirs:
            setattr(request, ours, getattr(params, theirs))
    return request


def logprobs_wanted(given: Any, field: str = "logprobs") -> int | None:
    """How many alternatives a token's log probability comes with; None: there are none at all."""
    params = given.sampling_params
    return getattr(params, field) if params.HasField(field) else None


def _set_prompt(request: pb.GenerateRequest, given: Any) -> None:
    match given.WhichOneof("input"):
        case "tokenized":
            request.token_ids.CopyFrom(prompt_pb2.TokenIds(ids=given.tokenized.input_ids))
        case "text":
            request.text = given.text


def _max_tokens(params: Any, limits: Limits) -> int:
    """Unset is a long reply, which the door cuts to what the context leaves."""
    given: int = params.max_tokens
    return given if params.HasField("max_tokens") else limits.worker_max_tokens_default


def _sampling(params: Any) -> pb.Sampling:
    sampling = pb.Sampling()
    for field, value in params.ListFields():
        if field.name in _SAMPLER:
            setattr(sampling, field.name, value)
    if params.HasField("seed"):
        sampling.seed = params.seed % _UINT64  # a negative one is a seed too
    for token_id, bias in params.logit_bias.items():
        if token_id < 0:
            problem = "token ids are not negative"
            raise Refused(Reason.BAD_TOKEN_ID, problem, field="sampling_params.logit_bias")
        sampling.logit_bias[token_id] = bias
    return sampling


def _alternatives(params: Any, field: str, limits: Limits) -> int:
    """Ours come with an alternative at least; none of it is told where none was asked for."""
    if not params.HasField(field):
        return 0
    wanted: int = getattr(params, field)
    if not 0 <= wanted <= limits.top_logprobs_max:
        problem = f"{field} is 0 to {limits.top_logprobs_max}"
        raise Refused(Reason.BAD_REQUEST, problem, field=f"sampling_params.{field}")
    return max(1, wanted)


def _refuse_others(message: Message, known: frozenset[str], path: str) -> None:
    for field, _ in message.ListFields():
        if field.name not in known:
            raise _unsupported(field.name, path)


def _unsupported(name: str, path: str) -> Refused:
    return Refused(Reason.UNSUPPORTED, f"{name} is not supported yet", field=f"{path}{name}")
