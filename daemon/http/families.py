"""Families of metrics under our prefix, from plain values: what prometheus_client asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from sapwood.scheduler.histogram import HistogramView

PREFIX = "sapwood_"
Buckets = list[tuple[str, float] | tuple[str, float, Exemplar]]


def gauge(name: str, text: str, value: float) -> Metric:
    """One value that goes up and down."""
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    """One count, `NAME_total`."""
    return CounterMetricFamily(PREFIX + name, text, value=value)


def labelled_counter(name: str, text: str, label: str, values: Mapping[Any, int]) -> Metric:
    """One count for each value of a label."""
    family = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def histogram(
    name: str, text: str, view: HistogramView, exemplars: Mapping[int, Exemplar] | None = None
) -> Metric:
    """exemplars: by the number of their bucket."""
    found, summed = buckets(view, exemplars or {})
    return HistogramMetricFamily(PREFIX + name, text, buckets=found, sum_value=summed)


def buckets(view: HistogramView, exemplars: Mapping[int, Exemplar]) -> tuple[Buckets, float]:
    """Prometheus buckets count everything up to their bound."""
    bounds = [*(str(float(bound)) for bound in view.bounds), "+Inf"]
    found: Buckets = []
    below = 0
    for index, (bound, count) in enumerate(zip(bounds, view.counts, strict=True)):
        below += count
        exemplar = exemplars.get(index)
        found.append((bound, below) if exemplar is None else (bound, below, exemplar))
    return found, view.total
