"""A job's Prometheus endpoint, on loopback beside its driver. Labels are bounded: fates, sources, queries, phases; never a key.

featurestore_job_records_total{fate}             as ``totals`` of the status: consumed, applied, fenced, quarantined, late, ...
featurestore_job_lag_records{source}             records that Kafka has and the online store has not
featurestore_job_complete_age_seconds{source}    now minus complete_through; absent while that is not known
featurestore_job_batch_rows{query}               records of the last micro-batch
featurestore_job_batch_seconds{query, phase}     what its phases took, as Spark reports them
featurestore_job_state{state}                    1 for the present state
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from featurestore.errors import JobError
from featurestore.timeline import SECOND, Clock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from featurestore.jobs.report import Reporter

_PREFIX = "featurestore_job"


class JobCollector(Collector):
    """Reads a reporter when it is asked.

    Args:
        reporter: What the job reports.
        clock: Tells how old ``complete_through`` is.
    """

    def __init__(self, reporter: Reporter, clock: Clock | None = None) -> None:
        self._reporter, self._clock = reporter, clock or SystemClock()

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        report = self._reporter
        records = CounterMetricFamily(f"{_PREFIX}_records", "What became of the records.", labels=["fate"])
        for fate, count in report.totals.items():
            if fate != "took_us":
                records.add_metric([fate], count)
        yield records
        lag = GaugeMetricFamily(f"{_PREFIX}_lag_records", "Records that are not applied yet.", labels=["source"])
        age = GaugeMetricFamily(f"{_PREFIX}_complete_age_seconds", "Age of complete_through.", labels=["source"])
        for source, each in report.sources.items():
            lag.add_metric([source], each["lag"])
            if each["complete_through"] is not None:
                age.add_metric([source], (self._clock.now() - each["complete_through"]) / SECOND)
        yield lag
        yield age
        rows = GaugeMetricFamily(f"{_PREFIX}_batch_rows", "Records of the last micro-batch.", labels=["query"])
        took = GaugeMetricFamily(
            f"{_PREFIX}_batch_seconds", "Phases of the last micro-batch.", labels=["query", "phase"]
        )
        for query, last in report.queries.items():
            if "duration_ms" in last:
                rows.add_metric([query], last["rows"])
                for phase, milliseconds in last["duration_ms"].items():
                    took.add_metric([query, phase], milliseconds / 1_000)
        yield rows
        yield took
        state = GaugeMetricFamily(f"{_PREFIX}_state", "1 for the present state.", labels=["state"])
        state.add_metric([report.state], 1)
        yield state


@contextmanager
def serve_metrics(reporter: Reporter, port: int) -> Iterator[int]:
    """Serve the metrics at http://127.0.0.1:PORT/metrics; gives the port, a free one for 0.

    Raises:
        JobError: The port is taken.
    """
    registry = CollectorRegistry()
    registry.register(JobCollector(reporter))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise JobError(
            f"metrics port {port} on 127.0.0.1: {error.strerror}.", hint="choose another with --metrics-port."
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
