"""Metrics that are there before a model is: the process, what it serves, and how RPCs end.

- `sapwood_build_info`, `sapwood_uptime_seconds`, `sapwood_model_loading` and `sapwood_rpcs_total`
  from the first scrape on; what tells of the model once it is loaded.
- `sapwood_rpcs_total` has a method's OK from the first scrape on, and another code from its first
  time on: all of them would be hundreds of zeros.
- `process_*` are named as every exporter names them. /proc tells them; where there is none, what
  Python knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sapwood import __version__
from sapwood.daemon.http.families import PREFIX, gauge
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.telemetry.telemetry import Telemetry

_STARTED_AT = time.time()


def process(gate: Gate) -> Iterator[Metric]:
    """What the daemon is and does, whether it serves or not."""
    yield _info("build", "The version that runs.", {"version": __version__})
    uptime_s = time.monotonic() - gate.telemetry.began_at
    yield gauge("uptime_seconds", "Since the daemon began to start.", uptime_s)
    yield gauge("model_loading", "1 until the model is loaded.", gate.loading)
    yield from _model(gate)
    yield _rpcs(gate.telemetry)


def _model(gate: Gate) -> Iterator[Metric]:
    card = gate.loaded_card
    if card is None:
        return
    told = {"name": card.name, "family": card.family, "fingerprint": card.fingerprint.hex()}
    yield _info("model", "The model that is loaded.", told)
    if card.drafter:
        yield _info("drafter", "The model that drafts for it.", {"name": card.drafter})


def _rpcs(telemetry: Telemetry) -> Metric:
    text = "RPCs that ended, by method and status."
    family = CounterMetricFamily(f"{PREFIX}rpcs", text, labels=["method", "code"])
    for (method, code), count in sorted(telemetry.ended.items()):
        family.add_metric([method, code], count)
    return family


def _info(name: str, text: str, labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{name}_info", text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


class ProcessMetrics(Collector):
    """prometheus_client's own where /proc is, else processor time and the time of the start."""

    def __init__(self) -> None:
        self._proc = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        """Collector.collect."""
        told = list(self._proc.collect())
        yield from told or _without_proc()


def _without_proc() -> Iterator[Metric]:
    text = "Total user and system CPU time spent in seconds."
    yield CounterMetricFamily("process_cpu_seconds", text, value=time.process_time())
    text = "Start time of the process since unix epoch in seconds."
    yield GaugeMetricFamily("process_start_time_seconds", text, value=_STARTED_AT)
