"""The classes that a local driver loads, kept ready for the JVM to map: class-data sharing.

Reading and checking some 20,000 classes out of jars is two fifths of what a driver costs until its first batch is in Delta.
One short run (``engines.spark_rehearsal``) has the JVM write down what it has loaded; drivers on this machine start from that:

    rehearsal  --(-XX:ArchiveClassesAtExit)-->  CACHE/classes/KEY.SIZE.jsa  --(-XX:SharedArchiveFile)-->  drivers

The key names the JVM and every jar of the class path. The JVM compares both once more and goes without an archive that does
not fit. So an archive that is missing, foreign or broken costs the gain, never a start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import StackError
from featurestore.stack.jars import cache_directory, spark_jars
from featurestore.stack.java import find_java

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SWITCH = "FEATURESTORE_CLASS_ARCHIVE"
"""Set to 0, no archive is made or used."""

_OPTIONS, _CLASS_PATH = "spark.driver.extraJavaOptions", "spark.driver.extraClassPath"
_QUIET = "-Xlog:cds=off -Xlog:cds+dynamic=off -Xlog:class+path=off"
_REHEARSAL_S = 300.0
_UNUSED_S = 30 * 86_400.0


def with_classes(conf: Mapping[str, str], jars: Sequence[Path]) -> dict[str, str]:
    """Return the settings of a local driver, with the archive if there is one for it.

    Args:
        conf: The settings, those of the user included.
        jars: Of the connectors. Only what the JVM finds on its own class path can be archived, so they go there too.
    """
    conf = dict(conf)
    if any(flag in conf.get(_OPTIONS, "") for flag in ("-XX:SharedArchiveFile", "-XX:ArchiveClassesAtExit", "-Xshare")):
        return conf
    archive = _present(_key(jars))
    if archive is None:
        return conf
    with contextlib.suppress(OSError):
        os.utime(archive)  # it is in use
    return conf | _flags(conf, jars, f"-XX:SharedArchiveFile={archive} {_QUIET}")


def make() -> str:
    """Make the archive unless it is there; return in words what became of it. Processes that make it at once make one.

    Raises:
        StackError: Java or the connector jars cannot be had.
    """
    if _is_off():
        return f"no class archive: {SWITCH}=0"
    find_java()
    jars = spark_jars()
    key, root, error = _key(jars), _root(), None
    if key is None:
        return "no class archive: Java or a jar cannot be read"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _present(key) is None:
                _forget_unused(root)
                with tempfile.TemporaryDirectory(dir=root) as folder:
                    made = Path(folder) / "made.jsa"
                    error = _rehearse(Path(folder), made, jars)
                    if error is None:
                        made.replace(root / f"{key}.{made.stat().st_size}.jsa")
    except (OSError, subprocess.SubprocessError) as failure:
        error = str(failure)
    return str(_present(key)) if error is None else f"no class archive: {error}"


def make_in_background() -> None:
    """Make it in a process that takes the processor only when nothing else wants it, and outlives this one."""
    nice = shutil.which("nice")
    if _is_off() or nice is None or importlib.util.find_spec("pyspark") is None:
        return
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [nice, "-n", "19", sys.executable, "-m", "featurestore.engines.class_archive"],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _is_off() -> bool:
    return os.environ.get(SWITCH, "").strip() == "0"


def _spark_home() -> Path | None:
    """Return the Spark whose jars a driver has: SPARK_HOME's, as for spark-submit, else pyspark's own."""
    configured = os.environ.get("SPARK_HOME", "").strip()
    if configured:
        return Path(configured)
    found = importlib.util.find_spec("pyspark")
    return None if found is None or found.origin is None else Path(found.origin).parent


def _root() -> Path:
    return cache_directory() / "classes"


def _present(key: str | None) -> Path | None:
    """Return the archive if it is there and whole: a JVM that maps one that was cut short dies of it."""
    for each in _root().glob(f"{key}.*.jsa"):
        with contextlib.suppress(OSError):
            if each.name == f"{key}.{each.stat().st_size}.jsa":
                return each
    return None


def _key(jars: Sequence[Path]) -> str | None:
    """Return what stands for this JVM and these jars; None where one of them is not there, or no archive is wanted."""
    home = _spark_home()
    if _is_off() or home is None:
        return None
    try:
        parts = [find_java().home / "lib" / "modules", *jars, *sorted((home / "jars").glob("*.jar"))]
        seen = [f"{part} {(state := part.stat()).st_size} {state.st_mtime_ns}" for part in parts]
    except (OSError, StackError):
        return None
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _flags(conf: Mapping[str, str], jars: Sequence[Path], flags: str) -> dict[str, str]:
    own = [conf[_CLASS_PATH]] if conf.get(_CLASS_PATH) else []
    return {
        _OPTIONS: f"{conf.get(_OPTIONS, '')} {flags}".strip(),
        _CLASS_PATH: os.pathsep.join([*map(str, jars), *own]),
    }


def _rehearse(folder: Path, archive: Path, jars: Sequence[Path]) -> str | None:
    """Run the rehearsal, whose JVM writes the archive as it ends; return what went wrong."""
    flags = _flags({}, jars, f"-XX:ArchiveClassesAtExit={archive} -Xlog:disable")
    command = [sys.executable, "-m", "featurestore.engines.spark_rehearsal", str(folder), json.dumps(flags)]
    with (folder / "log").open("w+b") as log:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=_REHEARSAL_S,
            check=False,
        )
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    if ended.returncode or not archive.is_file():
        return f"the rehearsal ended with {ended.returncode}: {said[-1] if said else 'it said nothing'}"
    return None


def _environment() -> dict[str, str]:
    """Return the variables of a process that can import this package."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _forget_unused(folder: Path) -> None:
    for each in folder.glob("*.jsa"):
        if time.time() - each.stat().st_mtime > _UNUSED_S:
            each.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.stdout.write(make() + "\n")
