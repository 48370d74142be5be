"""Families of Prometheus series: label children looked up once, whole batches counted by numpy, series that leave.

`prometheus_client`'s own `labels()` takes 5 to 7 µs each time; the lookup here a tenth of that. What is counted once a
batch for each of its payments goes into buckets in one call (`BatchHistogram`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

Child = TypeVar("Child")


class Labelled(Protocol):
    """What makes and removes children by their labels, in order."""

    def labels(self, *values: str) -> Any: ...
    def remove(self, *values: str) -> None: ...
    def collect(self) -> Iterable[Metric]: ...


class Family(Generic[Child]):
    """Series of one name with labels. All threads."""

    def __init__(self, name: str, labels: Sequence[str], made: Labelled) -> None:
        self.name, self.label_names = name, tuple(labels)
        self._made = made
        self._children: dict[tuple[str, ...], Child] = {}

    def labels(self, *values: str) -> Child:
        """The child of these labels, made at the first call."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._made.labels(*values)
        return child

    def remove(self, *values: str) -> None:
        """The series with these labels leaves, if it is there."""
        if self._children.pop(values, None) is not None:
            self._made.remove(*values)

    def forget(self, first: str, *, but: tuple[str, ...] | None = None) -> None:
        """Every series leaves whose first label is `first`; `but` stays."""
        for values in list(self._children):
            if values[0] == first and values != but:
                self.remove(*values)

    def collect(self) -> Iterable[Metric]:
        """As the registry collects it."""
        return self._made.collect()


class Value:
    """A number that is counted elsewhere, shown as a counter."""

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """The count by now. It falls only where a state goes back to an older one, as after a restart."""
        self.value = float(value)


class Buckets:
    """Counts of values by bucket. One thread adds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._list = list(bounds)
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self.counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self.sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}  # the last of each bucket

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._list, value)] += 1
        self.sum += value

    def observe_many(self, values: npt.NDArray[np.floating[Any]]) -> None:
        """Count every value of an array; NaN is not counted."""
        if not len(values):
            return
        total = float(values.sum())
        if math.isnan(total):
            values = values[~np.isnan(values)]
            total = float(values.sum())
        self.counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self.counts))
        self.sum += total

    def show(self, value: float, labels: Mapping[str, str], at_s: float) -> None:
        """Show an observed value, counted at `at_s` (epoch), as the example of its bucket. `labels`: names and values
        of 128 characters together at most, as OpenMetrics allows."""
        self._exemplars[bisect_left(self._list, value)] = Exemplar(dict(labels), value, at_s)

    def shown(self, bucket: int, end: str, count: float) -> tuple[str, float] | tuple[str, float, Exemplar]:
        """A bucket as prometheus_client takes it, with its example if it has one."""
        exemplar = self._exemplars.get(bucket)
        return (end, count) if exemplar is None else (end, count, exemplar)


class _Own(Collector, Generic[Child]):
    """What `prometheus_client` does not have, registered beside its own."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._known: dict[tuple[str, ...], Child] = {}

    def remove(self, *values: str) -> None:
        self._known.pop(values, None)


class _Totals(_Own[Value]):
    def labels(self, *values: str) -> Value:
        return self._known.setdefault(values, Value())

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in list(self._known.items()):
            family.add_metric(values, child.value)
        yield family


class _BatchHistograms(_Own[Buckets]):
    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__(name, text, labels)
        self._bounds = tuple(bounds)

    def labels(self, *values: str) -> Buckets:
        return self._known.setdefault(values, Buckets(self._bounds))

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        ends = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        for values, child in list(self._known.items()):
            counts = np.cumsum(child.counts).tolist()
            buckets = [child.shown(i, end, count) for i, (end, count) in enumerate(zip(ends, counts, strict=True))]
            family.add_metric(values, buckets, child.sum)
        yield family


class Families:
    """Makes families on one registry and knows them all."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self.all: list[Family[Any]] = []

    def counter(self, name: str, text: str, labels: Sequence[str]) -> Family[Counter]:
        """Counts by `inc`; `name` without `_total`, which is appended."""
        return self._kept(Family(name, labels, Counter(name, text, labels, registry=self._registry)))

    def gauge(self, name: str, text: str, labels: Sequence[str]) -> Family[Gauge]:
        """Shows what was `set` last."""
        return self._kept(Family(name, labels, Gauge(name, text, labels, registry=self._registry)))

    def histogram(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Family[Histogram]:
        """Counts by `observe`, from any thread."""
        made = Histogram(name, text, labels, registry=self._registry, buckets=bounds)
        return self._kept(Family(name, labels, made))

    def totals(self, name: str, text: str, labels: Sequence[str]) -> Family[Value]:
        """Counters whose value is `set`; `name` without `_total`, which is appended."""
        return self._own(name, labels, _Totals(name, text, labels))

    def batches(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Family[Buckets]:
        """Histograms that take arrays."""
        return self._own(name, labels, _BatchHistograms(name, text, labels, bounds))

    def forget(self, first: str) -> None:
        """Every series of every family leaves whose first label is `first`."""
        for family in self.all:
            family.forget(first)

    def _own(self, name: str, labels: Sequence[str], made: Any) -> Family[Any]:
        self._registry.register(made)
        return self._kept(Family(name, labels, made))

    def _kept(self, family: Family[Child]) -> Family[Child]:
        self.all.append(family)
        return family
