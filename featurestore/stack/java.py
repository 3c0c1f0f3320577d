"""Find a Java that Spark and Kafka run on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import StackError
from featurestore.stack.versions import JAVA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_KNOWN_HOMES = (
    "/usr/lib/jvm/*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "/opt/homebrew/opt/openjdk@*",
    "/usr/local/opt/openjdk@*",
)
"""Where installers put a Java that is on no PATH; Homebrew's is never on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Java:
    """A Java installation that was run and answered.

    Attributes:
        executable: The ``java`` command.
        version: Its major version: 17, not 17.0.15.
    """

    executable: Path
    version: int

    @property
    def home(self) -> Path:
        """The directory that JAVA_HOME names."""
        return self.executable.resolve().parent.parent


def parse_version(text: str) -> int | None:
    """Return the major version out of what ``java -version`` prints, or None.

    >>> parse_version('openjdk version "17.0.15" 2025-04-15'), parse_version('java version "1.8.0_392"')
    (17, 8)
    >>> parse_version('openjdk version "21-ea" 2023-09-19'), parse_version("No Java runtime present")
    (21, None)
    """
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found.group(1)) if found else None


def find_java(environment: Mapping[str, str] | None = None, *, search: tuple[str, ...] = _KNOWN_HOMES) -> Java:
    """Return the first usable Java: JAVA_HOME, then PATH, then where installers put it.

    Args:
        environment: Variables to look at; the process's own by default.
        search: Patterns of further Java homes.

    Raises:
        StackError: None is there, or none has a version out of 17 and 21; the message names what was found.
    """
    environment = os.environ if environment is None else environment
    found: list[str] = []
    for executable in _candidates(environment, search):
        version = _version_of(executable)
        if version in JAVA:
            return Java(executable=executable, version=version)
        found.append(f"{executable} (version {version or 'unknown'})")
    wanted = " or ".join(str(version) for version in JAVA)
    seen = "none was found" if not found else "found only " + ", ".join(dict.fromkeys(found))
    raise StackError(f"Java {wanted} is needed and {seen}.", hint=install_hint())


def install_hint() -> str:
    """Return how to install Java on this kind of machine."""
    version = JAVA[0]
    if sys.platform == "darwin":
        return f"brew install openjdk@{version}"
    if shutil.which("apt-get") is None:
        return f"install a JDK or JRE {version} with the system's package manager, or set JAVA_HOME to one."
    command = f"apt-get install openjdk-{version}-jre-headless (or openjdk-{JAVA[-1]}-jre-headless)"
    if os.geteuid() == 0:
        return f"{command}, or scripts/demo --install-java."
    if shutil.which("sudo"):
        return f"sudo {command}, or scripts/demo --install-java."
    return f"ask an administrator to run {command}, or set JAVA_HOME to a Java {version}."


def _candidates(environment: Mapping[str, str], search: tuple[str, ...]) -> Iterator[Path]:
    if environment.get("JAVA_HOME"):
        yield Path(environment["JAVA_HOME"]) / "bin" / "java"
    on_path = shutil.which("java", path=environment.get("PATH", os.defpath))
    if on_path:
        yield Path(on_path)
    for pattern in search:
        for home in sorted(Path("/").glob(pattern.lstrip("/"))):
            if (home / "bin" / "java").is_file():
                yield home / "bin" / "java"


def _version_of(executable: Path) -> int | None:
    try:
        answer = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stderr + answer.stdout)
