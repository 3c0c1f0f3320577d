"""What one request may cost, and how many may be in flight."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

from featurestore.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class ScorerLimits:
    """Bounds of a request and of the service; what is beyond them is refused before it costs anything.

    Raises:
        ConfigError: A limit is not positive.
    """

    body_bytes: int = 1024 * 1024
    rows: int = 1000
    header_bytes: int = 8 * 1024
    """Request line and headers together."""
    body_seconds: float = 10.0
    """How long headers and a body may take to arrive."""
    handshake_seconds: float = 5.0
    """How long a TLS handshake may take."""
    deadline_seconds: float = 1.0
    """How long after its body a request is answered at the latest; a caller may ask for less by ``x-deadline-ms``."""
    queue_seconds: float = 0.25
    """The longest expected wait of a request that is let in; others are answered 429."""
    in_flight: int = 1024
    """Scoring requests beyond this are answered 429, however short their wait."""
    connections: int = 4096
    """Open connections of a process; those beyond are answered 503 and closed."""

    @classmethod
    def of(cls, given: Mapping[str, float]) -> Self:
        """Return the limits of settings; what is not given has its default.

        Raises:
            ConfigError: A name is none of a limit, or a count is no whole number.
        """
        kinds = {one.name: one.type for one in fields(cls)}
        for name, value in given.items():
            if name not in kinds:
                raise ConfigError(f"serve.limits: {name!r} is no limit.", hint=did_you_mean(name, kinds, what="limits"))
            if kinds[name] == "int" and value != int(value):
                raise ConfigError(f"serve.limits: {name} is {value}, which is no whole number.")
        return cls(**{name: int(value) if kinds[name] == "int" else value for name, value in given.items()})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"limit {name} is {value}; it has to be more than 0.")
