"""`sapwood demo`: eight clients, one model, over real gRPC, and a report of what was measured."""

from daemon.demo.command import main

__all__ = ["main"]
