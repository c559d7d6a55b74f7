"""Whether spans are exported: where the environment names a collector, and the extra is there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sapwood.daemon.telemetry.spans import Spans

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OURS = "http/protobuf"
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

_log = logging.getLogger(__name__)


def spans_from(environ: Mapping[str, str]) -> Spans | None:
    """None where nobody asked for spans, or, with a line in the log, where they cannot be sent."""
    if not any(environ.get(name) for name in _ENDPOINTS):
        return None
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _OURS)
    if protocol != _OURS:
        _log.warning("no spans are exported: %r is asked for, and %s is served", protocol, _OURS)
        return None
    if not _installed():
        _log.warning('no spans are exported: they need pip install "sapwood[otel]"')
        return None
    from sapwood.daemon.telemetry.spans import Spans

    return Spans()


def _installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # a package that they would lie in
        return False
