"""Fetch Maven artifacts with Ivy, whose jar pyspark carries: no Maven, no Gradle, nothing else to install.

What a run prints decides what its failure means: a registry that did not answer is not an artifact that does not exist.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from featurestore.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SETTINGS_VARIABLE = "FEATURESTORE_IVY_SETTINGS"
"""Names an Ivy settings file (or its URL): mirrors, proxies, credentials."""

_UNREACHABLE = re.compile(
    r"server access error|unknownhost|host \S+ not found|connection (refused|reset)|connectexception|timed out"
    r"|no route to host|network is unreachable|sslhandshake|pkix|problem while downloading|http error code",
    re.IGNORECASE,
)
_STALL_S = 180.0
_ATTEMPTS = 2


@dataclass(slots=True)
class Progress:
    """What a run has done so far, read off Ivy's own messages."""

    found: int = 0
    jars: int = 0
    kilobytes: int = 0
    _rest: str = field(default="", repr=False)

    def read(self, text: str) -> None:
        """Take in another piece of output, cut anywhere."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith("\tfound "):
                self.found += 1
            elif "[SUCCESSFUL ]" in line:
                self.jars += 1
            elif size := re.search(r"\((\d+)kB\)$", line.strip()):
                self.kilobytes += int(size.group(1))

    def __str__(self) -> str:
        if not self.jars:
            return f"resolving, {self.found} modules"
        return f"{self.jars} jars, {self.kilobytes / 1024:.0f} MB"


def ivy_file(name: str, coordinates: Iterable[str], excluded_modules: Iterable[str]) -> str:
    """Return the Ivy file that asks for ``group:artifact:version`` coordinates and what they need at run time.

    Args:
        name: What the set is called in messages.
        coordinates: What is wanted.
        excluded_modules: Artifact names that are there already, from whatever group.
    """
    lines = [
        '<ivy-module version="2.0">',
        f'  <info organisation="featurestore" module={quoteattr(name)}/>',
        '  <configurations><conf name="default"/></configurations>',
        "  <dependencies>",
    ]
    for coordinate in coordinates:
        group, artifact, version = map(quoteattr, coordinate.split(":"))
        lines.append(f'    <dependency org={group} name={artifact} rev={version} conf="default->default"/>')
    lines += [f"    <exclude module={quoteattr(module)}/>" for module in sorted(excluded_modules)]
    return "\n".join([*lines, "  </dependencies>", "</ivy-module>", ""])


def retrieve(
    *,
    java: Path,
    ivy_jar: Path,
    ivy_xml: Path,
    cache: Path,
    into: Path,
    report: Callable[[Progress], None] = lambda _: None,
    stall_s: float = _STALL_S,
) -> None:
    """Resolve an Ivy file and copy its jars ``into`` a directory; what is in ``cache`` is not fetched again.

    Raises:
        StackError: The registry cannot be reached, an artifact does not exist, or Ivy failed otherwise.
    """
    settings = os.environ.get(SETTINGS_VARIABLE, "").strip()
    if settings and "://" not in settings and not Path(settings).is_file():
        raise StackError(f"{SETTINGS_VARIABLE}: there is no file {settings!r}.", hint="name an Ivy settings file.")
    command = [str(java), "-Dsun.net.client.defaultConnectTimeout=20000", "-Dsun.net.client.defaultReadTimeout=60000"]
    command += ["-cp", str(ivy_jar), "org.apache.ivy.Main", *(["-settings", settings] if settings else [])]
    command += ["-cache", str(cache), "-ivy", str(ivy_xml), "-types", "jar", "bundle"]
    command += ["-retrieve", f"{into}/[artifact]-[revision](-[classifier]).[ext]"]
    output, error = "", StackError("Ivy did not run.")
    for _ in range(_ATTEMPTS):
        code, output = _run(command, report, stall_s)
        if code == 0:
            return
        error = explain_failure(output, settings=settings)
        if not _UNREACHABLE.search(output):
            break
    raise error


def explain_failure(output: str, *, settings: str = "") -> StackError:
    """Return the error that Ivy's output amounts to."""
    missing = sorted(set(re.findall(r":: (\S+#\S+;\S+?):? not found", output)))
    if trouble := _UNREACHABLE.search(output):
        line = next(line for line in output.splitlines() if trouble.group(0) in line).strip()[:200]
        where = f"the registry of {settings}" if settings else "the Maven registry"
        return StackError(
            f"{where} cannot be reached: {line}.".replace("..", "."),
            hint=f"check the network, or set {SETTINGS_VARIABLE} to an Ivy settings file that names a mirror.",
        )
    if missing:
        return StackError(
            f"the registry answered but does not have {', '.join(missing)}.",
            hint=f"a mirror may be incomplete: set {SETTINGS_VARIABLE} to an Ivy settings file that names another.",
        )
    tail = " | ".join(line.strip() for line in output.splitlines()[-5:] if line.strip())
    return StackError(f"Ivy could not fetch the jars: {tail[:500] or 'it printed nothing'}.")


def _run(command: Sequence[str], report: Callable[[Progress], None], stall_s: float) -> tuple[int, str]:
    """Run Ivy to its end; one that prints nothing for ``stall_s`` seconds counts as timed out."""
    progress = Progress()
    pieces: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as ivy:
        try:
            assert ivy.stdout is not None  # noqa: S101  a pipe was asked for
            heard = time.monotonic()
            while True:
                readable, _, _ = select.select([ivy.stdout], [], [], 1.0)
                piece = os.read(ivy.stdout.fileno(), 65536) if readable else None
                if piece == b"":
                    return ivy.wait(), "".join(pieces)
                if piece is None and time.monotonic() - heard > stall_s:
                    ivy.kill()
                    return 1, "".join([*pieces, f"\ntimed out: no answer for {stall_s:.0f} s"])
                if piece:
                    heard = time.monotonic()
                    pieces.append(piece.decode(errors="replace"))
                    progress.read(pieces[-1])
                    report(progress)
        except BaseException:
            ivy.kill()
            raise
