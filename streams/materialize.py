"""Keep the feature views of a service: Kafka -> online store and Delta, until stopped.

Submitted by ``featurestore jobs submit materialize --service NAME``; by hand:

    spark-submit streams/materialize.py --config-json job/config.json --service NAME [--queries hot] [--freshness realtime]

The configuration is what ``featurestore jobs submit`` writes: the resolved settings. The definitions come from the
registry; no user module is imported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from featurestore.config import Settings
from featurestore.engines.session import build_session
from featurestore.jobs.consumers import consumer_command
from featurestore.jobs.driver import FRESHNESS, QUERIES, MaterializeSpec, materialize
from featurestore.offline.registry import DeltaRegistry


def main(argv: list[str]) -> int:
    """Run the job; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-json", type=Path, required=True, help="the resolved settings")
    parser.add_argument("--service", required=True, help="the feature service whose views to keep")
    parser.add_argument("--queries", default=",".join(QUERIES), help="hot, archive or both (default)")
    parser.add_argument("--archive-every", default="10 seconds", help="trigger interval of the archive query")
    parser.add_argument("--freshness", default="micro-batch", choices=FRESHNESS, help="how the hot query runs")
    parser.add_argument("--consumers", type=int, default=1, help="real-time consumers beside this driver")
    parser.add_argument("--metrics-port", type=int, help="port on loopback for Prometheus; none by default")
    parser.add_argument("--accept-loss", action="store_true", help="go on without records that Kafka no longer has")
    parser.add_argument("--take-over", action="store_true", help="take the views from another job that writes them")
    arguments = parser.parse_args(argv)

    settings = Settings.from_json(arguments.config_json)
    job_dir = arguments.config_json.resolve().parent
    service = DeltaRegistry(settings.offline).load().service(arguments.service)
    spec = MaterializeSpec(
        project=settings.project,
        views=service.views,
        online_url=settings.online.url,
        offline=str(settings.offline),
        kafka=settings.kafka,
        checkpoints=str(job_dir / "checkpoints"),
        status_file=job_dir / "status.json",
        queries=arguments.queries.split(","),
        archive_every=arguments.archive_every,
        realtime=consumer_command(arguments.config_json, arguments.service, accept_loss=arguments.accept_loss)
        if arguments.freshness == "realtime"
        else (),
        consumers=arguments.consumers,
        metrics_port=arguments.metrics_port,
        accept_loss=arguments.accept_loss,
        take_over=arguments.take_over,
    )
    session = build_session(f"materialize-{arguments.service}", master=None, conf=settings.spark.conf)
    try:
        return materialize(session, spec)
    finally:
        session.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
