"""What a recording says in place of tokens, roots, principals and sessions.

- Equal things stay equal, and nothing else of them is left.
- The permutation of ids is drawn here and never written.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace

from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.events import Request
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.plan import Admit, StepPlan
from sapwood.scheduler.sampling import Sampling
from sapwood.scheduler.session_events import (
    ForkSession,
    ResumeReply,
    SessionCommand,
    SessionKey,
    SessionTurn,
)

HELD = "held"  # stands for any constraint: to the core all are alike


class Disguise:
    """A permutation of the vocabulary, numbers of roots and principals: known to nobody else."""

    def __init__(self, vocabulary: int) -> None:
        self._ids = list(range(vocabulary))
        secrets.SystemRandom().shuffle(self._ids)
        self._roots: dict[bytes, int] = {}
        self._principals: dict[str, int] = {}
        self._sessions: dict[SessionKey, SessionKey] = {}
        self.end = vocabulary

    def ids(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """Other ids, equal where they were."""
        return tuple(self._ids[token] for token in tokens)

    def request(self, request: Request) -> Request:
        """The same to the core, but for what ends its text."""
        turn = request.session
        return replace(
            request,
            root=self.root(request.root),
            principal=self.principal(request.principal),
            session=None if turn is None else SessionTurn(self.key(turn.key), turn.revision),
            prompt=self.ids(request.prompt),
            sampling=self._sampling(request.sampling),
            forks=tuple(replace(fork, noise_key=0) for fork in request.forks),
            stop=(),
            stop_token_ids=frozenset(),
            ignore_eos=False,
            constraint=None if request.constraint is None else HELD,
        )

    def root(self, root: bytes) -> bytes:
        """A number in its place."""
        return b"%d" % self._roots.setdefault(root, len(self._roots))

    def principal(self, name: str) -> str:
        """Likewise."""
        return str(self._principals.setdefault(name, len(self._principals)))

    def key(self, key: SessionKey) -> SessionKey:
        """Another one, whose names are numbers."""
        if key not in self._sessions:
            name = str(len(self._sessions))
            self._sessions[key] = SessionKey(self.principal(key.owner), name)
        return self._sessions[key]

    def session_command(
        self, command: SessionCommand | ResumeReply
    ) -> SessionCommand | ResumeReply:
        """The same to the core."""
        if isinstance(command, ForkSession):
            made = self.key(SessionKey(command.key.owner, command.new_name))
            command = replace(command, new_name=made.name)
        return replace(command, key=self.key(command.key))

    def facts(self, facts: ModelFacts) -> ModelFacts:
        """A model with one more token, which alone ends a reply."""
        return replace(
            facts,
            vocabulary=self.end + 1,
            eos_token_ids=frozenset({self.end}),
            control_tokens=ControlTokens(),
        )

    def plan(self, plan: StepPlan) -> StepPlan:
        """The plan that a core which was given disguised commands makes."""
        return replace(
            plan,
            admits=tuple(self._admit(admit) for admit in plan.admits),
            decodes=tuple(replace(d, token=self._ids[d.token]) for d in plan.decodes),
            prefills=tuple(replace(p, tokens=self.ids(p.tokens)) for p in plan.prefills),
        )

    def _admit(self, admit: Admit) -> Admit:
        sampling = self._sampling(admit.sampling)
        prompt, reply = self.ids(admit.prompt), self.ids(admit.reply)
        return replace(admit, prompt=prompt, reply=reply, sampling=sampling)

    def _sampling(self, sampling: Sampling) -> Sampling:
        biases = tuple((self._ids[id], bias) for id, bias in sampling.logit_bias)
        return replace(sampling, noise_key=0, logit_bias=biases)
