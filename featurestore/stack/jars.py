"""The jars of Spark's connectors and of the Kafka broker, fetched once into a cache.

A set of jars lives in a directory named after the versions in it. It is fetched into a directory beside it and renamed
when complete, under a lock, so that a directory which exists is whole, whoever was interrupted or ran at the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import StackError
from featurestore.stack import ivy
from featurestore.stack.java import find_java
from featurestore.stack.versions import KAFKA, KAFKA_JARS, SPARK, SPARK_JARS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CACHE_VARIABLE = "FEATURESTORE_CACHE"
_CONTENTS = "contents.json"
_VERSION_SUFFIX = re.compile(r"-v?\d.*$")


def cache_directory() -> Path:
    """Return where fetched things are kept: $FEATURESTORE_CACHE, else ~/.cache/featurestore."""
    configured = os.environ.get(CACHE_VARIABLE, "").strip()
    return Path(configured).expanduser().resolve() if configured else Path.home() / ".cache" / "featurestore"


def spark_jars(cache: Path | None = None) -> list[Path]:
    """Return the jars Spark needs beyond those inside pyspark, for ``spark.jars``; fetched when not in the cache.

    Raises:
        StackError: pyspark or Java is missing, or the registry cannot be reached.
    """
    carried = {module_of(jar.name) for jar in _pyspark_jars().glob("*.jar")}
    directory = ensure(f"spark-{SPARK}", SPARK_JARS, label="Spark and Delta jars", without=carried, cache=cache)
    return sorted(directory.glob("*.jar"))


def kafka_jars(cache: Path | None = None) -> Path:
    """Return the directory of the Kafka broker's jars; fetched when not in the cache.

    Raises:
        StackError: pyspark (for Ivy) or Java is missing, or the registry cannot be reached.
    """
    return ensure(f"kafka-{KAFKA}", KAFKA_JARS, label="Kafka jars", cache=cache)


def module_of(jar: str) -> str:
    """Return the artifact name of a jar's file name.

    >>> module_of("spark-sql_2.13-4.2.0.jar"), module_of("jackson-core-asl-1.9.13.jar")
    ('spark-sql_2.13', 'jackson-core-asl')
    """
    return _VERSION_SUFFIX.sub("", jar.removesuffix(".jar"))


def ensure(
    name: str, coordinates: Sequence[str], *, label: str, without: set[str] | None = None, cache: Path | None = None
) -> Path:
    """Return the directory that holds exactly the jars of these coordinates and what they need.

    Args:
        name: First part of the directory's name.
        coordinates: ``group:artifact:version`` of what is wanted.
        label: What the progress line calls the set.
        without: Artifact names to leave out.
        cache: Root of the cache; :func:`cache_directory` by default.
    """
    wanted = ivy.ivy_file(name, coordinates, without or ())
    target = directory_of(name, wanted, cache or cache_directory())
    root = target.parent
    if is_whole(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{target.name}.lock"):
            if not is_whole(target):
                _fetch(target, wanted, label)
    except OSError as error:
        raise StackError(
            f"the cache {root} cannot be written: {error}.", hint=f"set {CACHE_VARIABLE} to a directory of yours."
        ) from error
    return target


def directory_of(name: str, ivy_xml: str, cache: Path) -> Path:
    """Return where the jars that an Ivy file asks for are kept; another request is another directory."""
    return cache / "jars" / f"{name}-{hashlib.sha256(ivy_xml.encode()).hexdigest()[:10]}"


def is_whole(directory: Path) -> bool:
    """Tell whether every jar that was fetched is still there at its size: caches get cleaned by hand."""
    try:
        contents = json.loads((directory / _CONTENTS).read_text())
        return bool(contents) and all((directory / jar).stat().st_size == size for jar, size in contents.items())
    except (OSError, ValueError):
        return False


def _fetch(target: Path, wanted: str, label: str) -> None:
    java, ivy_jar = find_java(), _ivy_jar()
    partial = target.with_name(f"{target.name}.partial")
    lib = partial / "lib"
    shutil.rmtree(lib, ignore_errors=True)
    lib.mkdir(parents=True)
    ivy_xml = partial / "ivy.xml"
    ivy_xml.write_text(wanted)
    started = time.monotonic()
    with _progress_line(label) as report:
        # Ivy's own cache outlives a failed run, so that the next one goes on where this one stopped.
        ivy.retrieve(
            java=java.executable, ivy_jar=ivy_jar, ivy_xml=ivy_xml, cache=partial / "ivy", into=lib, report=report
        )
        contents = {jar.name: jar.stat().st_size for jar in sorted(lib.glob("*.jar"))}
        megabytes = sum(contents.values()) / 2**20
        report(f"{len(contents)} jars, {megabytes:.0f} MB in {time.monotonic() - started:.0f} s")
    (lib / _CONTENTS).write_text(json.dumps(contents, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    lib.rename(target)
    shutil.rmtree(partial, ignore_errors=True)


def _pyspark_jars() -> Path:
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise StackError("pyspark is not installed.", hint="pip install 'featurestore[spark]'")
    return Path(found.origin).parent / "jars"


def _ivy_jar() -> Path:
    directory = _pyspark_jars()
    jars = sorted(directory.glob("ivy-*.jar"))
    if not jars:
        raise StackError(f"{directory} has no ivy-*.jar.", hint=f"reinstall pyspark=={SPARK}: pip carries its jars.")
    return jars[-1]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress_line(label: str) -> Iterator[Callable[[object], None]]:
    """Yield a function that shows progress: rewritten in place on a terminal, first and last state elsewhere."""
    live, stream, last = sys.stderr.isatty(), sys.stderr, ""
    if not live:
        print(f"fetching {label} ...", file=stream, flush=True)

    def show(state: object) -> None:
        nonlocal last
        if live and str(state) != last:
            print(f"\r\x1b[Kfetching {label}: {state}", end="", file=stream, flush=True)
        last = str(state)

    try:
        yield show
    finally:
        print("" if live else f"fetching {label}: {last or 'stopped'}", file=stream, flush=True)
