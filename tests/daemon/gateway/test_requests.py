"""A worker's request becomes ours: every field of the contract is either meant or refused."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from tests.daemon.gateway.conftest import needs_protocol

pytestmark = needs_protocol

LIMITS = Limits()
# What the daemon does not do, by the names of the contract.
NOT_DONE = {
    *("kv_transfer_params", "mm_inputs", "extra_mm_inputs", "kv_transfer_params_json"),
    *("data_parallel_rank", "media_refs"),
    *("sampling_params.truncate_prompt_tokens", "sampling_params.grammar_from_first_token"),
    *("sampling_params.grammar", "sampling_params.structural_tag"),
    *("sampling_params.json_object", "sampling_params.choice"),
}


def ours(given: Any) -> Any:
    from sapwood.daemon.gateway.requests import our_request

    return our_request(given, LIMITS)


def request(**params: Any) -> Any:
    from smg_grpc_proto import vllm_engine_pb2 as vllm

    return vllm.GenerateRequest(
        tokenized=vllm.TokenizedInput(input_ids=[5, 6], original_text="never looked at"),
        sampling_params=vllm.SamplingParams(**params),
    )


def test_everything_that_is_done_arrives() -> None:
    found = ours(
        request(
            temperature=0.0,
            top_p=0.5,
            top_k=7,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            max_tokens=9,
            stop=["x", "yz"],
            stop_token_ids=[3],
            ignore_eos=True,
            min_tokens=4,
            seed=-1,
            logprobs=0,
            prompt_logprobs=3,
            logit_bias={4: -100.0},
            n=1,
            skip_special_tokens=True,
            spaces_between_special_tokens=True,
            include_stop_str_in_output=True,
        )
    )
    sampling = found.sampling
    assert list(found.token_ids.ids) == [5, 6]
    assert (found.max_tokens, list(found.stop), list(found.stop_token_ids)) == (9, ["x", "yz"], [3])
    assert (found.ignore_eos, found.min_tokens, found.top_logprobs) == (True, 4, 1)
    assert found.prompt_logprobs == 3
    assert sampling.HasField("temperature") and sampling.temperature == 0
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 7, 0.25)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (sampling.repetition_penalty, sampling.seed) == (1.5, 2**64 - 1)
    assert dict(sampling.logit_bias) == {4: -100.0}


def test_zero_is_unset() -> None:
    found = ours(request(top_p=0, top_k=0, min_p=0, repetition_penalty=0, max_tokens=1))
    assert not found.sampling.ListFields()
    assert found.top_logprobs == 0


@pytest.mark.parametrize("constraint", ["json_schema", "regex"])
def test_a_constraint_is_for_the_daemons_own_rules_to_judge(constraint: str) -> None:
    found = ours(request(**{constraint: "{}"}))
    assert (found.WhichOneof("constraint"), getattr(found, constraint)) == (constraint, "{}")


def test_every_other_field_is_refused_by_its_name() -> None:
    """Read off the contract itself: a field that it gains stands in one of the two lists."""
    from sapwood.daemon.gateway import requests

    given = request()
    done = set(requests._REQUEST) | {
        f"sampling_params.{name}" for name in requests._HONOURED | requests._CONSTRAINTS.keys()
    }
    fields = {field.name for field in given.DESCRIPTOR.fields} | {
        f"sampling_params.{field.name}" for field in given.sampling_params.DESCRIPTOR.fields
    }
    assert fields == done | NOT_DONE
    for name in NOT_DONE:
        with pytest.raises(Refused) as caught:
            ours(with_field(name))
        leaf = name.rpartition(".")[2]
        assert (caught.value.reason, caught.value.field) == (Reason.UNSUPPORTED, name)
        assert caught.value.message == f"{leaf} is not supported yet"


def with_field(name: str) -> Any:
    """A request with any value that is not the default in this field."""
    given = request()
    message = given.sampling_params if "." in name else given
    field = message.DESCRIPTOR.fields_by_name[name.rpartition(".")[2]]
    if field.message_type is not None:
        place = getattr(message, field.name)
        place.add() if field.is_repeated else place.SetInParent()
    else:
        setattr(message, field.name, "x" if field.type == field.TYPE_STRING else 1)
    return given


@pytest.mark.parametrize("wanted", [-1, 21])
@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_more_log_probabilities_than_there_are_to_have_are_refused(field: str, wanted: int) -> None:
    with pytest.raises(Refused) as caught:
        ours(request(**{field: wanted}))
    assert (caught.value.reason, caught.value.field) == (
        Reason.BAD_REQUEST,
        f"sampling_params.{field}",
    )


def test_a_text_is_not_scored_since_its_ids_are_not_told() -> None:
    given = request(prompt_logprobs=1)
    given.text = "x"
    with pytest.raises(Refused) as caught:
        ours(given)
    assert caught.value.field == "sampling_params.prompt_logprobs"


def test_unset_max_tokens_is_long() -> None:
    assert ours(request()).max_tokens == LIMITS.worker_max_tokens_default
