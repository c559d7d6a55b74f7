"""GenerationService: one coroutine per RPC that is built.

- Errors are raised as Refused; the boundary turns them into statuses.
- Whatever ends a handler (reply complete, cancel, disconnect, deadline, a blocked write) passes its
  `finally`, which closes the mailbox and tells the core unless the core ended the sequence itself.
- grpc.aio raises different things for a client that goes; nothing here depends on which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.candidates import pump_all
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.mailbox import Mailbox, ReplyEvent, SentEvent
from sapwood.daemon.rpc.principals import Principal
from sapwood.daemon.rpc.quotas import Stake
from sapwood.daemon.rpc.responses import response_of
from sapwood.daemon.rpc.rules import RESUME_RULES, Bounds, check
from sapwood.daemon.telemetry.calls import GenerationRecord
from sapwood.scheduler.events import Cancel, Effect, Resumed, Submit
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.scheduler.session_events import ResumeReply, SessionKey
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import model_pb2

# Of one event, which reply's it is, and how long the request waited for its principal's quotas, in
# seconds.
Write = Callable[[SentEvent, int, float], Awaitable[None]]

_NUMERICS = {"fast": pb.NUMERICS_FAST, "strict": pb.NUMERICS_STRICT}
_SELF_CHECKS = {
    "off": model_pb2.SELF_CHECK_OFF,
    "count": model_pb2.SELF_CHECK_COUNT,
    "stop": model_pb2.SELF_CHECK_STOP,
}


class GenerationService:
    """Text and tokens of the one loaded model."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def behaviours(self) -> dict[str, Behaviour]:
        """By method; those of the contract that are missing answer UNIMPLEMENTED."""
        return {
            "Generate": self._generate,
            "Tokenize": self._tokenize,
            "Detokenize": self._detokenize,
            "GetModel": self._get_model,
        }

    async def _generate(self, request: pb.GenerateRequest, call: Call) -> None:
        async def write(event: SentEvent, candidate: int, waited_s: float) -> None:
            await call.write(response_of(event, candidate, waited_s))

        await self.reply(request, call, write)

    async def reply(self, request: pb.GenerateRequest, call: Call, write: Write) -> None:
        """Its replies, for whichever contract it is written in. Raises Refused."""
        deadline = self._gate.deadline(call)
        call.record.is_chat = request.HasField("messages")
        with self._gate.accounts.stake(call.principal) as stake:
            with self._counting(deadline):
                admit = self._admit_resume if request.HasField("resume") else self._admit
                command = await admit(request, deadline, call.principal, stake)
                self._gate.enter()  # again: a drain may have begun meanwhile
            call.record.model = self._gate.card.name
            if isinstance(command, Submit):
                record = GenerationRecord(command.request.id, stake.waited_s, command.request)
            else:
                record = GenerationRecord(command.id, stake.waited_s)
            call.record.generation = record
            await self._pump(command, deadline, stake, record, write)

    async def _pump(
        self,
        command: Submit | ResumeReply,
        deadline: float,
        stake: Stake,
        generation: GenerationRecord,
        write: Write,
    ) -> None:
        def observe(effect: Effect) -> None:
            stake.observe(effect)
            generation.observe(effect)

        ids = [row.id for row in command.request.rows] if isinstance(command, Submit) else []
        opened = self._gate.mailboxes.open
        mailboxes = [opened(id, observe) for id in ids or [generation.id]]
        self._gate.engine.send(command)

        async def write_event(event: ReplyEvent, candidate: int) -> None:
            if isinstance(event, Resumed):
                await self._replay(event, stake, write)
            else:
                await write(event, candidate, stake.waited_s)

        why: CancelReason | None = None
        try:
            await pump_all(mailboxes, write_event)
        except Refused as refusal:
            slow = refusal.reason is Reason.SLOW_READER
            why = CancelReason.SLOW_READER if slow else CancelReason.FAULT
            raise
        finally:
            for mailbox in mailboxes:
                self._leave(mailbox, why or self._why_gone(deadline))

    async def _replay(self, event: Resumed, stake: Stake, write: Write) -> None:
        if event.read is not None:
            await write(event.read, 0, stake.waited_s)
        for delta in event.deltas:
            if delta is None:
                await asyncio.sleep(0)  # it takes a while: others have their turns
            else:
                await write(delta, 0, stake.waited_s)

    async def _admit(
        self, request: pb.GenerateRequest, deadline: float, principal: Principal, stake: Stake
    ) -> Submit:
        self._gate.enter()
        rows = min(max(1, request.candidates), self._gate.limits.candidates_max)
        stake.enter(rows)  # before any work for who may have no more
        held = None
        if request.session:
            key = SessionKey(principal.name, request.session)
            held = await self._gate.held(key, "session")
        admitted = await self._gate.admission.admit(request, deadline, principal, held)
        await stake.turn(len(admitted.prompt), rows * admitted.max_tokens)
        return Submit(admitted)

    async def _admit_resume(
        self, request: pb.GenerateRequest, deadline: float, principal: Principal, stake: Stake
    ) -> ResumeReply:
        self._gate.enter()
        check(request, RESUME_RULES, Bounds(self._gate.limits, self._gate.card.facts))
        key = SessionKey(principal.name, request.resume.session)
        held = await self._gate.held(key, "resume.session")
        stake.enter(replaces=held.view.busy)
        await stake.turn(0, held.reply_tokens_left)
        return ResumeReply(self._gate.admission.draw_id(), key, request.resume.from_token, deadline)

    @contextmanager
    def _counting(self, deadline: float) -> Iterator[None]:
        """Around what comes before the scheduler: who ends there is counted here."""
        try:
            yield
        except Refused as refusal:
            self._gate.turn_away(Outcome.REJECTED, refusal.reason)
            raise
        except asyncio.CancelledError:
            self._gate.turn_away(self._why_gone(deadline).outcome)
            raise
        except Exception:  # a bug of ours, which the boundary answers
            self._gate.turn_away(Outcome.FAILED)
            raise

    def _leave(self, mailbox: Mailbox, reason: CancelReason) -> None:
        self._gate.mailboxes.close(mailbox)
        if not mailbox.settled:
            self._gate.engine.send(Cancel(mailbox.id, reason))

    async def _tokenize(self, request: pb.TokenizeRequest, _call: Call) -> pb.TokenizeResponse:
        self._gate.enter()
        return pb.TokenizeResponse(token_ids=await self._gate.admission.tokenize(request))

    async def _detokenize(
        self, request: pb.DetokenizeRequest, _call: Call
    ) -> pb.DetokenizeResponse:
        self._gate.enter()
        return pb.DetokenizeResponse(text=await self._gate.admission.detokenize(request.token_ids))

    async def _get_model(self, _request: pb.GetModelRequest, _call: Call) -> pb.GetModelResponse:
        self._gate.enter()
        card = self._gate.card
        return pb.GetModelResponse(
            name=card.name,
            family=card.family,
            fingerprint=card.fingerprint.hex(),
            context_tokens_max=card.facts.context_tokens_max,
            vocabulary_size=card.facts.vocabulary,
            eos_token_ids=sorted(card.facts.eos_token_ids),
            drafter=card.drafter,
            quantization=card.quantization,
            numerics=_NUMERICS[card.numerics],
            device=card.device,
            self_check=_SELF_CHECKS[card.self_check],
        )

    def _why_gone(self, deadline: float) -> CancelReason:
        """A client whose deadline passes cancels at about that time, by its own clock."""
        late = time.monotonic() >= deadline - self._gate.limits.deadline_slack_s
        return CancelReason.DEADLINE if late else CancelReason.CANCELLED
