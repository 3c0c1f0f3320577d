"""The types a column or a feature can have, named alike in contracts, expressions, Arrow, Spark and JSON."""

from __future__ import annotations

from enum import StrEnum


class DataType(StrEnum):
    """A scalar type. Every value may be null unless a contract says otherwise.

    ``timestamp`` is an instant: int64 microseconds UTC inside, ISO 8601 with an offset in JSON.
    """

    INT64 = "int64"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"
    TIMESTAMP = "timestamp"

    @property
    def is_numeric(self) -> bool:
        """Whether arithmetic is defined on it."""
        return self in (DataType.INT64, DataType.FLOAT64)
