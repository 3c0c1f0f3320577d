"""What runs inside a materialize job: starts its queries, reports on them, and stops them in order.

The driver writes ``status.json`` into the job's directory, atomically, at least once a second:

    {"state": "starting" | "warming" | "running" | "stopped" | "failed",
     "queries": {"hot": {...last progress...}, "archive": {...}},
     "totals": {"consumed": n, "applied": n, "quarantined": n, "late": n, ...},
     "sources": {"SOURCE": {"lag": records not applied yet, "complete_through": "..."}},
     "updated_at": "...", "error": null | "..."}

SIGTERM and SIGINT end the current micro-batch and stop; the exit code is 0 then, and 1 when a query failed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import (
    BrokerUnavailableError,
    FeatureStoreError,
    OffsetsGoneError,
    OnlineError,
    OnlineStoreLostError,
)
from featurestore.events.broker import OffsetReader, ensure_topics, stamps_on_append, topic_ids
from featurestore.jobs.archive import ArchiveBatch, start_archive
from featurestore.jobs.checkpoint import ASYNCHRONOUS, SYNCHRONOUS
from featurestore.jobs.consumers import Consumers
from featurestore.jobs.counting import counter
from featurestore.jobs.hot import HotWorker, start_hot, warm_up
from featurestore.jobs.lease import Lease, LeaseKeeper, job_id, stored_names, who_is
from featurestore.jobs.metrics import serve_metrics
from featurestore.jobs.online_epoch import HotStart, ProgressWatch, begin_hot, progress_of
from featurestore.jobs.report import Reporter
from featurestore.jobs.resume import Resume
from featurestore.jobs.topics import TopicWatch
from featurestore.jobs.worker import by_topic, complete_through
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.timeline import SystemClock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyspark.sql import SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

    from featurestore.definitions.source import EventSource
    from featurestore.definitions.view import FeatureView

QUERIES = ("hot", "archive")
FRESHNESS = ("micro-batch", "realtime")
_TICK_S = 0.25


@dataclass(frozen=True)
class MaterializeSpec:
    """What a materialize job needs to know.

    Attributes:
        project: Namespace of the online store.
        views: The feature views to keep.
        online_url: The online store.
        offline: Root of the Delta tables.
        kafka: Kafka settings.
        checkpoints: Directory of the queries' progress logs.
        status_file: Where to report; None reports nothing.
        queries: Which queries to run, out of "hot" and "archive".
        archive_every: Trigger interval of the archive query.
        partitions: Partitions of topics that have to be created.
        realtime: The command of a real-time consumer (``jobs.realtime``), which takes the place of the hot query's
            micro-batches; empty for micro-batches.
        consumers: How many of them.
        metrics_port: Loopback port of the Prometheus endpoint; None opens none.
        accept_loss: Whether to go on where Kafka no longer has records that were to come next, and write down which.
        take_over: Whether to take the views from another job that writes them.
    """

    project: str
    views: Sequence[FeatureView]
    online_url: str
    offline: str
    kafka: Mapping[str, str]
    checkpoints: str
    status_file: Path | None = None
    queries: Sequence[str] = QUERIES
    archive_every: str = "10 seconds"
    partitions: int = 2
    realtime: Sequence[str] = ()
    consumers: int = 1
    metrics_port: int | None = None
    accept_loss: bool = False
    take_over: bool = False

    def by_topic(self) -> dict[str, tuple[EventSource, tuple[FeatureView, ...]]]:
        """Return topic to source and its views."""
        return by_topic(self.views)


class CompletionPublisher(threading.Thread):
    """Publishes ``complete_through`` of every source: up to which arrival everything has been applied."""

    def __init__(self, spec: MaterializeSpec, stop: threading.Event, begun: HotStart) -> None:
        super().__init__(name="completion", daemon=True)
        self._begun = begun
        self._lost: OnlineStoreLostError | None = None
        self.reached: dict[str, dict[int, int]] = {}
        """As of ``Reporter.reached``, handed over by the driver."""
        self.sources: dict[str, dict[str, Any]] = {}
        """Per source, "lag" and "complete_through" (``Reporter.sources``)."""
        self._spec = spec
        self._stop = stop
        self._topics = {topic: source.name for topic, (source, _) in spec.by_topic().items()}

    def run(self) -> None:
        """Publish every quarter of a second until stopped; an unreachable broker or store is tried again."""
        store = RedisOnlineStore(self._spec.online_url, self._spec.project)
        reader: OffsetReader | None = None
        stamped: dict[str, bool] = {}
        watch = ProgressWatch(self._begun.seen)
        while not self._stop.wait(_TICK_S):
            try:
                if reader is None:
                    reader = OffsetReader(self._spec.kafka, self._topics)
                    stamped = {topic: stamps_on_append(self._spec.kafka, topic) for topic in self._topics}
                self._begun.check(store)
                reached = {source: self.reached.get(topic, {}) for topic, source in self._topics.items()}
                watch.check(progress_of(store, self._topics.values()), reached)
                self._publish(store, reader, stamped)
                watch.keep()
            except OnlineStoreLostError as error:
                self._lost = error
                break
            except (BrokerUnavailableError, OnlineError, OSError):  # the last: what was seen cannot be written down
                reader = None
        if reader is not None:
            reader.close()
        store.close()

    def keep(self, acknowledged: Mapping[str, Mapping[int, int]]) -> None:
        """Write down how far the store has told somebody it has a topic, whatever has become of it since."""
        with contextlib.suppress(OSError):
            self._begun.seen.note({source: acknowledged.get(topic, {}) for topic, source in self._topics.items()})

    def check(self) -> None:
        """Raise when the online store is no longer the one the job began on.

        Raises:
            OnlineStoreLostError: It was emptied, is an older one, or is being rebuilt.
        """
        if self._lost is not None:
            raise self._lost

    def _publish(self, store: RedisOnlineStore, reader: OffsetReader, stamped: Mapping[str, bool]) -> None:
        began = SystemClock().now()
        ends = reader.end_offsets()
        for topic, source in self._topics.items():
            read_at = began if stamped[topic] else None
            reached = self.reached.get(topic, {})
            progress = {
                partition: (max(offset, reached.get(partition, 0)), arrival)
                for partition, (offset, arrival) in store.progress(source).items()
            }
            complete = complete_through(progress, ends[topic], read_at=read_at)
            lag = sum(max(0, end - progress.get(partition, (0, 0))[0]) for partition, end in ends[topic].items())
            self.sources[source] = {"lag": lag, "complete_through": complete}
            if complete is not None:
                store.publish_complete(source, complete)


def materialize(session: SparkSession, spec: MaterializeSpec, *, stop: threading.Event | None = None) -> int:
    """Run the job until it is stopped or a query fails; return its exit code.

    Args:
        session: The Spark session.
        spec: What to run.
        stop: Ends the job when set; SIGTERM and SIGINT set it too when this is the main thread.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    reporter = Reporter(spec.status_file)
    reporter.write()
    metrics = contextlib.ExitStack()
    running: list[StreamingQuery] = []
    worker: HotWorker | None = None
    consumers: Consumers | None = None
    keeper: LeaseKeeper | None = None
    publisher: CompletionPublisher | None = None
    topic_watch: TopicWatch | None = None
    try:
        if spec.metrics_port is not None:
            metrics.enter_context(serve_metrics(reporter, spec.metrics_port))
        topics = spec.by_topic()
        ensure_topics(spec.kafka, dict.fromkeys(topics, spec.partitions))
        worker = HotWorker(spec.online_url, spec.project, topics)
        resume = _resume_of(spec)
        archived = Path(spec.checkpoints, "archive")
        may_skip = resume.archive(archived) if "archive" in spec.queries else False
        reporter.state = "warming"
        reporter.write()
        if "hot" in spec.queries:
            keeper = LeaseKeeper(_lease_of(spec), over=spec.take_over)
            keeper.start()
            store = RedisOnlineStore(spec.online_url, spec.project)
            begun = begin_hot(store, spec.offline, spec.kafka, topics, spec.checkpoints)
            resume.online(store)
            hot = Path(begun.checkpoint)
            lenient, starting = False, begun.starting
            if not spec.realtime:
                starting = resume.step_back(hot, store) or starting
                lenient = resume.hot(hot, store)
            store.close()
            worker = replace(worker, epoch=begun.epoch, counts=None if spec.realtime else counter(session))
            if spec.realtime:
                consumers = Consumers(spec.realtime, spec.consumers)
            else:
                warm_up(session, worker)
                session.sparkContext.setLocalProperty("spark.scheduler.pool", "hot")
                query = start_hot(
                    session, worker, spec.kafka,
                    checkpoint=begun.checkpoint, starting=starting, lenient=lenient,
                )  # fmt: skip
                running.append(query)
                resume.remember(hot, query, ASYNCHRONOUS)
            publisher = CompletionPublisher(spec, stop, begun)
            publisher.start()
        if "archive" in spec.queries:
            session.sparkContext.setLocalProperty("spark.scheduler.pool", "archive")
            query = start_archive(
                session, ArchiveBatch(spec.offline, topics), spec.kafka,
                checkpoint=f"{spec.checkpoints}/archive", every=spec.archive_every, lenient=may_skip,
            )  # fmt: skip
            running.append(query)
            resume.remember(archived, query, SYNCHRONOUS)
        topic_watch = TopicWatch(spec.kafka, resume.ids, stop)
        topic_watch.start()
        while not stop.wait(_TICK_S) and all(query.isActive for query in running):
            for query in running:
                reporter.collect(query)
            topic_watch.check()
            if keeper is not None:
                keeper.check()
            if publisher is not None:
                publisher.check()
                publisher.reached = reporter.reached
                reporter.sources = dict(publisher.sources)
            if consumers is not None:
                consumers.check()
                reporter.collect_consumers(consumers)
            if worker.counts is not None:
                reporter.count(worker.counts.value)
            if consumers is None or consumers.ready:
                reporter.state = "running"
            reporter.write()
        for query in running:
            failure = query.exception()
            if failure is not None:
                path = archived if query.name == "archive" else hot
                reporter.state, reporter.error = "failed", _in_words(query, failure, resume, path, spec)
    except FeatureStoreError as error:
        reporter.state, reporter.error = "failed", str(error)
    except Exception as error:  # noqa: BLE001 - the job's outer boundary: whatever ended it goes into its status
        traceback.print_exc()
        reporter.state, reporter.error = "failed", _first_line(error)
    finally:
        stop.set()
        for query in running:
            _stop(query)
            reporter.collect(query)
        if consumers is not None:
            consumers.stop()
            reporter.collect_consumers(consumers)
            if publisher is not None:
                publisher.keep(consumers.acknowledged)
        if worker is not None and worker.counts is not None:
            reporter.count(worker.counts.value)
        if keeper is not None:
            keeper.stop()
    metrics.close()
    if reporter.state != "failed":
        reporter.state = "stopped"
    reporter.write()
    return 1 if reporter.state == "failed" else 0


def _lease_of(spec: MaterializeSpec) -> Lease:
    folder = Path(spec.checkpoints)
    store = RedisOnlineStore(spec.online_url, spec.project)
    return Lease(store, stored_names(spec.views), job_id(folder), who_is(folder))


def _resume_of(spec: MaterializeSpec) -> Resume:
    topics = {topic: source.name for topic, (source, _) in spec.by_topic().items()}
    return Resume(spec.project, spec.offline, spec.kafka, topics, spec.accept_loss, topic_ids(spec.kafka, topics))


def _in_words(query: StreamingQuery, failure: BaseException, resume: Resume, path: Path, spec: MaterializeSpec) -> str:
    """Return why a query failed: where its records are gone, which."""
    words = f"query {query.name}: {_first_line(failure)}"
    store = RedisOnlineStore(spec.online_url, spec.project)
    try:
        asked = replace(resume, accept_loss=False)
        asked.archive(path) if query.name == "archive" else asked.hot(path, store)
    except OffsetsGoneError as error:
        return str(error)
    except FeatureStoreError:
        return words
    finally:
        store.close()
    return words


def _stop(query: StreamingQuery) -> None:
    """Let the current micro-batch end, within ten seconds, then stop."""
    if not query.isActive:
        return
    deadline = SystemClock().now() + 10_000_000
    pause = threading.Event()
    while query.isActive and query.status["isTriggerActive"] and SystemClock().now() < deadline:
        pause.wait(0.02)
    query.stop()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    lines = [line for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if "featurestore.errors." in line]
    return (ours or lines or [type(error).__name__])[0].strip()[:500]
