"""Submit a streaming job: build the spark-submit call, and start it detached.

What runs is ``streams/JOB.py`` of a checkout, or its copy inside the installed package. The job's folder gets
the resolved settings, so the job does not depend on this process, its environment or its working directory.

``spark-submit`` comes from SPARK_HOME when that is set, else from the installed pyspark, which is located but not
imported. A local master gets the connector jars as files; any other one their Maven coordinates (``--packages``), and
the package itself as a zip for its workers.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import featurestore
from featurestore.config import HIDDEN, is_secret
from featurestore.engines.class_archive import with_classes
from featurestore.errors import DefinitionError, JobError, SubmitError, did_you_mean
from featurestore.jobs.job import CHILDREN, Job, write_json
from featurestore.stack import guard
from featurestore.stack.jars import spark_jars
from featurestore.stack.java import find_java
from featurestore.stack.versions import SPARK_JARS
from featurestore.timeline import SystemClock, format_instant, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.config import Settings
    from featurestore.definitions.service import FeatureService

JOBS = ("materialize", "score")
_SCORE_ONLY = ("model", "source", "topic", "envelope", "starting", "at", "follow")
CHOICES = {
    "deploy_mode": ("client", "cluster"),
    "freshness": ("micro-batch", "realtime"),
    "envelope": ("none", "cloudevents-binary", "cloudevents-structured"),
    "starting": ("earliest", "latest"),
    "at": ("clock", "event"),
}
"""Options that take one of some values; said here so that submitting loads nothing of what runs in the job."""
_FLAGS = ("accept_loss", "take_over")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,126}")
_PACKAGE = Path(featurestore.__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """What spark-submit and the job are told beyond the settings.

    Attributes:
        master: Spark's master, as spark-submit takes it; ``spark.master`` of the settings when None.
        deploy_mode: "client" or "cluster". In a cluster the job's folder has to be on storage the driver sees.
        conf: Spark settings over those of the project.
        queries: "hot", "archive" or "hot,archive"; both when None.
        archive_every: Trigger interval of the archive query, for example "10 seconds".
        freshness: "micro-batch", or "realtime": the hot query's work is done by plain Kafka consumers beside the driver, which
            apply an event within tens of milliseconds; "micro-batch" when None.
        consumers: How many of those; at most the topics' partitions have work.
        metrics_port: Port on the driver's loopback for Prometheus; None opens none.
        model: Of a scoring job: NAME or NAME:VERSION; the service's only model, its champion or else its newest, when None.
        source: Of a scoring job: the source whose events are scored; the service's only one when None.
        topic: Of a scoring job: where predictions go; "predictions_MODEL" when None.
        envelope: Of a scoring job: "none", "cloudevents-binary" or "cloudevents-structured"; none when None.
        starting: Of a scoring job: "earliest" or "latest", where a job without offsets begins; the earliest when None.
        at: Of a scoring job: "clock" or "event", the time that features are looked up for; the clock's when None.
        follow: Of a scoring job whose model has no version: how often to look which version is champion; "2s" when None.
        accept_loss: Whether to go on without records that Kafka no longer has; which those are is written down in the Delta
            table ``losses``. Meant for one start: a job started so goes on whatever else goes missing.
        take_over: Whether to take the views from another job that writes them; meant for one start too.
        use_packages: Whether Spark fetches its connectors itself; None decides by the master.
        extra: Further arguments of spark-submit, verbatim.
    """

    master: str | None = None
    deploy_mode: str | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    queries: str | None = None
    archive_every: str | None = None
    freshness: str | None = None
    consumers: int | None = None
    metrics_port: int | None = None
    model: str | None = None
    source: str | None = None
    topic: str | None = None
    envelope: str | None = None
    starting: str | None = None
    at: str | None = None
    follow: str | None = None
    accept_loss: bool = False
    take_over: bool = False
    use_packages: bool | None = None
    extra: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise SubmitError(
                    f"{name.replace('_', ' ')} {value!r} is none of {', '.join(map(repr, allowed))}.",
                    hint=did_you_mean(str(value), allowed, what="values"),
                )
        if self.follow is not None:
            try:
                parse_duration(str(self.follow))
            except DefinitionError as error:
                raise SubmitError(
                    f"follow: {error.message}", hint=error.hint or "it is a duration such as '2s'."
                ) from None
        if self.consumers is not None and (self.freshness != "realtime" or self.consumers < 1):
            raise SubmitError(
                f"consumers is {self.consumers} with freshness {self.freshness or 'micro-batch'!r}.",
                hint="it takes freshness='realtime' and at least 1.",
            )


def spark_submit() -> Path:
    """Return the spark-submit to call.

    Raises:
        SubmitError: There is none.
    """
    home = os.environ.get("SPARK_HOME", "").strip()
    if home:
        program = Path(home) / "bin" / "spark-submit"
        if not program.is_file():
            raise SubmitError(f"SPARK_HOME is {home}, which has no bin/spark-submit.", hint="correct it or unset it.")
        return program
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise SubmitError("pyspark is not installed.", hint="pip install 'featurestore[spark]', or set SPARK_HOME.")
    return Path(found.origin).parent / "bin" / "spark-submit"


def script_of(job: str) -> Path:
    """Return the file that is submitted for a job.

    Raises:
        SubmitError: There is no such job, or neither checkout nor package has its file.
    """
    if job not in JOBS:
        raise SubmitError(f"there is no job {job!r}.", hint=did_you_mean(job, JOBS, what="jobs"))
    for folder in (_PACKAGE.parent / "streams", _PACKAGE / "_streams"):
        if (folder / f"{job}.py").is_file():
            return folder / f"{job}.py"
    raise SubmitError(f"{job}.py is neither in {_PACKAGE.parent / 'streams'} nor in the installed package.")


def build_argv(
    job: str, settings: Settings, *, service: str, name: str, folder: Path, options: SubmitOptions
) -> list[str]:
    """Return the spark-submit call, one list element per argument; settings that hold secrets are not in it.

    Raises:
        SubmitError: spark-submit or the job's file cannot be found.
        StackError: The connector jars cannot be had.
    """
    script = script_of(job)
    _check_options(job, options)
    if _is_light(job, options):
        return [sys.executable, str(script), *_job_arguments(service, folder, options)]
    master = options.master or settings.spark.master
    local = master.startswith("local")
    argv = [str(spark_submit()), "--master", master, "--name", name]
    if options.deploy_mode:
        argv += ["--deploy-mode", options.deploy_mode]
    packages = not local if options.use_packages is None else options.use_packages
    if packages:
        argv += ["--packages", ",".join(SPARK_JARS)]
    else:
        argv += ["--jars", ",".join(str(jar) for jar in spark_jars())]
    if not local:
        argv += ["--py-files", str(folder / "featurestore.zip")]
    conf = driver_conf(options.deploy_mode, local=local, packages=packages) | {**settings.spark.conf, **options.conf}
    if local and not packages:
        conf = with_classes(conf, spark_jars())
    for key, value in conf.items():
        if not is_secret(key):
            argv += ["--conf", f"{key}={value}"]
    if any(is_secret(key) for key in conf):
        argv += ["--properties-file", str(folder / "secret.conf"), "--load-spark-defaults"]
    return [*argv, *options.extra, str(script), *_job_arguments(service, folder, options)]


def _job_arguments(service: str, folder: Path, options: SubmitOptions) -> list[str]:
    """Return what the job's own script is told."""
    words = ["--config-json", str(folder / "config.json"), "--service", service]
    for name in ("queries", "archive_every", "freshness", "consumers", "metrics_port", *_SCORE_ONLY):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    flags = [f"--{name.replace('_', '-')}" for name in _FLAGS if getattr(options, name)]
    return [*words, *flags]


def _check_options(job: str, options: SubmitOptions) -> None:
    """Refuse options of another job."""
    foreign = ("queries", *_FLAGS) if job == "score" else _SCORE_ONLY
    given = [name for name in foreign if getattr(options, name) not in (None, False)]
    if given:
        raise SubmitError(f"a {job} job takes no {given[0]}.", hint="see featurestore jobs submit --help.")


def _is_light(job: str, options: SubmitOptions) -> bool:
    """Whether a job runs without Spark: scoring by plain consumers."""
    return job == "score" and options.freshness == "realtime"


def driver_conf(deploy_mode: str | None, *, local: bool, packages: bool) -> dict[str, str]:
    """Return what the driver's JVM needs from its start on: no session can set it later."""
    conf = {}
    if local:
        from featurestore.engines.session import JOB_CONF

        conf.update(JOB_CONF)
    elif deploy_mode != "cluster":
        logging = _PACKAGE / "engines" / "log4j2.properties"
        conf["spark.driver.extraJavaOptions"] = f"-Dlog4j2.configurationFile={logging.as_uri()}"
    ivy = os.environ.get("FEATURESTORE_IVY_SETTINGS", "").strip()
    if packages and ivy:
        conf["spark.jars.ivySettings"] = ivy
    return conf


def job_environment(*, local: bool, java: bool = True) -> dict[str, str]:
    """Return the variables a driver on this machine runs with: its Python is this one and can import this package."""
    environment = dict(os.environ)
    paths = [str(_PACKAGE.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment.setdefault("PYSPARK_PYTHON", sys.executable)
    environment.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    environment["PYTHONUNBUFFERED"] = "1"
    if local:
        environment.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if java and not environment.get("JAVA_HOME"):
        environment["JAVA_HOME"] = str(find_java().home)
    return environment


def submit(
    job: str, settings: Settings, service: FeatureService, *, name: str | None = None, options: SubmitOptions
) -> Job:
    """Start a job and return its handle; it outlives this process.

    Args:
        job: "materialize" or "score".
        settings: What it runs with.
        service: The service it keeps, as it is applied.
        name: Name of its folder, checkpoints included: the same name goes on where the last run stopped.
        options: Master and so on.

    Raises:
        SubmitError: A job of this name runs already, or spark-submit cannot be started.
        StackError: Java or the connector jars cannot be had.
    """
    name, folder = job_folder(job, settings, service.name, name)
    argv = build_argv(job, settings, service=service.name, name=name, folder=folder, options=options)
    local = (options.master or settings.spark.master).startswith("local")
    environment = job_environment(local=local, java=not _is_light(job, options))
    folder.mkdir(parents=True, exist_ok=True)
    present = Job(folder)
    if (folder / "job.json").exists() and present.is_alive:
        raise SubmitError(
            f"job {name} runs already with pid {present.record['pid']}.",
            hint=f"featurestore jobs stop {name}, or submit under another name.",
        )
    (folder / "status.json").unlink(missing_ok=True)
    merged = settings.spark.model_copy(update={"conf": {**settings.spark.conf, **options.conf}})
    settings.model_copy(update={"spark": merged}).to_json(folder / "config.json")
    _write_secrets(folder / "secret.conf", merged.conf)
    if "--py-files" in argv:
        zip_package(folder / "featurestore.zip")
    started_at = format_instant(SystemClock().now())
    process = launch(argv, folder, environment)
    write_json(
        folder / "job.json",
        {
            "name": name,
            "job": job,
            "service": service.name,
            "fingerprint": service.fingerprint,
            "pid": process.pid,
            "born": guard.birth(process.pid),
            "argv": argv,
            "started_at": started_at,
        },
    )
    return Job(folder)


def job_folder(job: str, settings: Settings, service: str, name: str | None) -> tuple[str, Path]:
    """Return the name and folder of a job.

    Raises:
        SubmitError: The name cannot be a folder's.
    """
    name = name or f"{job}-{service}"
    if not _NAME.fullmatch(name):
        raise SubmitError(f"job name {name!r} is not usable.", hint="use lower-case letters, digits, _ and -.")
    return name, settings.home / "jobs" / name


def launch(argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command detached, in a session of its own, its output in the folder's driver.log.

    Raises:
        SubmitError: It cannot be executed.
    """
    try:
        with (folder / "driver.log").open("wb") as log:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise SubmitError(f"{argv[0]} cannot be started: {error.strerror}.") from error
    CHILDREN[process.pid] = process
    return process


def shown(argv: Sequence[str]) -> str:
    """Return the call as one would type it into a shell."""
    hidden = [
        re.sub(r"=.*", f"={HIDDEN}", each) if is_secret(each.partition("=")[0]) and "=" in each else each
        for each in argv
    ]
    return shlex.join(hidden)


def zip_package(target: Path) -> None:
    """Write the package's modules as a zip that workers can import."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(_PACKAGE.rglob("*.py")):
            archive.write(path, path.relative_to(_PACKAGE.parent))


def _write_secrets(path: Path, conf: Mapping[str, str]) -> None:
    secrets = {key: value for key, value in conf.items() if is_secret(key)}
    path.unlink(missing_ok=True)
    if not secrets:
        return
    for key, value in secrets.items():
        if "\n" in value:
            raise JobError(f"spark setting {key} has a line break, which a properties file cannot hold.")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(f"{key} {value}\n" for key, value in secrets.items())
