"""Verbs under ``jobs``: submit, list, status, logs, stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import jobs_app
from featurestore.cli.output import (
    ConfigOption,
    JsonOption,
    example,
    note,
    open_store,
    print_json,
    print_lines,
    print_table,
)
from featurestore.errors import ConfigError
from featurestore.timeline import SECOND, parse_duration

if TYPE_CHECKING:
    from featurestore.jobs.job import JobStatus

NameArgument = Annotated[str, typer.Argument(help="Name of the job.")]


@jobs_app.command(
    epilog=example(
        "featurestore jobs submit --service fraud_v1",
        "featurestore jobs submit score -s fraud_v1 --freshness realtime",
        "featurestore jobs submit -s fraud_v1 --master spark://host:7077 --conf spark.executor.memory=4g --dry-run",
    )
)
def submit(
    job: Annotated[str, typer.Argument(help="What to run: materialize or score.")] = "materialize",
    service: Annotated[
        str, typer.Option("--service", "-s", help="The service whose features it keeps or reads.")
    ] = ...,  # type: ignore[assignment]
    master: Annotated[str | None, typer.Option(help="Spark's master, as spark-submit takes it.")] = None,
    deploy_mode: Annotated[str | None, typer.Option(help="client or cluster.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job; JOB-SERVICE by default.")] = None,
    conf: Annotated[list[str] | None, typer.Option(help="A Spark setting, name=value; may be repeated.")] = None,
    queries: Annotated[str | None, typer.Option(help="hot, archive or hot,archive (default).")] = None,
    freshness: Annotated[str | None, typer.Option(help="micro-batch (default) or realtime.")] = None,
    consumers: Annotated[int | None, typer.Option(min=1, help="How many real-time consumers; 1 by default.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port on the driver's loopback for Prometheus.")] = None,
    model: Annotated[
        str | None, typer.Option(help="score: NAME or NAME:VERSION; the service's only one by default.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="score: whose events; the service's only source by default.")
    ] = None,
    topic: Annotated[
        str | None, typer.Option(help="score: where predictions go; predictions_MODEL by default.")
    ] = None,
    envelope: Annotated[
        str | None, typer.Option(help="score: none (default), cloudevents-binary or cloudevents-structured.")
    ] = None,
    starting: Annotated[
        str | None, typer.Option(help="score: earliest (default) or latest, where a new job begins.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="score: features of the clock (default) or of the event's time.")
    ] = None,
    follow: Annotated[
        str | None, typer.Option(help="score: how often to look whether another version is champion; 2s by default.")
    ] = None,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Go on without records that Kafka no longer has, and write down which."),
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the views from another job that writes them; that one ends.")
    ] = False,
    wait: Annotated[str | None, typer.Option(help='Wait so long for it to run, for example "2m".')] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the spark-submit call and do nothing.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a streaming job; it outlives this command. All run under spark-submit but realtime scoring, which needs no Spark."""
    store = open_store(config)
    of_score: dict[str, Any] = {
        "model": model,
        "source": source,
        "topic": topic,
        "envelope": envelope,
        "starting": starting,
        "at": at,
        "follow": follow,
    }
    settings = {}
    for each in conf or []:
        key, separator, value = each.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"--conf {each!r} is not name=value.", hint="for example --conf spark.executor.memory=4g."
            )
        settings[key] = value
    if dry_run:
        from featurestore.jobs import submit as spark

        definition = store.definitions().service(service)
        options = spark.SubmitOptions(
            master=master,
            deploy_mode=deploy_mode,
            conf=settings,
            queries=queries,
            freshness=freshness,
            consumers=consumers,
            metrics_port=metrics_port,
            **of_score,
            accept_loss=accept_loss,
            take_over=take_over,
        )
        job_name, folder = spark.job_folder(job, store.settings, definition.name, name)
        argv = spark.build_argv(job, store.settings, service=service, name=job_name, folder=folder, options=options)
        if as_json:
            print_json({"argv": argv})
        else:
            print_lines([spark.shown(argv)])
        return
    submitted = store.submit(
        job, service=service, master=master, name=name, deploy_mode=deploy_mode, conf=settings, queries=queries,
        freshness=freshness, consumers=consumers, metrics_port=metrics_port, accept_loss=accept_loss,
        take_over=take_over, **of_score,
    )  # fmt: skip
    status = submitted.wait_until("running", wait) if wait else submitted.status()
    if as_json:
        print_json(status.to_dict())
    else:
        print_lines([submitted.name])
        note(f"{status.state}; featurestore jobs status {submitted.name}, log: {submitted.log}")


@jobs_app.command(name="list", epilog=example("featurestore jobs list --json"))
def list_jobs(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the jobs submitted from this project's folder."""
    found = [job.status() for job in open_store(config).jobs()]
    if as_json:
        print_json([status.to_dict() for status in found])
    else:
        rows = [(each.name, each.state, each.service, each.pid or "-", each.started_at) for each in found]
        print_table(("name", "state", "service", "pid", "started"), rows)


@jobs_app.command(
    epilog=example(
        "featurestore jobs status materialize-fraud_v1 --json", "featurestore jobs status materialize-fraud_v1 --watch"
    )
)
def status(
    name: NameArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until the job ends or Ctrl-C.")
    ] = False,
    every: Annotated[str, typer.Option(help="With --watch: time between two looks.")] = "1s",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show one job; exit code 1 when it has failed."""
    job = open_store(config).job(name)
    if watch:
        from featurestore.cli.watch import watch as show
        from featurestore.jobs.job import ENDED

        seconds = parse_duration(every) / SECOND
        show(
            job.status, lambda found: "\n".join(_lines(found)), lambda: time.sleep(seconds), as_json=as_json,
            is_last=lambda found: found.state in ENDED,
        )  # fmt: skip
        return 1 if job.status().state == "failed" else 0
    found = job.status()
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines(_lines(found))
    return 1 if found.state == "failed" else 0


def _lines(found: JobStatus) -> list[str]:
    """Return a job's status, a name and a value a line."""
    rows = [(key, value) for key, value in found.to_dict().items() if key not in {"queries", "totals", "sources"}]
    rows += [(f"total {key}", value) for key, value in found.totals.items()]
    rows += [
        (f"source {name}", f"{each['lag']:,} records to come, complete through {each['complete_through'] or 'unknown'}")
        for name, each in found.sources.items()
    ]
    rows += [(f"query {name}", _progress(last)) for name, last in found.queries.items()]
    return [f"{key:<18}{'-' if value is None else value}" for key, value in rows]


def _progress(last: dict[str, Any]) -> str:
    """Return the last micro-batch of a query in one line, or how the real-time consumers do."""
    if last.get("realtime"):
        behind = "an unknown number of" if last["lag"] is None else f"{last['lag']:,}"
        by = f" by {last['client']}" if last.get("client") else ""
        line = f"realtime, {len(last['pids'])} consumers{by}, {behind} records to come"
        return f"{line}; {last['error']}" if last["error"] else line
    took = last["duration_ms"].get("triggerExecution", 0)
    return f"batch {last['batch']}: {last['rows']} rows in {took} ms, at {last['at']}"


@jobs_app.command(epilog=example("featurestore jobs logs materialize-fraud_v1 --tail 50"))
def logs(
    name: NameArgument,
    tail: Annotated[int, typer.Option(min=0, help="How many lines from the end; 0 shows all.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the end of a job's log."""
    text = open_store(config).job(name).logs(tail or None)
    if as_json:
        print_json({"name": name, "lines": text.splitlines()})
    else:
        print_lines(text.splitlines())


@jobs_app.command(epilog=example("featurestore jobs stop materialize-fraud_v1 --timeout 2m"))
def stop(
    name: NameArgument,
    timeout: Annotated[str, typer.Option(help="How long it may take to finish its batch.")] = "1m",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a job; it finishes its batch first. Harmless when it has ended."""
    found = open_store(config).job(name).stop(timeout)
    if as_json:
        print_json(found.to_dict())
    else:
        print_lines([f"{found.name} {found.state}"])
