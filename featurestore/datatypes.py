"""The types a column or a feature can have, named alike in contracts, expressions, Arrow, Spark and JSON."""

from __future__ import annotations

from enum import StrEnum


class DataType(StrEnum):
    """A scalar type, or a list of one. Every value may be null unless a contract says otherwise.

    ``timestamp`` is an instant: int64 microseconds UTC inside, ISO 8601 with an offset in JSON. Lists are types of features
    only: no column of a contract is one. An element of a list may be null.
    """

    INT64 = "int64"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"
    TIMESTAMP = "timestamp"
    LIST_INT64 = "list<int64>"
    LIST_FLOAT64 = "list<float64>"
    LIST_BOOL = "list<bool>"
    LIST_STRING = "list<string>"
    LIST_TIMESTAMP = "list<timestamp>"

    @property
    def is_numeric(self) -> bool:
        """Whether arithmetic is defined on it."""
        return self in (DataType.INT64, DataType.FLOAT64)

    @property
    def element(self) -> DataType | None:
        """The type of a list's elements; None for a scalar.

        >>> DataType.LIST_BOOL.element, DataType.BOOL.element
        (<DataType.BOOL: 'bool'>, None)
        """
        return DataType(self[5:-1]) if self.startswith("list<") else None

    @staticmethod
    def list_of(scalar: DataType) -> DataType:
        """Return the type of lists of a scalar type; a list of lists is no type (ValueError).

        >>> DataType.list_of(DataType.STRING)
        <DataType.LIST_STRING: 'list<string>'>
        """
        return DataType(f"list<{scalar}>")

    @property
    def is_object(self) -> bool:
        """Whether values do not fit a number: strings and lists, which arrays hold as objects."""
        return self == DataType.STRING or self.element is not None

    @property
    def spark_name(self) -> str:
        """The type as Spark SQL spells it.

        >>> DataType.LIST_TIMESTAMP.spark_name
        'array<timestamp>'
        """
        return _SPARK[self] if self.element is None else f"array<{_SPARK[self.element]}>"


SCALARS = frozenset(kind for kind in DataType if kind.element is None)
"""What a column of a contract can be."""
_SPARK = {
    DataType.INT64: "bigint",
    DataType.FLOAT64: "double",
    DataType.BOOL: "boolean",
    DataType.STRING: "string",
    DataType.TIMESTAMP: "timestamp",
}
