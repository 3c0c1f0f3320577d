"""The scorer's Prometheus metrics. Labels are bounded: routes, codes, statuses and model versions, never a key."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.scorer import Prediction, Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ScorerMetrics:
    """One registry of its own, so that several scorers in one process don't collide."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        prefix = "featurestore_scorer"
        self._requests = Counter(f"{prefix}_requests", "Answered requests.", ("route", "code"), registry=self._registry)
        self._total = Histogram(
            f"{prefix}_request_seconds",
            "From the first byte of the request to the answer handed over, scoring routes only.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._lookup = Histogram(
            f"{prefix}_lookup_seconds", "Lookup and decoding of one batch.", buckets=_SECONDS, registry=self._registry
        )
        self._model = Histogram(
            f"{prefix}_model_seconds", "Model run of one batch.", buckets=_SECONDS, registry=self._registry
        )
        self._batch = Histogram(f"{prefix}_batch_rows", "Rows in one batch.", buckets=_ROWS, registry=self._registry)
        self._statuses = Counter(
            f"{prefix}_feature_values",
            "Feature values served, by status.",
            ("model", "status"),
            registry=self._registry,
        )
        self._info = Gauge(
            f"{prefix}_model_info",
            "1 for each version that is served.",
            ("model", "version", "service", "service_fingerprint"),
            registry=self._registry,
        )
        self._ready = Gauge(f"{prefix}_ready", "1 when every model and the store are ready.", registry=self._registry)

    def count_request(self, route: str, code: int) -> None:
        """Count an answer."""
        self._requests.labels(route, str(code)).inc()

    def observe_request(self, route: str, seconds: float) -> None:
        """Record how long a scoring request took in all."""
        self._total.labels(route).observe(seconds)

    def observe_batch(self, predictions: list[Prediction], timings: Timings) -> None:
        """Record one batch; called on the worker thread."""
        self._lookup.observe(timings.lookup)
        self._model.observe(timings.model)
        self._batch.observe(len(predictions))
        if predictions:
            tally: Tally[str] = Tally()
            for one in predictions:
                tally.update(one.statuses.values())
            for status, count in tally.items():
                self._statuses.labels(predictions[0].model, status).inc(count)

    def show_models(self, manifests: Iterable[ModelManifest]) -> None:
        """Show the served versions."""
        self._info.clear()
        for one in manifests:
            self._info.labels(one.name, str(one.version), one.service, one.service_fingerprint).set(1)

    def show_ready(self, ready: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Show whether the scorer is ready."""
        self._ready.set(1 if ready else 0)

    def render(self) -> bytes:
        """Return the exposition text."""
        render: Callable[[CollectorRegistry], bytes] = generate_latest
        return render(self._registry)
