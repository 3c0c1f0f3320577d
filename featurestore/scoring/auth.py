"""Who may call: loopback needs nobody's leave, anything wider needs API keys.

A key is ``<id>.<secret>``. The file holds one ``<id>:<sha256 of the secret, hexadecimal>`` a line, so that reading it
gives no key away; two lines with different ids are two live keys, which is how one is rotated. Comparison takes
the same time whether the id is known or not.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from pathlib import Path

from featurestore.errors import ConfigError

_LINE = re.compile(r"([A-Za-z0-9_-]{1,64}):([0-9a-f]{64})")
_MAX_KEY_BYTES = 256


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("db.example")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_safe_bind(host: str, keys: ApiKeys | None) -> None:
    """Return when the address may be served.

    Raises:
        ConfigError: Other machines could reach it and nobody would be asked for a key.
    """
    if keys is None and not is_loopback(host):
        raise ConfigError(
            f"host {host!r} can be reached from other machines, and no API keys are configured.",
            hint="pass api_key_file=, or bind to 127.0.0.1 behind a proxy that authenticates.",
        )


def new_key(key_id: str) -> tuple[str, str]:
    """Return a fresh key to hand out, and the line to put into the file.

    Raises:
        ConfigError: The id has other characters than letters, digits, _ and -.
    """
    secret = secrets.token_urlsafe(32)
    line = f"{key_id}:{hashlib.sha256(secret.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"API key id {key_id[:80]!r} is not allowed.", hint="use letters, digits, _ and -.")
    return f"{key_id}.{secret}", line


class ApiKeys:
    """The keys that are let in, as hashes."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = dict(hashes)
        self._nobody = secrets.token_hex(32)

    @classmethod
    def from_file(cls, path: str | Path) -> ApiKeys:
        """Return the keys in a file; empty lines and lines that start with # are skipped.

        Raises:
            ConfigError: The file is unreadable, empty, or a line is not ``id:sha256``; the line is named, never shown.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file {path} cannot be read ({type(error).__name__}).") from error
        hashes: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            match = _LINE.fullmatch(text)
            if match is None or match[1] in hashes:
                reason = "is not id:sha256" if match is None else "repeats an id"
                raise ConfigError(
                    f"api_key_file {path}: line {number} {reason}.",
                    hint="store the sha256 of the secret as 64 lower-case hexadecimal digits, not the secret.",
                )
            hashes[match[1]] = match[2]
        if not hashes:
            raise ConfigError(f"api_key_file {path} holds no key.", hint="add a line id:sha256.")
        return cls(hashes)

    def admits(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return whether the request's one ``Authorization: Bearer`` or ``X-API-Key`` header holds a live key."""
        given = [value for name, value in headers if name in (b"authorization", b"x-api-key")]
        if len(given) != 1 or len(given[0]) > _MAX_KEY_BYTES:
            return False
        key = given[0].removeprefix(b"Bearer ").strip()
        key_id, _, secret = key.partition(b".")
        expected = self._hashes.get(key_id.decode("latin-1"), self._nobody)
        return hmac.compare_digest(hashlib.sha256(secret).hexdigest(), expected)
