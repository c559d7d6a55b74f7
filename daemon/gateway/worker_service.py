"""vllm.grpc.engine.VllmEngine: the daemon as a worker behind a gateway.

- One contract beside ours, over the same door, queue, core and tree: a request becomes ours
  (requests.py) and passes what every other one does.
- Abort ends the stream at once, with what was said: a gateway keeps the stream of a client that
  hung up open, and would have the daemon go on for nobody. A message that is on its way is not
  interrupted: while gRPC has it, it takes no other, and the last one would be lost.
- Ids of requests are the gateway's. They are never logged, and two requests may have the same one.
- FlushCache drops what the gateway's own users stored, and nobody else's.
- What the contract has and the daemon has not (Embed, profiles) is UNIMPLEMENTED.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
from anyio import to_thread
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import common_pb2 as common

from sapwood import __version__
from sapwood.daemon.gateway.blocks import BLOCK
from sapwood.daemon.gateway.kv_events import KvEvents
from sapwood.daemon.gateway.loads import LoadMeter
from sapwood.daemon.gateway.replies import WorkerReply
from sapwood.daemon.gateway.requests import our_request
from sapwood.daemon.gateway.tokenizer_files import tokenizer_chunks, tokenizer_zip
from sapwood.daemon.rpc import boundary
from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.entrance import Entrance
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.generation_service import GenerationService
from sapwood.daemon.rpc.mailbox import SentEvent
from sapwood.scheduler.events import Clear, Cleared, Progress
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.sampling import SamplingDefaults
from sapwood.v1 import generation_pb2 as pb

WORKER = boundary.service(vllm.DESCRIPTOR, "VllmEngine")


class _Stream:
    """One that is being written, and can be aborted between two messages."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self._is_writing = self._is_aborted = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around a message; what was aborted meanwhile ends after it."""
        self._is_writing = True
        yield
        self._is_writing = False
        if self._is_aborted:
            self.scope.cancel()

    def abort(self) -> None:
        self._is_aborted = True
        if not self._is_writing:
            self.scope.cancel()


class WorkerService:
    """The one loaded model, for gateways."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._generation = GenerationService(gate)
        self._replies = Entrance(gate.limits, gate.limits.rpcs_max, gate.count_refused)
        self._running: defaultdict[str, set[_Stream]] = defaultdict(set)
        self._meter = LoadMeter(gate.limits.slots_max)
        self._since = time.monotonic()
        self._received_at = 0.0
        self._zipping = anyio.Lock()

    def behaviours(self) -> dict[str, Behaviour]:
        """By method; the others of the contract answer UNIMPLEMENTED."""
        return {
            "Generate": self._generate,
            "Abort": self._abort,
            "HealthCheck": self._health_check,
            "GetModelInfo": self._get_model_info,
            "GetServerInfo": self._get_server_info,
            "GetLoads": self._get_loads,
            "FlushCache": self._flush_cache,
            "GetTokenizer": self._get_tokenizer,
            "SubscribeKvEvents": self._subscribe_kv_events,
        }

    async def _generate(self, given: Any, call: Call) -> None:
        self._received_at = time.time()
        count = min(max(1, given.sampling_params.n), self._gate.limits.candidates_max)
        replies = [WorkerReply(given, index) for index in range(count)]

        async def write(event: SentEvent, candidate: int, _waited_s: float) -> None:
            # The prompt is read once, and counted in each reply, as the protocol has it.
            told = replies if isinstance(event, Progress) else [replies[candidate]]
            for response in [reply.said(event) for reply in told]:
                if response is not None:
                    with stream.writing():
                        await call.write(response)

        with self._replies.place(f"{WORKER.full_name}.Generate"):
            stream = _Stream()
            same = self._running[given.request_id]
            same.add(stream)
            try:
                with stream.scope:
                    await self._generation.reply(self._ours(given), call, write)
            finally:
                same.discard(stream)
                if not same:
                    self._running.pop(given.request_id, None)
        for reply in replies if stream.scope.cancelled_caught else ():
            if not reply.ended:
                await call.write_in_time(reply.aborted(), self._gate.limits.write_s_max)

    def _ours(self, given: Any) -> pb.GenerateRequest:
        """Counted like every other refusal. Raises Refused."""
        try:
            return our_request(given, self._gate.limits)
        except Refused as refusal:
            self._gate.turn_away(Outcome.REJECTED, refusal.reason)
            raise

    async def _abort(self, given: Any, _call: Call) -> Any:
        """Of who is gone already nobody knows: no error."""
        for id in given.request_ids:
            for stream in self._running.get(id, ()):
                stream.abort()
        return vllm.AbortResponse()

    async def _flush_cache(self, _given: Any, call: Call) -> Any:
        """What pins keep, and who runs holds, stays. Answers when files are gone, too."""
        self._gate.enter()
        if call.principal.pooled:
            return common.FlushCacheResponse(success=False, message="others share its pool")
        id = self._gate.admission.draw_id()
        root = self._gate.admission.root_of(call.principal)
        cleared = await self._gate.ordered(Clear(id, root=root), id, Cleared)
        said = f"{cleared.nodes} nodes, {cleared.freed_bytes} bytes"
        return common.FlushCacheResponse(success=True, message=said)

    async def _health_check(self, _given: Any, _call: Call) -> Any:
        closed_by = self._gate.closed_by
        message = "serving" if closed_by is None else closed_by().message
        return vllm.HealthCheckResponse(healthy=closed_by is None, message=message)

    async def _get_model_info(self, _given: Any, _call: Call) -> Any:
        self._gate.enter()
        card = self._gate.card
        facts, folder = card.facts, card.folder
        return vllm.GetModelInfoResponse(
            model_path="" if folder is None else str(folder),
            tokenizer_path="" if folder is None else str(folder),
            served_model_name=card.name,
            is_generation=True,
            max_context_length=facts.context_tokens_max,
            max_req_input_len=facts.context_tokens_max - 1,
            vocab_size=facts.vocabulary,
            model_type="gemma4",
            eos_token_ids=sorted(facts.eos_token_ids),
            default_sampling_params_json=_defaults_json(card.defaults),
        )

    async def _get_server_info(self, _given: Any, _call: Call) -> Any:
        self._gate.enter()
        return vllm.GetServerInfoResponse(
            active_requests=len(self._gate.mailboxes),
            last_receive_timestamp=self._received_at,
            uptime_seconds=time.monotonic() - self._since,
            server_type="sapwood",
            data_parallel_size=1,
            block_size=BLOCK,
            max_num_seqs=self._gate.limits.slots_max,
        )

    async def _get_loads(self, _given: Any, _call: Call) -> Any:
        self._gate.enter()
        published = self._gate.engine.published
        assert published is not None, "the model is loaded"
        load = self._meter.read(published.stats, time.monotonic())
        return vllm.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(),
            version=__version__,
            dp_rank_count=1,
            loads=[self._meter.scheduler_load(load)],
        )

    async def _get_tokenizer(self, _given: Any, call: Call) -> None:
        self._gate.enter()
        folder = self._gate.card.folder
        if folder is None:
            raise Refused(Reason.UNSUPPORTED, "the tokenizer is in no folder")
        async with self._zipping:  # one at a time: it is read and packed anew for each
            archive = await to_thread.run_sync(tokenizer_zip, folder)
        for chunk in tokenizer_chunks(archive):
            await call.write_in_time(chunk, self._gate.limits.write_s_max)

    async def _subscribe_kv_events(self, _given: Any, call: Call) -> None:
        self._gate.enter()
        await KvEvents(self._gate, call).run()


def _defaults_json(defaults: SamplingDefaults) -> str:
    """What a request gets that says nothing, as a gateway fills it in: where it is not off."""
    off = SamplingDefaults()
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    told = {name: getattr(defaults, name) for name in names}
    told = {name: value for name, value in told.items() if value != getattr(off, name)}
    return json.dumps({"temperature": defaults.temperature, **told})
