"""The scorer's Prometheus metrics. Labels are bounded: routes, codes, statuses and model versions, never a key or a path.

What every request and batch has to say is noted, and told to Prometheus together a little later: an observation costs it two
locks and half a dozen calls, and a request has seven.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter as Tally
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.scorer import Prediction, Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_AGE = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0)


SETTLE_S = 0.05
"""How much later, at most, what was noted is told."""


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def observe_all(self, values: Iterable[float]) -> None:
        """Do as ``observe`` for each value, with one change per bucket."""
        values = list(values)
        self._raise_if_not_observable()
        if values:
            self._sum.inc(sum(values))
        for place, count in Tally(bisect_left(self._upper_bounds, value) for value in values).items():
            self._buckets[place].inc(count)


class _Batch(NamedTuple):
    """What a batch had to say; ``age`` in seconds, None where the store did not say."""

    timings: Timings
    rows: int
    model: str
    age: float | None
    statuses: dict[str, int]


class ScorerMetrics:
    """One registry of its own, so that several scorers in one process don't collide."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        prefix = "featurestore_scorer"

        def seconds(name: str, text: str, labels: tuple[str, ...] = ()) -> BulkHistogram:
            return BulkHistogram(f"{prefix}_{name}_seconds", text, labels, buckets=_SECONDS, registry=self._registry)

        self._requests = Counter(f"{prefix}_requests", "Answered requests.", ("route", "code"), registry=self._registry)
        self._total = seconds(
            "request",
            "From the request's head to its answer handed over; scoring routes, without what was shed.",
            ("route",),
        )
        self._lookup = seconds("lookup", "Until the store had answered, of one batch.")
        self._decode = seconds("decode", "From the store's answer to the model's matrix, of one batch.")
        self._model = seconds("model", "Model run of one batch.")
        self._batch = BulkHistogram(
            f"{prefix}_batch_rows", "Rows in one batch.", buckets=_ROWS, registry=self._registry
        )
        self._age = BulkHistogram(
            f"{prefix}_freshness_seconds",
            "Time of the lookup minus complete_through, of one batch.",
            ("model",),
            buckets=_AGE,
            registry=self._registry,
        )
        self._unknown_age = Counter(
            f"{prefix}_freshness_unknown",
            "Batches of which the store did not say complete_through.",
            ("model",),
            registry=self._registry,
        )
        self._statuses = Counter(
            f"{prefix}_feature_values",
            "Feature values served, by status.",
            ("model", "status"),
            registry=self._registry,
        )
        self._shed = Counter(f"{prefix}_shed", "Requests answered 429.", ("route",), registry=self._registry)
        self._queue = Gauge(
            f"{prefix}_in_flight",
            "Scoring requests let in and not answered yet, when the last batch was scored.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._waiting = Gauge(
            f"{prefix}_waiting",
            "Requests that no batch had taken yet, when the last batch was scored.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._info = Gauge(
            f"{prefix}_model_info",
            "1 for each version that is served.",
            ("model", "version", "service", "service_fingerprint"),
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._ready = Gauge(
            f"{prefix}_ready",
            "1 when every model and the store are ready.",
            registry=self._registry,
            multiprocess_mode="livemin",
        )
        self._swaps = Counter(
            f"{prefix}_model_changes", "Changes of a model that the aliases asked for.", ("model", "outcome"),
            registry=self._registry,
        )  # fmt: skip
        self._challenged = Counter(
            f"{prefix}_challenger_rows", "Rows in the shadow, and batches that a challenger failed.", ("outcome",),
            registry=self._registry,
        )  # fmt: skip
        self._logged = Counter(
            f"{prefix}_prediction_log_records", "Predictions logged, or dropped and why.", ("outcome",),
            registry=self._registry,
        )  # fmt: skip
        self._shown: set[tuple[str, str, str, str]] = set()
        self._counted: dict[tuple[str, int], Counter] = {}
        self._timed = {route: self._total.labels(route) for route in ("infer", "score", "lookup")}
        self._seen = (0, 0)
        self._noted_batches: list[_Batch] = []
        self._noted_answers: list[tuple[str, int, float]] = []
        self._is_due = False

    def count_request(self, route: str, code: int) -> None:
        """Count an answer."""
        self._answers(route, code).inc()

    def note_answer(self, route: str, code: int, seconds: float) -> None:
        """Count an answer of a scoring route, and record how many seconds it took in all; on an event loop."""
        self._noted_answers.append((route, code, seconds))
        self._settle_later()

    def _answers(self, route: str, code: int) -> Counter:
        found = self._counted.get((route, code))
        if found is None:
            found = self._counted[route, code] = self._requests.labels(route, str(code))
        return found

    def count_shed(self, route: str) -> None:
        """Count a request that was not let in."""
        self._shed.labels(route).inc()

    def show_queue(self, in_flight: int, waiting: int) -> None:
        """Show how many requests are in flight, and how many of them wait for a batch, once it is settled."""
        self._seen = in_flight, waiting

    def observe_request(self, route: str, seconds: float) -> None:
        """Record how long a scoring request took in all."""
        self._timed[route].observe(seconds)

    def note_batch(self, predictions: list[Prediction], timings: Timings) -> None:
        """Record one batch; on an event loop."""
        if not predictions:
            return
        first = predictions[0]
        age = None if first.complete_through is None else max(first.at - first.complete_through, 0) / 1e6
        statuses: dict[str, int] = {}
        for one in predictions:
            for status, count in one.tally.items():
                statuses[status] = statuses.get(status, 0) + count
        self._noted_batches.append(_Batch(timings, len(predictions), first.model, age, statuses))
        self._settle_later()

    def _settle_later(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(SETTLE_S, self.settle)

    def settle(self) -> None:
        """Tell Prometheus what was noted; on the event loop, or where none runs."""
        self._is_due = False
        batches, self._noted_batches = self._noted_batches, []
        answers, self._noted_answers = self._noted_answers, []
        self._queue.set(self._seen[0])
        self._waiting.set(self._seen[1])
        for (route, code), count in Tally((route, code) for route, code, _ in answers).items():
            self._answers(route, code).inc(count)
        for name in {route for route, _, _ in answers}:
            self._timed[name].observe_all(took for route, code, took in answers if route == name and code != 429)
        self._lookup.observe_all(one.timings.lookup for one in batches)
        self._decode.observe_all(one.timings.decode for one in batches)
        self._model.observe_all(one.timings.model for one in batches)
        self._batch.observe_all(one.rows for one in batches)
        for name in {one.model for one in batches}:
            mine = [one for one in batches if one.model == name]
            ages = [one.age for one in mine if one.age is not None]
            if ages:
                self._age.labels(name).observe_all(ages)
            if len(ages) < len(mine):
                self._unknown_age.labels(name).inc(len(mine) - len(ages))
            statuses: Tally[str] = Tally()
            for one in mine:
                statuses.update(one.statuses)
            for status, count in statuses.items():
                self._statuses.labels(name, status).inc(count)

    def count_change(self, model: str, outcome: str) -> None:
        """Count a swap of a model, or its refusal."""
        self._swaps.labels(model, outcome).inc()

    def count_challenged(self, outcome: str, rows: int) -> None:
        """Count rows in the shadow: scored, dropped or failed; and batches a challenger did not answer for: refused."""
        self._challenged.labels(outcome).inc(rows)

    def count_logged(self, outcome: str, rows: int) -> None:
        """Count records of the prediction log: logged, or why they were dropped."""
        self._logged.labels(outcome).inc(rows)

    def show_models(self, manifests: Iterable[ModelManifest]) -> None:
        """Show the served versions; those that were shown before and are served no more become 0."""
        served = {(one.name, str(one.version), one.service, one.service_fingerprint) for one in manifests}
        for labels in self._shown - served:
            self._info.labels(*labels).set(0)
        for labels in served:
            self._info.labels(*labels).set(1)
        self._shown |= served

    def show_ready(self, ready: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Show whether the scorer is ready."""
        self._ready.set(1 if ready else 0)

    def render(self) -> bytes:
        """Return the exposition text of this process."""
        self.settle()
        return _render(self._registry)


def render_all(folder: Path) -> bytes:
    """Return the exposition text of all processes that keep their metrics in a folder."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))
    return _render(registry)


def _render(registry: CollectorRegistry) -> bytes:
    render: Callable[[CollectorRegistry], bytes] = generate_latest
    return render(registry)
