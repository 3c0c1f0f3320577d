"""The Spark session of tests, local jobs and training sets: Delta and Kafka enabled, everything on loopback."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import SparkSession

from featurestore.engines.class_archive import with_classes
from featurestore.stack.jars import spark_jars
from featurestore.stack.java import find_java

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_POOLS = Path(__file__).with_name("pools.xml")
_LOGGING = Path(__file__).with_name("log4j2.properties")

SQL_CONF: dict[str, str] = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.sql.streaming.metricsEnabled": "false",
    "spark.sql.session.timeZone": "UTC",
}
"""What every session needs, wherever it runs."""

LOCAL_CONF: dict[str, str] = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.driver.extraJavaOptions": f"-Xss8m -Dlog4j2.configurationFile={_LOGGING.as_uri()}",
    "spark.scheduler.mode": "FAIR",
    "spark.scheduler.allocation.file": _POOLS.as_uri(),
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
"""What keeps a local session small, quiet and on loopback; measured as a whole, not one by one."""

JOB_CONF: dict[str, str] = {
    **LOCAL_CONF,
    # Without that compiler Java sets 48 MB aside for machine code instead of 240, and Spark makes classes for every batch.
    "spark.driver.extraJavaOptions": f"{LOCAL_CONF['spark.driver.extraJavaOptions']} -XX:TieredStopAtLevel=1 "
    "-XX:ReservedCodeCacheSize=240m",
    # Over TCP, what Spark and a Python worker say to each other in small pieces waits for delayed acknowledgements: twice 40 ms.
    "spark.python.unix.domain.socket.enabled": "true",
}
"""For a local streaming job. Its JVM plans short batches and hands bytes on; the work is done in Python. Without the optimising
compiler, which competes for the same cores, a batch takes half the time and a million events two thirds of the CPU."""


def build_session(
    app_name: str, *, master: str | None = "local[2]", conf: Mapping[str, str] | None = None
) -> SparkSession:
    """Return a Spark session that reads and writes Delta tables and Kafka topics.

    Args:
        app_name: What Spark calls the application.
        master: Where it runs, as spark-submit takes it. None inside a job that spark-submit started: then master, jars,
            memory and logging are what it was submitted with.
        conf: Spark settings over those of this module.

    Raises:
        StackError: Java or the connector jars cannot be had.
    """
    builder = SparkSession.builder.appName(app_name)
    settings = dict(SQL_CONF)
    is_local = master is not None and master.startswith("local")
    jars = [] if master is None else spark_jars()
    if master is not None:
        os.environ.setdefault("JAVA_HOME", str(find_java().home))
        builder = builder.master(master)
        settings["spark.jars"] = ",".join(map(str, jars))
    if is_local:
        # Spark would run its workers with whatever python3 is on the PATH; it reads this variable, no setting.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        settings |= LOCAL_CONF
    settings |= conf or {}
    if is_local:
        settings = with_classes(settings, jars)
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


@contextmanager
def local_session(app_name: str) -> Iterator[SparkSession]:
    """Give the Spark session that runs in this process, or one on two threads that is stopped again.

    Raises:
        StackError: Java or the connector jars cannot be had.
    """
    running = SparkSession.getActiveSession()
    session = running or build_session(app_name)
    try:
        yield session
    finally:
        if running is None:
            session.stop()
