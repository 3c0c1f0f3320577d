"""The files of models: ``<root>/<name>/<version>/``, and ``<root>/<name>/aliases.json`` beside the versions.

The aliases say which version a registry calls ``champion``, ``challenger`` and ``previous``. They are replaced whole, and are
what a scorer follows, whether or not the registry can be reached. Names are checked before they become paths, links are not
followed, and no file is read beyond a size.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from featurestore.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
ALIASES_FILE = "aliases.json"
MAX_MANIFEST_BYTES = 1024 * 1024


def check_model_name(name: str) -> str:
    """Return the name if it may be one.

    Raises:
        ModelError: It does not match ``[a-z][a-z0-9_-]{0,62}``.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ModelError(
            f"model name {str(name)[:80]!r} is not allowed.",
            hint="use lower-case letters, digits, _ and -, start with a letter, 63 characters at most.",
        )
    return name


def read_aliases(root: str | Path, name: str) -> dict[str, int]:
    """Return alias to version, as the registry last said; none where no registry has.

    Raises:
        ModelError: The file is unreadable.
    """
    path = Path(root) / check_model_name(name) / ALIASES_FILE
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(read_file(path, MAX_MANIFEST_BYTES), type=dict[str, int])
    except msgspec.DecodeError as error:
        raise ModelError(f"{path} is unreadable ({error}).", hint="run featurestore models sync.") from None


def write_aliases(root: str | Path, name: str, aliases: Mapping[str, int]) -> None:
    """Make these the aliases of a model, all at once.

    Raises:
        ModelError: The folder cannot be written.
    """
    home = Path(root) / check_model_name(name)
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=".aliases-", dir=home)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(msgspec.json.encode(dict(sorted(aliases.items()))) + b"\n")
            file.flush()
            os.fsync(descriptor)
        Path(aside).replace(home / ALIASES_FILE)
    except OSError as error:
        raise ModelError(f"model {name}: {home} cannot be written ({error.strerror}).") from error


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return a file's bytes; links, devices, pipes and files over the limit are refused before a byte is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise ModelError(f"{path} cannot be read ({reason}).") from error
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ModelError(f"{path} is not a regular file.")
        if facts.st_size > max_bytes:
            raise ModelError(f"{path} has {facts.st_size} bytes; {max_bytes} are allowed.")
        return file.read(max_bytes + 1)


def write_version(home: Path, version: int, files: Mapping[str, bytes]) -> bool:
    """Make a version's directory appear whole, flushed; return False if another writer took the number."""
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
    try:
        for name, data in files.items():
            with (aside / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        aside.chmod(0o755)
        try:
            aside.rename(home / str(version))  # fails on a directory that holds anything
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        descriptor = os.open(home, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)
