"""Tokens: JSON Web Tokens (RFC 7519) that an identity provider signed, verified with its public keys.

Rules:
    1. The algorithm is the one configured, never the one a token asks for; ``none`` does not exist. A shared secret (HS256) and
       a public key cannot stand in for each other: each algorithm takes its own kind of key.
    2. ``exp``, ``aud`` and ``iss`` have to be there and have to fit; ``nbf`` is held where it is there.
    3. Scopes are the words of ``scope``, or the list ``scp``; a token without any may do nothing.
    4. Keys come from a file, a JWKS with one key per ``kid`` or a PEM: nothing is fetched while serving. The file is read
       again when it has changed, so that the provider's keys can be rotated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import ConfigError
from featurestore.scoring.auth import Caller
from featurestore.scoring.read_again import ReadAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "HS256")
_MAX_TOKEN_BYTES = 8192
_KEPT = 1024
_LEAST_SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """What a token has to be.

    Attributes:
        key_file: JWKS (JSON) or PEM with the provider's public keys; for HS256 the secret, 32 bytes at least.
        algorithm: The one that is taken.
        audience: Has to be in ``aud``.
        issuer: Has to be ``iss``.
        leeway: Seconds by which clocks may differ.

    Raises:
        ConfigError: One is missing, or the algorithm is none of ``ALGORITHMS``.
    """

    key_file: str | Path
    audience: str
    issuer: str
    algorithm: str = "RS256"
    leeway: float = 10.0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(f"token algorithm {self.algorithm!r} is not one of {', '.join(ALGORITHMS)}.")
        for name in ("audience", "issuer"):
            if not getattr(self, name):
                raise ConfigError(
                    f"tokens need their {name}.",
                    hint=f"set serve.token_{name}: a token for another service must not do.",
                )


class Tokens:
    """Verifies tokens, and remembers those that it has verified until they expire.

    Args:
        settings: What a token has to be.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The key file is unreadable, or holds no key for the algorithm; or PyJWT is not installed.
    """

    def __init__(self, settings: TokenSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._verified: OrderedDict[bytes, tuple[Caller, float, float]] = OrderedDict()
        self._file = ReadAgain([settings.key_file], self._read_keys, clock=clock)
        self._keys = self._file.now()

    def caller(self, token: bytes) -> Caller | None:
        """Return whose token it is; None for one that is not valid now."""
        if len(token) > _MAX_TOKEN_BYTES:
            return None
        now = self._clock()
        keys = self._file.now()
        if keys is not self._keys:
            self._keys = keys
            self._verified.clear()
        digest = hashlib.sha256(token).digest()
        known = self._verified.get(digest)
        if known is None:
            known = self._verify(token)
            if known is None:
                return None
            self._verified[digest] = known
            if len(self._verified) > _KEPT:
                self._verified.popitem(last=False)
        caller, begins, ends = known
        leeway = self._settings.leeway
        return caller if begins - leeway <= now < ends + leeway else None

    def _verify(self, token: bytes) -> tuple[Caller, float, float] | None:
        """Return the caller, and from when until when the token is good; None for a forged, foreign or unfit one."""
        import jwt

        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(kid) or self._keys.get(None)
            if key is None:
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[self._settings.algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                # Times are held by ``caller``, by its own clock and each time a token is shown.
                options={
                    "require": ["exp", "aud", "iss"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            begins, ends = float(claims.get("nbf", 0)), float(claims["exp"])
        except (jwt.exceptions.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        scopes = claims.get("scp", claims.get("scope", ""))
        words = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else ()
        subject = claims.get("sub")
        name = subject if isinstance(subject, str) else "token"
        return Caller(name, frozenset(word for word in words if isinstance(word, str))), begins, ends

    def _read_keys(self) -> dict[str | None, Any]:
        """Return the keys by id; None is the id of the only key of a file that names none."""
        try:
            import jwt
        except ImportError:
            raise ConfigError(
                "tokens need PyJWT, which is not installed.", hint="pip install 'featurestore[jwt]'."
            ) from None
        algorithm = self._settings.algorithm
        found: dict[str | None, Any]
        try:
            content = Path(self._settings.key_file).read_bytes()
            if algorithm.startswith("HS"):
                if len(content.strip()) < _LEAST_SECRET_BYTES or b"-----BEGIN" in content:
                    raise self._unreadable(f"no secret of {_LEAST_SECRET_BYTES} bytes or more")
                return {None: content.strip()}
            if content.lstrip().startswith(b"{"):
                found = dict(_jwks(json.loads(content), algorithm))
            else:
                found = {None: jwt.get_algorithm_by_name(algorithm).prepare_key(content)}
        except ConfigError:
            raise
        except (OSError, jwt.exceptions.PyJWTError, ValueError, TypeError, AttributeError) as error:
            raise self._unreadable(type(error).__name__) from error
        if not found:
            raise self._unreadable(f"no key for {algorithm}")
        return found

    def _unreadable(self, why: str) -> ConfigError:
        return ConfigError(
            f"token key file {self._settings.key_file}: {why}.",
            hint=f"give a JWKS or PEM with public keys for {self._settings.algorithm}; for HS256 the secret.",
        )


def _jwks(content: Any, algorithm: str) -> Iterator[tuple[str | None, Any]]:
    """Yield id and key of those in a JWKS that are for the algorithm; one that names another, or is of another kind, is not."""
    import jwt

    for each in content.get("keys", ()):
        if each.get("alg", algorithm) == algorithm and each.get("use", "sig") == "sig":
            try:
                key = jwt.PyJWK.from_dict(each, algorithm=algorithm)
            except jwt.exceptions.PyJWTError:
                continue
            yield key.key_id, key.key
