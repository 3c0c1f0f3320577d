"""Who may call, and what: loopback needs nobody's leave, anything wider needs API keys or tokens.

A key is ``<id>.<secret>``. The file holds one ``<id>:<sha256 of the secret, hexadecimal> [scope ...]`` a line, so that reading
it gives no key away; two lines with different ids are two live keys, which is how one is rotated. Comparison takes the same time
whether the id is known or not.

Scopes are ``score:MODEL``, ``lookup:SERVICE`` and ``admin``; ``*`` in the place of a name is any. A key without scopes has all.
A token (scoring/tokens.py) has those that it names.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import ConfigError
from featurestore.scoring.problems import forbidden, unauthorized
from featurestore.scoring.read_again import ReadAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from featurestore.scoring.tokens import Tokens

_LINE = re.compile(r"([A-Za-z0-9_-]{1,64}):([0-9a-f]{64})((?: +\S+)*)")
_SCOPE = re.compile(r"(?:score|lookup):(?:\*|[A-Za-z0-9_-]{1,64})|admin|\*")
_MAX_KEY_BYTES = 256

ADMIN = "admin"


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


def require_safe_bind(host: str, gate: Gate | ApiKeys | None) -> None:
    """Return when the address may be served.

    Raises:
        ConfigError: Other machines could reach it and nobody would be asked for a credential.
    """
    if gate is None and not is_loopback(host):
        raise ConfigError(
            f"host {host!r} can be reached from other machines, and no API keys are configured.",
            hint="pass an API key file or a token key file, or bind to 127.0.0.1 behind a proxy that authenticates.",
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what they may do.

    Attributes:
        name: Id of the key, or subject of the token.
        scopes: What is allowed.
    """

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Return whether a scope like ``score:fraud`` or ``admin`` is among theirs."""
        kind, _, name = scope.partition(":")
        return "*" in self.scopes or scope in self.scopes or (name != "" and f"{kind}:*" in self.scopes)


def check_scopes(scopes: Iterable[str], *, where: str) -> frozenset[str]:
    """Return the scopes.

    Raises:
        ConfigError: One is none.
    """
    found = frozenset(scopes)
    for scope in sorted(found):
        if not _SCOPE.fullmatch(scope):
            raise ConfigError(
                f"{where}: {scope[:80]!r} is no scope.", hint="write score:MODEL, lookup:SERVICE, admin, or * for all."
            )
    return found


def new_key(key_id: str, scopes: Sequence[str] = ()) -> tuple[str, str]:
    """Return a fresh key to hand out, and the line to put into the file.

    Args:
        key_id: Its name.
        scopes: What it may do; all when there are none.

    Raises:
        ConfigError: The id has other characters than letters, digits, _ and -; or a scope is none.
    """
    secret = secrets.token_urlsafe(32)
    allowed = "".join(f" {scope}" for scope in sorted(check_scopes(scopes, where=f"API key {key_id[:80]}")))
    line = f"{key_id}:{hashlib.sha256(secret.encode()).hexdigest()}{allowed}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"API key id {key_id[:80]!r} is not allowed.", hint="use letters, digits, _ and -.")
    return f"{key_id}.{secret}", line


class ApiKeys:
    """The keys that are let in, as hashes."""

    def __init__(self, hashes: dict[str, str], scopes: dict[str, frozenset[str]] | None = None) -> None:
        self._hashes = dict(hashes)
        self._callers = {
            key_id: Caller(key_id, (scopes or {}).get(key_id) or frozenset({"*"})) for key_id in self._hashes
        }
        self._nobody = secrets.token_hex(32)

    @classmethod
    def from_file(cls, path: str | Path) -> ApiKeys:
        """Return the keys in a file; empty lines and lines that start with # are skipped.

        Raises:
            ConfigError: The file is unreadable, empty, or a line is not ``id:sha256 [scope ...]``; it is named, never shown.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file {path} cannot be read ({type(error).__name__}).") from error
        hashes: dict[str, str] = {}
        scopes: dict[str, frozenset[str]] = {}
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
            scopes[match[1]] = check_scopes(match[3].split(), where=f"api_key_file {path}: line {number}")
        if not hashes:
            raise ConfigError(f"api_key_file {path} holds no key.", hint="add a line id:sha256.")
        return cls(hashes, scopes)

    def caller(self, key: bytes) -> Caller | None:
        """Return whose key it is; None for no live key."""
        if len(key) > _MAX_KEY_BYTES:
            return None
        name, _, secret = key.partition(b".")
        key_id = name.decode("latin-1")
        expected = self._hashes.get(key_id, self._nobody)
        is_live = hmac.compare_digest(hashlib.sha256(secret).hexdigest(), expected)
        return self._callers.get(key_id) if is_live else None


class KeyFile:
    """The keys of a file, which is read again when it changes.

    Args:
        path: The file.
        clock: Seconds.

    Raises:
        ConfigError: As of ``ApiKeys.from_file``.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = ReadAgain([path], lambda: ApiKeys.from_file(path), clock=clock)

    def caller(self, key: bytes) -> Caller | None:
        """Return whose key it is; None for no key that is alive as of a second ago at the latest."""
        return self._keys.now().caller(key)


class Gate:
    """Lets a request in by its one credential: ``X-API-Key: KEY``, ``Authorization: Bearer KEY`` or ``Bearer TOKEN``.

    Args:
        keys: The API keys.
        tokens: Verifies tokens.
    """

    def __init__(self, keys: ApiKeys | KeyFile | None = None, tokens: Tokens | None = None) -> None:
        self._keys = keys
        self._tokens = tokens

    def require(self, headers: Sequence[tuple[bytes, bytes]], scope: str | None) -> Caller:
        """Return the caller.

        Args:
            headers: Names in lower case.
            scope: What is asked for; None for what every known caller may.

        Raises:
            Refusal: 401 without a live credential, or with two; 403 when it has other scopes.
        """
        caller = self._caller(headers)
        if caller is None:
            raise unauthorized()
        if scope is not None and not caller.may(scope):
            raise forbidden(scope)
        return caller

    def _caller(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller | None:
        given = [(name, value) for name, value in headers if name in (b"authorization", b"x-api-key")]
        if len(given) != 1:
            return None
        name, value = given[0]
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")
            if scheme.lower() != b"bearer":
                return None
        value = value.strip()
        if value.count(b".") == 2:  # a key has one dot
            return None if self._tokens is None else self._tokens.caller(value)
        return None if self._keys is None else self._keys.caller(value)
