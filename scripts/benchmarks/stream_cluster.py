"""A standalone cluster of Spark on loopback: a master, and workers of one core each, as processes of their own."""

from __future__ import annotations

import os
import sys
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyspark

from featurestore.stack.java import find_java
from featurestore.stack.ports import free_ports
from featurestore.stack.process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

EXECUTOR_CONF = {
    "spark.executor.cores": "1",
    "spark.executor.memory": "1g",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",  # as the driver of a local job
}
_DEPLOY = "org.apache.spark.deploy"
_DEADLINE_S = 60.0


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """Start a master and workers, yield the master's URL, and stop them again; they are children of this process."""
    master_port, master_page, *pages = free_ports(2 + workers)
    url = f"spark://127.0.0.1:{master_port}"
    os.environ["PYSPARK_PYTHON"] = sys.executable  # the driver says what executors run their Python workers with
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    with ExitStack() as running:
        _start(
            running, folder, "master", master_page,
            "--host", "127.0.0.1", "--port", str(master_port), "--webui-port", str(master_page),
        )  # fmt: skip
        for number, page in enumerate(pages):
            _start(
                running, folder, f"worker-{number}", page,
                "--host", "127.0.0.1", "--webui-port", str(page), "--cores", "1", "--memory", "1500m",
                "--work-dir", str(folder / "work"), url,
            )  # fmt: skip
        yield url


def _start(running: ExitStack, folder: Path, name: str, page: int, *arguments: str) -> None:
    kind = name.partition("-")[0]
    program = f"{_DEPLOY}.{kind}.{kind.capitalize()}"
    home = Path(pyspark.__file__).parent
    process = ServerProcess(
        name,
        [str(home / "bin" / "spark-class"), program, *arguments],
        folder,
        environment={
            "JAVA_HOME": str(find_java().home), "SPARK_HOME": str(home), "SPARK_DAEMON_MEMORY": "256m",
        },
    )  # fmt: skip
    running.callback(process.stop)
    process.start()
    process.wait_until(lambda: _serves(page), _DEADLINE_S)


def _serves(page: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{page}/json/", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
