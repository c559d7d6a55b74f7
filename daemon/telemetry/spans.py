"""Spans of OpenTelemetry for each request. Imported where an exporter is set (tracing.py) only.

- Made when a request has ended, from what its record has: nothing is measured for them, and nothing
  happens on the engine's thread. The SDK's own thread sends them, in batches, as OTLP over HTTP;
  what finds no collector is dropped there.
- A trace that the client has begun (`traceparent`) is continued, and its sampling kept.
- Names and attributes are those of the semantic conventions for generative AI; what these have no
  name for begins with `sapwood.`. No text of a prompt or a reply is in any.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from sapwood import __version__
from sapwood.daemon.telemetry.calls import CallRecord, GenerationRecord
from sapwood.daemon.telemetry.parts import parts_of_request
from sapwood.scheduler.outcomes import FinishReason

_Attributes = dict[str, AttributeValue]

_FINISH_REASONS = {FinishReason.LENGTH: "length"}  # the conventions' word for the others is stop


class Spans:
    """Of one daemon. Reads its settings from the environment, as OpenTelemetry names them."""

    def __init__(self) -> None:
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "sapwood"}
        resource = Resource.create({**named, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("sapwood", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def export(self, record: CallRecord) -> None:
        """A sink of Telemetry's. Gives the record its trace's id."""
        if not record.generates or record.ended_at is None:
            return
        at = _clock()
        parent = self._propagator.extract(record.trace_context)
        root = self._tracer.start_span(
            f"{_operation(record)} {record.model}".strip(),
            parent,
            SpanKind.SERVER,
            _request(record) | _reply(record),
            start_time=at(record.began_at),
        )
        if root.get_span_context().trace_flags.sampled:
            record.trace_id = format_trace_id(root.get_span_context().trace_id)
        inside = set_span_in_context(root, parent)
        for part in parts_of_request(record):
            span = self._tracer.start_span(
                part.name, inside, attributes=part.told, start_time=at(part.start)
            )
            span.end(at(part.end))
        if record.reason is not None:
            root.set_status(StatusCode.ERROR, record.reason.name)
        root.end(at(record.ended_at))

    def close(self) -> None:
        """Send what waits. Blocks for as long as the collector does."""
        self._provider.shutdown()


def _clock() -> Callable[[float], int]:
    """From the engine's clock to nanoseconds since 1970, as both stand now."""
    offset = time.time_ns() - time.monotonic_ns()
    return lambda seconds: offset + int(seconds * 1e9)


def _operation(record: CallRecord) -> str:
    return "chat" if record.is_chat else "text_completion"


def _request(record: CallRecord) -> _Attributes:
    service, _, method = record.method.partition("/")
    told: _Attributes = {
        "gen_ai.operation.name": _operation(record),
        "gen_ai.provider.name": "sapwood",
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "sapwood.request_id": record.id,
        "sapwood.principal": record.principal,
    }
    if record.generation is not None:
        told |= _settings(record.model, record.generation)
    return told


def _settings(model: str, generation: GenerationRecord) -> _Attributes:
    sampling = generation.sampling
    told: _Attributes = {
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": generation.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
    }
    return told


def _reply(record: CallRecord) -> _Attributes:
    told: _Attributes = {"sapwood.outcome": record.outcome.value}
    if record.reason is not None:
        told["error.type"] = record.reason.name
    generation = record.generation
    if generation is None:
        return told
    told |= {
        "gen_ai.response.id": record.id,
        "gen_ai.response.model": record.model,
        "gen_ai.usage.input_tokens": generation.prompt_tokens,
        "gen_ai.usage.output_tokens": generation.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": generation.cached_tokens,
    }
    if generation.finished is not None:
        reason = _FINISH_REASONS.get(generation.finished.reason, "stop")
        told["gen_ai.response.finish_reasons"] = [reason]
    return told
