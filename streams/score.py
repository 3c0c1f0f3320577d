"""Score the events of a topic: features joined, model run, predictions to a topic and to Delta, until stopped.

Submitted by ``featurestore jobs submit score --service NAME``; by hand:

    spark-submit streams/score.py --config-json job/config.json --service NAME [--model NAME:VERSION]
    python streams/score.py --config-json job/config.json --service NAME --freshness realtime

The second one is the light worker, which needs no Spark. The configuration is what ``featurestore jobs submit`` writes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from featurestore.config import Settings
from featurestore.errors import FeatureStoreError
from featurestore.jobs.driver import FRESHNESS
from featurestore.jobs.report import Reporter
from featurestore.jobs.score_driver import ScoreJob, add_arguments, score_micro_batches, score_realtime, spec_of
from featurestore.timeline import SECOND, parse_duration


def main(argv: list[str]) -> int:
    """Run the job; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--freshness", default="micro-batch", choices=FRESHNESS, help="Spark, or light workers")
    parser.add_argument("--consumers", type=int, default=1, help="light workers of a realtime job")
    parser.add_argument(
        "--archive-every", default="10 seconds", help="time between two appends to Delta of a realtime job"
    )
    parser.add_argument("--metrics-port", type=int, help="port on loopback for Prometheus; none by default")
    arguments = parser.parse_args(argv)
    folder = arguments.config_json.resolve().parent
    try:
        spec = spec_of(arguments)
    except FeatureStoreError as error:
        reporter = Reporter(folder / "status.json", state="failed", error=str(error))
        reporter.write()
        print(error, file=sys.stderr)
        return 1
    job = ScoreJob(
        spec=spec,
        name=folder.name,
        folder=folder,
        status_file=folder / "status.json",
        copy_every_s=parse_duration(re.sub(r" (s|m)(econd|inute)s?$", r"\1", arguments.archive_every)) / SECOND,
        consumers=arguments.consumers,
        metrics_port=arguments.metrics_port,
    )
    if arguments.freshness == "realtime":
        # A file of its own: the job's own process is found by the name of the settings in its command.
        own = Path(shutil.copy2(arguments.config_json, folder / "workers.json"))
        words = {
            "--config-json": str(own), "--service": arguments.service, "--source": spec.source.name,
            "--model": spec.model.partition(":")[0] if spec.follow_s else spec.model, "--follow": arguments.follow,
            "--topic": spec.topic, "--envelope": str(spec.envelope), "--starting": spec.starting, "--at": spec.at,
        }  # fmt: skip
        return score_realtime(job, [word for pair in words.items() for word in pair])
    from featurestore.engines.session import build_session

    session = build_session(job.name, master=None, conf=Settings.from_json(arguments.config_json).spark.conf)
    try:
        return score_micro_batches(session, job)
    finally:
        session.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
