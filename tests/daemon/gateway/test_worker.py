"""The worker's protocol over real sockets, as a gateway speaks it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import grpc
import pytest

from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.process.server import Daemon
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import SamplingDefaults
from tests.daemon.conftest import (
    collect,
    config_for,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    until,
)
from tests.daemon.fakes import EOS, FACTS, FakeDevice, make_loader, reply_to
from tests.daemon.gateway.conftest import Worker, chunked_ids, needs_protocol, working
from tests.fakes import toy_logprobs

pytestmark = [pytest.mark.anyio, needs_protocol]

PROMPT = tuple(range(5, 60))


async def test_a_stream_is_chunks_of_ids_then_one_end_with_the_totals() -> None:
    async with working() as worker:
        responses = await worker.ask(5, 6, max_tokens=20)
    assert [one.WhichOneof("response") for one in responses[:-1]] == ["chunk"] * (
        len(responses) - 1
    )
    end = responses[-1].complete
    assert chunked_ids(responses) == reply_to((5, 6), 20)
    assert all(
        one.chunk.completion_tokens == len(one.chunk.token_ids) > 0 for one in responses[:-1]
    )
    assert (end.finish_reason, list(end.output_ids)) == ("length", [])
    assert (end.prompt_tokens, end.completion_tokens, end.cached_tokens) == (2, 20, 0)
    assert 0 < end.spec_accepted_tokens < end.spec_draft_tokens


async def test_without_a_stream_everything_comes_at_the_end() -> None:
    async with working() as worker:
        (only,) = await worker.ask(5, 6, max_tokens=20, stream=False)
    assert list(only.complete.output_ids) == reply_to((5, 6), 20)
    assert only.complete.completion_tokens == 20


async def test_a_text_is_tokenised_here() -> None:
    async with working() as worker:
        request = worker.pb.GenerateRequest(text="hi", stream=True)
        request.sampling_params.max_tokens = 4
        responses = [one async for one in worker.stub.Generate(request)]
    assert responses[-1].complete.prompt_tokens == 3, "BOS and two letters"


async def test_cached_tokens_are_told_in_chunks_and_at_the_end() -> None:
    async with working() as worker:
        first = await worker.ask(*PROMPT, max_tokens=40)
        again = await worker.ask(*PROMPT, *chunked_ids(first), 77, max_tokens=3)
    assert first[-1].complete.cached_tokens == 0
    assert again[0].chunk.cached_tokens == again[-1].complete.cached_tokens >= len(PROMPT) + 38


@pytest.mark.parametrize("stream", [True, False])
async def test_what_ended_a_reply_is_told(stream: bool) -> None:
    reply = reply_to((5, 6), 30)
    letters = bytes(i - 3 for i in reply).decode()
    async with working() as worker:
        by_text = await worker.ask(5, 6, stop=[letters[4:6]], stream=stream)
        by_id = await worker.ask(5, 6, stop_token_ids=[reply[3]], stream=stream)
        worker.run.device.next_token = lambda tokens: EOS
        by_itself = await worker.ask(5, 6, stop_token_ids=[99], stream=stream)
    ends = [responses[-1].complete for responses in (by_text, by_id, by_itself)]
    assert [end.finish_reason for end in ends] == ["stop"] * 3
    assert [end.WhichOneof("matched_stop") for end in ends] == [
        *("matched_stop_str", "matched_token_id", None)
    ]
    assert ends[0].matched_stop_str == letters[4:6]
    assert ends[1].matched_token_id == reply[3]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("wanted", [None, 0, 3])
async def test_log_probabilities_come_to_who_asks(wanted: int | None, stream: bool) -> None:
    asked = {} if wanted is None else {"logprobs": wanted}
    async with working() as worker:
        responses = await worker.ask(5, 6, max_tokens=7, stream=stream, **asked)
    told = [one.complete if not stream else one.chunk for one in responses]
    told = [one.output_logprobs for one in told if one.HasField("output_logprobs")]
    ids = [id for one in told for id in one.token_ids]
    values = [value for one in told for value in one.token_logprobs]
    best = [top for one in told for top in one.top_logprobs]
    expected = toy_logprobs(reply_to((5, 6), 7), 1 if wanted is not None else 0)
    assert values == [one.logprob for one in expected]
    assert ids == (reply_to((5, 6), 7) if expected else [])
    assert [len(top.token_ids) for top in best] == ([3] * 7 if wanted == 3 else [])
    if best:
        assert list(best[0].token_ids) == [reply_to((5, 6), 1)[0] + n for n in range(3)]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("wanted", [0, 2])
async def test_scores_of_the_prompt_are_told_once(stream: bool, wanted: int) -> None:
    async with working() as worker:
        responses = await worker.ask(*PROMPT, max_tokens=7, stream=stream, prompt_logprobs=wanted)
        silent = await worker.ask(*PROMPT, max_tokens=7, stream=stream)
    told = [getattr(one, one.WhichOneof("response")) for one in responses]
    assert [one.HasField("input_logprobs") for one in told] == [True] + [False] * (len(told) - 1)
    scores, expected = told[0].input_logprobs, toy_logprobs(PROMPT[1:], 1)
    assert tuple(scores.token_ids) == PROMPT
    assert not scores.token_logprobs[0].HasField("value"), "nothing comes before the first"
    assert [one.value for one in scores.token_logprobs[1:]] == [one.logprob for one in expected]
    best = [list(place.token_ids) for place in scores.top_logprobs]
    assert best == ([[], *([t, t + 1] for t in PROMPT[1:])] if wanted else [])
    assert not any(getattr(o, o.WhichOneof("response")).HasField("input_logprobs") for o in silent)


@pytest.mark.parametrize("stream", [True, False])
async def test_several_replies_say_which_they_are(stream: bool) -> None:
    warm = {"temperature": 1.0, "n": 3, "prompt_logprobs": 1}
    async with working() as worker:
        responses = await worker.ask(*PROMPT, max_tokens=7, stream=stream, **warm)
    told = [getattr(one, one.WhichOneof("response")) for one in responses]
    ends = [one.complete for one in responses if one.WhichOneof("response") == "complete"]
    assert sorted(end.index for end in ends) == [0, 1, 2]
    assert [end.prompt_tokens for end in ends] == [len(PROMPT)] * 3
    for index in range(3):
        own = [one for one in told if one.index == index]
        ids = [i for one in own for i in (getattr(one, "token_ids", None) or one.output_ids)]
        assert ids == reply_to(PROMPT, 7)
        assert any(one.HasField("input_logprobs") for one in own) == (index == 0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 2}, ("INVALID_ARGUMENT", "BAD_SAMPLING")),
        ({"temperature": -1.0}, ("INVALID_ARGUMENT", "BAD_SAMPLING")),
        ({"max_tokens": 0}, ("INVALID_ARGUMENT", "BAD_REQUEST")),
        ({"logprobs": 21}, ("INVALID_ARGUMENT", "BAD_REQUEST")),
        ({"logit_bias": {-1: 1.0}}, ("INVALID_ARGUMENT", "BAD_TOKEN_ID")),
        ({"logit_bias": {9999: 1.0}}, ("INVALID_ARGUMENT", "BAD_TOKEN_ID")),
        ({"stop": ["x"] * 9}, ("INVALID_ARGUMENT", "BAD_REQUEST")),
    ],
)
async def test_a_wrong_parameter_is_refused_and_counted(
    fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    async with working() as worker:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.ask(5, 6, **fields)
        assert reason_of(caught.value) == expected
        assert sum(worker.run.daemon._gate.rejected.values()) == 1
        assert (await worker.ask(5, 6, max_tokens=2))[-1].complete.finish_reason == "length"


async def test_a_prompt_that_is_empty_too_long_or_strange_is_refused() -> None:
    async with working() as worker:
        for ids, reason in (
            ((), "EMPTY_PROMPT"),
            ((5,) * FACTS.context_tokens_max, "CONTEXT_TOO_LONG"),
            ((5, 9999), "BAD_TOKEN_ID"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await worker.ask(*ids)
            assert reason_of(caught.value) == ("INVALID_ARGUMENT", reason)


async def test_a_full_queue_is_resource_exhausted() -> None:
    limits = Limits(slots_max=1, queued_max=1)
    async with working(FakeDevice(gated=True), limits) as worker:
        calls = [worker.stub.Generate(worker.request(5, 6, max_tokens=500))]
        await until(lambda: worker.run.device.begun > 0)
        for waiting in (2, 3):
            calls.append(worker.stub.Generate(worker.request(5, 6, max_tokens=5)))
            await until(lambda: open_rpcs(worker.run) == waiting)  # noqa: B023 (at once)
        worker.run.device.step(2)  # what came is looked at between two
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.pop().read()
        assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        worker.run.device.ungate()
        for call in calls:
            assert [one async for one in call][-1].complete.finish_reason == "length"


async def test_unset_max_tokens_is_what_the_limits_say_within_the_context() -> None:
    async with working(limits=Limits(worker_max_tokens_default=11)) as worker:
        assert len(chunked_ids(await worker.ask(5, 6))) == 11
        long = (5,) * (FACTS.context_tokens_max - 4)
        assert len(chunked_ids(await worker.ask(*long))) == 4


async def test_what_a_gateway_asks_before_it_sends_anything() -> None:
    defaults = SamplingDefaults(temperature=0.8, top_k=40)
    async with working(defaults=defaults) as worker:
        pb, stub = worker.pb, worker.stub
        assert (await stub.HealthCheck(pb.HealthCheckRequest())).healthy
        model = await stub.GetModelInfo(pb.GetModelInfoRequest())
        server = await stub.GetServerInfo(pb.GetServerInfoRequest())
        loads = await stub.GetLoads(pb.GetLoadsRequest())
    assert (model.served_model_name, model.is_generation) == ("fake", True)
    assert (model.max_context_length, model.vocab_size) == (FACTS.context_tokens_max, 300)
    assert list(model.eos_token_ids) == [EOS]
    assert json.loads(model.default_sampling_params_json) == {"temperature": 0.8, "top_k": 40}
    assert (server.data_parallel_size, server.max_num_seqs) == (1, 32)
    (load,) = loads.loads
    assert (load.num_running_reqs, load.max_running_requests) == (0, 32)


async def test_while_the_model_loads_a_worker_is_not_healthy_and_says_why() -> None:
    from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

    may_load, load = threading.Event(), make_loader(FakeDevice(), Limits())

    def slow() -> Loaded:
        may_load.wait()
        return load()

    daemon = Daemon(config_for(gateway="127.0.0.1:0"), slow)
    await daemon.start()
    async with grpc.aio.insecure_channel(str(daemon.gateway_address)) as channel:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        health = await stub.HealthCheck(vllm_engine_pb2.HealthCheckRequest())
        assert (health.healthy, health.message) == (False, "the model is loading")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest())
        assert reason_of(caught.value) == ("UNAVAILABLE", "MODEL_LOADING")
        may_load.set()
        assert await daemon.wait_loaded()
        assert (await stub.HealthCheck(vllm_engine_pb2.HealthCheckRequest())).healthy
    assert await daemon.stop() == 0


async def test_the_tokenizers_files_come_as_a_zip_with_a_digest(tmp_path: Path) -> None:
    from smg_grpc_proto.generated import common_pb2

    (tmp_path / "tokenizer.json").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "model.safetensors").write_text("weights")
    (tmp_path / "tokenizer_config.json").symlink_to(tmp_path / "nowhere")
    async with working(folder=tmp_path) as worker:
        call = worker.stub.GetTokenizer(common_pb2.GetTokenizerRequest())
        chunks = [chunk async for chunk in call]
    archive = b"".join(chunk.data for chunk in chunks)
    assert zipfile.ZipFile(io.BytesIO(archive)).namelist() == ["tokenizer.json"]
    assert chunks[-1].sha256 == hashlib.sha256(archive).hexdigest()
    assert not any(chunk.sha256 for chunk in chunks[:-1])


async def test_what_is_not_built_is_unimplemented() -> None:
    async with working() as worker:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.stub.Embed(worker.pb.EmbedRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def flush() -> Any:
    from smg_grpc_proto.generated import common_pb2

    return common_pb2.FlushCacheRequest()


async def cached_tokens(worker: Worker) -> tuple[int, int]:
    """What is found of a prompt over the gateway, and by who comes over our own protocol."""
    (*_, theirs) = await worker.ask(*PROMPT, max_tokens=1)
    _, _, events = await collect(worker.run.generation.Generate(prompt_of(*PROMPT, max_tokens=1)))
    return theirs.complete.cached_tokens, events[-1].finish.usage.cached_tokens


async def test_flush_drops_what_the_gateways_users_stored_and_nobody_elses() -> None:
    async with working() as worker:
        assert await cached_tokens(worker) == (0, 0)
        found = await cached_tokens(worker)
        assert all(found)
        answer = await worker.stub.FlushCache(flush())
        assert answer.success and not answer.message.startswith("0 nodes")
        assert await cached_tokens(worker) == (0, found[1])


async def test_a_pool_that_others_share_is_not_flushed() -> None:
    together = {"pool": "us"}
    async with working(principals={"gateway": together, "local": together}) as worker:
        await cached_tokens(worker)
        answer = await worker.stub.FlushCache(flush())
        assert not answer.success and "others" in answer.message
        assert all(await cached_tokens(worker))


async def test_a_drain_ends_what_runs_and_nothing_of_the_protocol_keeps_it_waiting() -> None:
    from smg_grpc_proto.generated import common_pb2

    async with working() as worker:
        call = worker.stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())
        await anext(aiter(call))
        began = asyncio.get_running_loop().time()
        worker.run.daemon.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert reason_of(caught.value) == ("UNAVAILABLE", "DRAINING")
        assert asyncio.get_running_loop().time() - began < 2.0


async def test_clients_of_the_other_listeners_do_not_find_the_protocol_there() -> None:
    async with working() as worker:
        stub: Any = worker.run.channel.unary_unary(
            "/vllm.grpc.engine.VllmEngine/HealthCheck", lambda _: b"", lambda data: data
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(None)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_off_by_default() -> None:
    async with running() as run:
        assert run.daemon.gateway_address is None
