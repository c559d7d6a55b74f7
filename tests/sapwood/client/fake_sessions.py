"""SessionService of the daemon that plays a script: every call is answered, or refused as busy."""

from __future__ import annotations

from typing import Any

import grpc

from sapwood.v1 import session_pb2 as pb
from sapwood.v1 import session_pb2_grpc

Context = grpc.ServicerContext


class FakeSessions(session_pb2_grpc.SessionServiceServicer):
    def _answer(self, context: Context) -> None:
        """Notes who asks, or refuses."""
        raise NotImplementedError

    def CreateSession(self, request: Any, context: Context) -> pb.CreateSessionResponse:
        self._answer(context)
        return pb.CreateSessionResponse(session=pb.Session(name=request.name or "drawn"))

    def GetSession(self, request: Any, context: Context) -> pb.GetSessionResponse:
        self._answer(context)
        return pb.GetSessionResponse(session=pb.Session(name=request.name))

    def ListSessions(self, request: Any, context: Context) -> pb.ListSessionsResponse:
        """One a page."""
        self._answer(context)
        name = request.page_token or "a"
        token = "" if name == "b" else "b"
        return pb.ListSessionsResponse(sessions=[pb.Session(name=name)], next_page_token=token)

    def DeleteSession(self, request: Any, context: Context) -> pb.DeleteSessionResponse:
        self._answer(context)
        return pb.DeleteSessionResponse()

    def ForkSession(self, request: Any, context: Context) -> pb.ForkSessionResponse:
        self._answer(context)
        return pb.ForkSessionResponse(session=pb.Session(name=request.new_name))

    def RollbackSession(self, request: Any, context: Context) -> pb.RollbackSessionResponse:
        self._answer(context)
        return pb.RollbackSessionResponse(session=pb.Session(tokens=request.to_token))
