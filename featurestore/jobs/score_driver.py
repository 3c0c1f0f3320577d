"""What runs inside a scoring job: the Spark query or the light workers, the copy into Delta, the status file.

    micro-batch   Kafka -> mapInArrow(score) -> foreachBatch: Delta (each batch once), then the predictions topic (at least once)
    realtime      light workers (``jobs.score_realtime``) -> predictions topic -> a copier (``jobs.score_log``) -> Delta

Status file, signals and exit codes are those of ``jobs.driver``; ``applied`` counts predictions.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.config import Settings
from featurestore.errors import ConfigError, FeatureStoreError, UnknownNameError, did_you_mean
from featurestore.events.broker import begin_at_the_end, ensure_topics
from featurestore.jobs.consumers import Consumers
from featurestore.jobs.driver import _first_line, _stop
from featurestore.jobs.metrics import serve_metrics
from featurestore.jobs.report import Reporter
from featurestore.jobs.score import CLOCK, EVENT, ScoreSpec, check_columns
from featurestore.jobs.score_log import PREDICTIONS, QUARANTINE, PredictionCopier
from featurestore.scoring.folder import read_aliases
from featurestore.scoring.kafka_envelope import Envelope
from featurestore.scoring.manifest import find_model, list_models
from featurestore.timeline import SECOND, parse_duration

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pyspark.sql import SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

STARTING = ("earliest", "latest")
_TICK_S = 0.25


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """A scoring job as it was submitted.

    Attributes:
        spec: What to score.
        name: Of the job; its consumers' group is named after it.
        folder: Its folder, with the checkpoint.
        status_file: Where to report.
        copy_every_s: Seconds between two appends to Delta.
        consumers: How many light workers.
        metrics_port: Loopback port of the Prometheus endpoint; None opens none.
    """

    spec: ScoreSpec
    name: str
    folder: Path
    status_file: Path | None = None
    copy_every_s: float = 10.0
    consumers: int = 1
    metrics_port: int | None = None

    @property
    def group(self) -> str:
        """The consumer group of its light workers."""
        return f"featurestore.{self.spec.project}.{self.name}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``spec_of`` reads."""
    parser.add_argument("--config-json", type=Path, required=True, help="the resolved settings")
    parser.add_argument("--service", required=True, help="the feature service of the model")
    parser.add_argument(
        "--model", help="NAME or NAME:VERSION; the service's only model, its champion or else its newest, by default"
    )
    parser.add_argument("--source", help="the source whose topic is scored; the service's only one by default")
    parser.add_argument("--topic", help="where predictions go; predictions_MODEL by default")
    parser.add_argument(
        "--envelope", choices=[*Envelope], default="none", help="CloudEvents around predictions and events"
    )
    parser.add_argument("--at", choices=(CLOCK, EVENT), default=CLOCK, help="the time that features are looked up for")
    parser.add_argument("--follow", default="2s", help="time between two looks at which version is champion")
    parser.add_argument("--starting", choices=STARTING, default="earliest", help="where a job without offsets begins")


def spec_of(arguments: argparse.Namespace) -> ScoreSpec:
    """Return what to score; a model that is named with its version keeps it.

    Raises:
        UnknownNameError: There is no such service or source, or none is named and there is not exactly one.
        ModelError: There is no such model, or events lack what it takes.
        ConfigError: The model belongs to another service.
    """
    from featurestore.offline.registry import DeltaRegistry

    settings = Settings.from_json(arguments.config_json)
    applied = DeltaRegistry(settings.offline).load()
    service = applied.service(arguments.service)
    if arguments.model is None:
        names = sorted({one.name for one in list_models(settings.models) if one.manifest.service == service.name})
        arguments.model = _only("model", names, f"service {service.name}")
    name, _, version = arguments.model.partition(":")
    if version and not version.isdigit():
        raise ConfigError(f"--model {arguments.model!r}: {version!r} is not a version.", hint="write name or name:3.")
    chosen = int(version) if version else read_aliases(settings.models, name).get("champion")
    manifest = find_model(settings.models, name, chosen).manifest
    if manifest.service != service.name:
        raise ConfigError(f"model {manifest.label} is one of service {manifest.service!r}, not of {service.name!r}.")
    if arguments.source is None:
        arguments.source = _only(
            "source", sorted({view.source.name for view in service.views}), f"service {service.name}"
        )
    if arguments.source not in applied.sources:
        raise UnknownNameError(
            f"no source {arguments.source!r} is applied.",
            hint=did_you_mean(arguments.source, applied.sources, what="sources"),
        )
    source = applied.sources[arguments.source]
    check_columns(source, manifest)
    return ScoreSpec(
        project=settings.project,
        source=source,
        models=str(settings.models),
        model=manifest.label,
        service=service.name,
        topic=arguments.topic or f"predictions_{manifest.name}",
        online_url=settings.online.url,
        offline=str(settings.offline),
        kafka=dict(settings.kafka),
        envelope=Envelope(arguments.envelope),
        starting=arguments.starting,
        at=arguments.at,
        follow_s=0.0 if version else parse_duration(arguments.follow) / SECOND,
    )


def _only(what: str, names: list[str], where: str) -> str:
    if len(names) != 1:
        raise UnknownNameError(f"{where} has {len(names)} {what}s, so --{what} has to name one.", hint=", ".join(names))
    return names[0]


def score_realtime(job: ScoreJob, arguments: list[str]) -> int:
    """Run light workers and the copier until stopped; return the exit code.

    Args:
        job: What to run.
        arguments: Those of a worker (``add_arguments``), in words.
    """
    command = [sys.executable, "-m", "featurestore.jobs.score_realtime", *arguments, "--group", job.group]
    spec = job.spec

    def run(reporter: Reporter, stop: threading.Event) -> None:
        ensure_topics(spec.kafka, dict.fromkeys([spec.source.topic, spec.topic, spec.quarantine_topic], 2))
        topics = {spec.topic: PREDICTIONS, spec.quarantine_topic: QUARANTINE}
        copier = PredictionCopier(spec.kafka, topics, spec.offline, every_s=job.copy_every_s)
        copier.start()
        if spec.starting == "latest":
            begin_at_the_end(spec.kafka, job.group, spec.source.topic)
        workers = Consumers(command, job.consumers)

        def collect() -> None:
            reporter.collect_consumers(workers)
            reporter.queries["score"] = reporter.queries.pop("hot")
            reporter.queries["score"]["copied"], reporter.queries["score"]["copy_error"] = copier.copied, copier.error

        try:
            while not stop.wait(_TICK_S):
                workers.check()
                copier.check()
                collect()
                if workers.ready:
                    reporter.state = "running"
                reporter.write()
        finally:
            workers.stop()
            copier.stop()
            collect()

    return _reporting(job, run)


def score_micro_batches(session: SparkSession, job: ScoreJob) -> int:
    """Run the Spark query until it is stopped or fails; return the exit code."""
    from featurestore.jobs.score_spark import start_score

    def run(reporter: Reporter, stop: threading.Event) -> None:
        ensure_topics(job.spec.kafka, dict.fromkeys([job.spec.source.topic, job.spec.topic], 2))
        query, counts = start_score(session, job.spec, checkpoint=str(job.folder / "checkpoints" / "score"))
        try:
            while not stop.wait(_TICK_S) and query.isActive:
                _collect(reporter, query, counts)
                reporter.state = "running"
                reporter.write()
            failure = query.exception()
            if failure is not None:
                reporter.state, reporter.error = "failed", f"query score: {_first_line(failure)}"
        finally:
            _stop(query)
            _collect(reporter, query, counts)

    return _reporting(job, run)


def _collect(reporter: Reporter, query: StreamingQuery, counts: dict[str, int]) -> None:
    reporter.collect(query)
    reporter.totals.update(counts)


def _reporting(job: ScoreJob, run: Callable[[Reporter, threading.Event], None]) -> int:
    """Run something until SIGTERM, SIGINT or its end, and say how it went."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    reporter = Reporter(job.status_file)
    reporter.write()
    metrics = contextlib.ExitStack()
    try:
        if job.metrics_port is not None:
            metrics.enter_context(serve_metrics(reporter, job.metrics_port))
        run(reporter, stop)
    except FeatureStoreError as error:
        reporter.state, reporter.error = "failed", str(error)
    except Exception as error:  # noqa: BLE001 - the job's outer boundary: whatever ended it goes into its status
        traceback.print_exc()
        reporter.state, reporter.error = "failed", _first_line(error)
    metrics.close()
    if reporter.state != "failed":
        reporter.state = "stopped"
    reporter.write()
    return 1 if reporter.state == "failed" else 0
