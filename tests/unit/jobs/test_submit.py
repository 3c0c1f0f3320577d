"""Jobs: the spark-submit call, the job's folder, and handles on real processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from datetime import timedelta

import pytest

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView
from featurestore.config import Settings
from featurestore.definitions.contract import Contract
from featurestore.errors import JobError, SubmitError, UnknownNameError
from featurestore.jobs import submit as submitting
from featurestore.jobs.job import Job, find_job, jobs_in, write_json
from featurestore.jobs.submit import (
    CHOICES,
    SubmitOptions,
    build_argv,
    job_environment,
    launch,
    script_of,
    shown,
    submit,
)
from featurestore.stack import guard
from featurestore.stack.java import Java

CONTRACT = Contract.from_json(
    '{"type": "object", "required": ["at", "card"], "properties": {"at": {"type": "string", "format": "date-time"}, '
    '"card": {"type": "string"}}}',
    "payment",
)
FRAUD = FeatureService(
    "fraud",
    [
        FeatureView(
            "spend",
            entity=Entity("card", keys={"card": "string"}),
            source=EventSource("payments", topic="payments", schema=CONTRACT, event_time="at"),
            features={"payments": Count().over("1h")},
        )
    ],
)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a project, on a machine whose jars and Java are where we say."""
    from pathlib import Path

    monkeypatch.delenv("SPARK_HOME", raising=False)
    monkeypatch.setattr(submitting, "spark_jars", lambda: [Path("/jars/a.jar"), Path("/jars/b.jar")])
    monkeypatch.setattr(submitting, "find_java", lambda: Java(executable=Path("/java/bin/java"), version=17))
    return Settings.load(root=tmp_path, kafka={"bootstrap.servers": "a:1"})


def argv_of(settings, **options):
    folder = settings.home / "jobs/materialize-fraud"
    return build_argv(
        "materialize",
        settings,
        service="fraud",
        name="materialize-fraud",
        folder=folder,
        options=SubmitOptions(**options),
    )


def confs(argv):
    return dict(argv[place + 1].split("=", 1) for place, each in enumerate(argv) if each == "--conf")


def without_conf(argv):
    return [each for place, each in enumerate(argv) if each != "--conf" and argv[place - 1] != "--conf"]


def test_the_call_of_a_local_master(settings):
    argv = argv_of(settings)
    folder = settings.home / "jobs/materialize-fraud"
    assert argv[0].endswith("pyspark/bin/spark-submit")
    assert without_conf(argv)[1:] == [
        "--master",
        "local[4]",
        "--name",
        "materialize-fraud",
        "--jars",
        "/jars/a.jar,/jars/b.jar",
        str(script_of("materialize")),
        "--config-json",
        str(folder / "config.json"),
        "--service",
        "fraud",
    ]
    assert confs(argv)["spark.driver.host"] == "127.0.0.1"


def test_the_call_of_a_cluster(settings):
    argv = argv_of(
        settings,
        master="spark://host:7077",
        deploy_mode="client",
        conf={"spark.executor.memory": "4g"},
        queries="hot",
        archive_every="1 minute",
        extra=["--total-executor-cores", "4"],
    )
    folder = settings.home / "jobs/materialize-fraud"
    assert without_conf(argv)[1:] == [
        "--master",
        "spark://host:7077",
        "--name",
        "materialize-fraud",
        "--deploy-mode",
        "client",
        "--packages",
        "io.delta:delta-spark_4.2_2.13:4.4.0,org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0",
        "--py-files",
        str(folder / "featurestore.zip"),
        "--total-executor-cores",
        "4",
        str(script_of("materialize")),
        "--config-json",
        str(folder / "config.json"),
        "--service",
        "fraud",
        "--queries",
        "hot",
        "--archive-every",
        "1 minute",
    ]
    assert confs(argv)["spark.executor.memory"] == "4g"
    assert "spark.driver.host" not in confs(argv)


def test_jars_or_packages_can_be_chosen_for_any_master(settings):
    assert "--packages" in argv_of(settings, use_packages=True)
    assert "--jars" in argv_of(settings, master="yarn", use_packages=False)


def test_the_users_settings_win_over_ours_and_the_options_over_the_users(settings):
    ours = settings.spark.model_copy(update={"conf": {"spark.driver.memory": "7g", "spark.ui.enabled": "true"}})
    argv = argv_of(settings.model_copy(update={"spark": ours}), conf={"spark.ui.enabled": "false"})
    assert confs(argv)["spark.driver.memory"] == "7g"
    assert confs(argv)["spark.ui.enabled"] == "false"


def test_a_secret_is_neither_in_the_call_nor_in_a_file_others_can_read(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(submitting, "spark_submit", lambda: program(tmp_path, "pass"))
    options = SubmitOptions(conf={"spark.hadoop.fs.s3a.secret.key": "pa55"})
    job = submit("materialize", settings, FRAUD, options=options)
    job.stop(5)
    assert "pa55" not in json.dumps(job.record)
    assert "--load-spark-defaults" in job.record["argv"]
    for name in ("secret.conf", "config.json"):
        assert "pa55" in (job.folder / name).read_text()
        assert stat.S_IMODE((job.folder / name).stat().st_mode) == 0o600


def test_a_call_is_shown_as_one_types_it_without_secrets():
    call = ["spark-submit", "--conf", "spark.x=a b", "--conf", "spark.ssl.keyPassword=pa55"]
    assert shown(call) == "spark-submit --conf 'spark.x=a b' --conf 'spark.ssl.keyPassword=***'"


def test_what_cannot_be_submitted_is_refused_in_one_line(settings, monkeypatch, tmp_path):
    with pytest.raises(SubmitError, match=r"there is no job 'materialise'.*did you mean 'materialize'"):
        script_of("materialise")
    with pytest.raises(SubmitError, match=r"job name '\.\./x'"):
        submit("materialize", settings, FRAUD, name="../x", options=SubmitOptions())
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    with pytest.raises(SubmitError, match="no bin/spark-submit"):
        argv_of(settings)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"deploy_mode": "clusters"},
            r"deploy mode 'clusters' is none of 'client', 'cluster'\..* did you mean 'cluster'\?",
        ),
        (
            {"freshness": "batch"},
            r"freshness 'batch' is none of 'micro-batch', 'realtime'\..* did you mean 'micro-batch'\?",
        ),
        (
            {"envelope": "cloudevents"},
            r"envelope 'cloudevents' is none of 'none', .*did you mean 'cloudevents-binary'\?",
        ),
        ({"starting": "now"}, r"starting 'now' is none of 'earliest', 'latest'\..* known values: earliest, latest\."),
        ({"at": "2026-01-01"}, r"at '2026-01-01' is none of 'clock', 'event'\..* known values: clock, event\."),
        ({"follow": "2 sec"}, r"follow: duration '2 sec' is not understood\..* for example '5m'"),
        ({"follow": "0s"}, r"follow: duration '0s' is not positive\..* such as '2s'"),
        ({"follow": timedelta(seconds=2)}, "follow: duration '0:00:02' is not understood"),
    ],
)
def test_an_option_that_the_job_would_refuse_is_refused_before_there_is_one(wrong, message):
    with pytest.raises(SubmitError, match=message):
        SubmitOptions(**wrong)


def test_the_values_that_options_take_are_those_of_the_job():
    from featurestore.jobs.driver import FRESHNESS
    from featurestore.jobs.score import CLOCK, EVENT
    from featurestore.jobs.score_driver import STARTING
    from featurestore.scoring.kafka_envelope import Envelope

    assert {name: each for name, each in CHOICES.items() if name != "deploy_mode"} == {
        "freshness": FRESHNESS, "envelope": tuple(Envelope), "starting": STARTING, "at": (CLOCK, EVENT),
    }  # fmt: skip
    for name, values in CHOICES.items():
        for value in values:
            SubmitOptions(**{name: value})


def test_a_driver_finds_this_python_and_this_package(settings, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    environment = job_environment(local=True)
    assert environment["PYTHONPATH"].split(os.pathsep)[1:] == ["/mine"]
    assert environment["PYSPARK_PYTHON"] == sys.executable
    assert environment["JAVA_HOME"] == "/java"
    found = subprocess.run(
        [sys.executable, "-c", "import featurestore; print(featurestore.__file__)"],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == submitting.featurestore.__file__


def test_workers_of_a_cluster_get_the_package_as_a_zip(tmp_path):
    submitting.zip_package(tmp_path / "p.zip")
    names = zipfile.ZipFile(tmp_path / "p.zip").namelist()
    assert "featurestore/jobs/submit.py" in names
    assert not [name for name in names if "__pycache__" in name]


def program(folder, code):
    """An executable that runs Python code; it gets spark-submit's arguments."""
    path = folder / "spark-submit"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return path


REPORT = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--config-json") + 1]).parent
def report(state, error=None):
    partial = folder / "status.tmp"
    partial.write_text(json.dumps({"state": state, "queries": {}, "totals": {"consumed": 7}, "updated_at": "now", "error": error}))
    partial.replace(folder / "status.json")
"""
POLITE = (
    REPORT
    + """
def stop(*_):
    report("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
report("running")
time.sleep(600)
"""
)
DEAF = (
    REPORT
    + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
report("running")
time.sleep(600)
"""
)
DYING = (
    REPORT
    + """
report("running")
print("INFO fine so far")
print("java.lang.IllegalStateException: the disk is full")
print("bye")
sys.stdout.flush()
os._exit(1)
"""
)
PARENT = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "-c", CODE, *sys.argv[1:]]).returncode)
"""


@pytest.fixture
def started(settings, tmp_path, monkeypatch):
    """Start a job whose spark-submit is the given program; whatever is left of it ends with the test."""
    jobs = []

    def start(code, **keywords):
        monkeypatch.setattr(submitting, "spark_submit", lambda: program(tmp_path, code))
        jobs.append(submit("materialize", settings, FRAUD, options=SubmitOptions(), **keywords))
        return jobs[-1]

    yield start
    for job in jobs:
        job.stop(0)


def test_a_job_runs_until_it_is_stopped_and_says_goodbye(started, settings):
    job = started(POLITE)
    status = job.wait_until("running", 20)
    assert (status.state, status.service, status.totals) == ("running", "fraud", {"consumed": 7})
    assert guard.birth(status.pid) == job.record["born"]
    assert job.record["fingerprint"] == FRAUD.fingerprint
    assert Settings.from_json(job.folder / "config.json").kafka == {"bootstrap.servers": "a:1"}
    stopped = job.stop("20s")
    assert (stopped.state, stopped.pid, stopped.error) == ("stopped", None, None)
    assert job.stop().state == "stopped"


def test_the_signal_goes_to_the_driver_so_that_what_started_it_stays_until_it_has_finished(started):
    job = started(PARENT.replace("CODE", repr(POLITE)))
    job.wait_until("running", 20)
    assert job.stop(20).state == "stopped"
    assert not job.record.get("killed")


def test_a_job_that_does_not_listen_is_killed_with_all_it_started(started):
    job = started(PARENT.replace("CODE", repr(DEAF)))
    pid = job.wait_until("running", 20).pid
    driver = job._driver_pid(pid)
    assert driver != pid
    born = guard.birth(driver)
    assert job.stop(0.3).state == "stopped"
    assert guard.birth(driver) != born


def test_a_job_that_dies_has_failed_with_the_last_error_of_its_log(started):
    job = started(DYING)
    with pytest.raises(JobError, match=r"job materialize-fraud is failed, not stopped.*the disk is full"):
        job.wait_until("stopped", 20)
    status = job.status()
    assert (status.state, status.pid) == ("failed", None)
    assert status.error == "java.lang.IllegalStateException: the disk is full"
    assert job.logs(1) == "bye\n"
    assert job.logs(None).startswith("INFO fine")


def test_a_job_that_says_why_it_failed_is_believed(started):
    job = started(REPORT + 'report("failed", "no topic payments")\nsys.exit(1)')
    with pytest.raises(JobError, match="no topic payments"):
        job.wait_until("running", 20)


def test_waiting_ends_with_the_time(started):
    job = started("import time; time.sleep(600)")
    with pytest.raises(JobError, match=r"still starting, not running, after 0\.2 s"):
        job.wait_until("running", 0.2)
    assert job.stop(10).state == "stopped"


def test_a_job_runs_once_and_may_run_again_with_its_checkpoint(started, settings):
    job = started(POLITE)
    job.wait_until("running", 20)
    with pytest.raises(SubmitError, match=r"job materialize-fraud runs already with pid \d+"):
        submit("materialize", settings, FRAUD, options=SubmitOptions())
    (job.folder / "checkpoints").mkdir()
    job.stop(20)
    again = started(POLITE)
    assert again.wait_until("running", 20).state == "running"
    assert (again.folder / "checkpoints").is_dir()


def test_a_pid_that_went_to_somebody_else_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        folder = tmp_path / "old"
        folder.mkdir()
        record = {"name": "old", "service": "fraud", "pid": bystander.pid, "born": "long ago", "started_at": "2013"}
        write_json(folder / "job.json", record)
        assert Job(folder).stop(0).state == "failed"
        assert bystander.poll() is None
        bystander.communicate(b"\n")


def test_jobs_are_listed_and_found_by_name(started, settings):
    assert jobs_in(settings.home / "jobs") == []
    started(POLITE, name="b")
    started(POLITE, name="a")
    assert [job.name for job in jobs_in(settings.home / "jobs")] == ["a", "b"]
    assert find_job(settings.home / "jobs", "b").status().service == "fraud"
    with pytest.raises(UnknownNameError, match="no job 'c'"):
        find_job(settings.home / "jobs", "c")


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(JobError, match=r"job\.json cannot be read"):
        Job(tmp_path).status()


def test_a_program_that_cannot_run_is_named(tmp_path):
    with pytest.raises(SubmitError, match="/no/such cannot be started: No such file"):
        launch(["/no/such"], tmp_path, {})
