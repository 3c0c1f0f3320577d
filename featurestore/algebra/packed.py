"""Partials of variable size: one slot of bytes, b"" when no event counted.

Two bases. ``Packed`` asks a class for three functions on bytes and derives the rest. ``Records`` is for bytes that are rows of
one fixed length, little-endian and nothing between them: the partials of many groups are then merged in one sort of all rows.

Every class keeps its bytes canonical: the same events give the same bytes, in whatever order they were merged (sketches
state from where on that ends). -0.0 is kept as 0.0 and every NaN as one NaN. Bytes that are not a partial are a ``CodecError``.
"""

from __future__ import annotations

import itertools
import struct
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.algebra.aggregate import Aggregate
from featurestore.algebra.values import objects
from featurestore.datatypes import DataType
from featurestore.errors import CodecError, DefinitionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featurestore.algebra.aggregate import Columns, EventOrder, Partial

_LENGTH = struct.Struct("<I")


def check_number(aggregate: Aggregate, name: str, low: int, high: int) -> None:
    """Raise unless a parameter is an integer within its bounds."""
    value = getattr(aggregate, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DefinitionError(
            f"{type(aggregate).__name__}: {name} is {value!r}, allowed are the integers {low} to {high}.",
            hint=f"for example {name}={min(max(low, 10), high)}.",
        )


def broken(aggregate: Aggregate, why: str) -> CodecError:
    """Return the error for bytes that are no partial."""
    return CodecError(f"{aggregate!r}: a partial {why}.", hint="the bytes are of another definition, or damaged.")


def words_of_values(values: np.ndarray, kind: DataType | None) -> np.ndarray:
    """Return 8-byte words as int64; doubles by their bits, one for all zeros and one for all NaN."""
    if kind != DataType.FLOAT64:
        return values.astype(np.int64)
    doubles = values.astype(np.float64)
    return np.where(np.isnan(doubles), np.nan, doubles + 0.0).view(np.int64)


def values_of_words(words: np.ndarray, kind: DataType | None) -> list[Any]:
    """Return the values that ``words_of_values`` kept."""
    if kind == DataType.FLOAT64:
        return list(np.ascontiguousarray(words).view(np.float64).tolist())
    return list((words != 0).tolist() if kind == DataType.BOOL else words.tolist())


def ascending(words: np.ndarray, kind: DataType | None) -> np.ndarray:
    """Return int64 in the order of the values the words stand for; NaN is the greatest."""
    return np.where(words < 0, words ^ np.int64(2**63 - 1), words) if kind == DataType.FLOAT64 else words


def text_record(text: bytes) -> bytes:
    """Return a text behind its length (4 bytes)."""
    return _LENGTH.pack(len(text)) + text


def read_texts(aggregate: Aggregate, data: bytes, header: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield (header, text) of records: a header of fixed length, the text's length (4 bytes), the text."""
    at = 0
    while at < len(data):
        begin = at + header + 4
        if begin > len(data):
            raise broken(aggregate, "ends within a record")
        (length,) = _LENGTH.unpack_from(data, begin - 4)
        if begin + length > len(data):
            raise broken(aggregate, "ends within a text")
        yield data[at : at + header], data[begin : begin + length]
        at = begin + length


@dataclass(frozen=True, repr=False)
class Packed(Aggregate):
    """An aggregate whose partial is one slot of bytes."""

    def __post_init__(self) -> None:
        if self.input is None:
            raise DefinitionError(
                f"{type(self).__name__} needs an input.", hint=f"for example {type(self).__name__}('amount')."
            )

    @property
    def slots(self) -> tuple[str, ...]:
        """(bytes,)."""
        return ("b",)

    @abstractmethod
    def pack(self, value: Any, at: EventOrder) -> bytes:
        """Return the bytes of one value that is not null; b"" when it does not count."""

    @abstractmethod
    def merge_parts(self, parts: Sequence[bytes]) -> bytes:
        """Return the merge of at least two partials, none of them empty."""

    @abstractmethod
    def read(self, data: bytes) -> Any:
        """Return the feature value of bytes that are not empty."""

    @property
    def without_events(self) -> Any:
        """The value of no events."""
        return None

    def empty(self) -> Partial:
        """Return no events."""
        return (b"",)

    def prepare(self, value: Any, at: EventOrder) -> Partial:
        """Return one value."""
        return (b"",) if value is None else (self.pack(value, at),)

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Return the merge of both."""
        if not a[0]:
            return b
        return a if not b[0] else (self.merge_parts((a[0], b[0])),)

    def finalize(self, partial: Partial) -> Any:
        """Return the value."""
        return self.read(partial[0]) if partial[0] else self.without_events

    def prepare_columns(
        self, values: np.ndarray, valid: np.ndarray, event_time: np.ndarray, sequence: np.ndarray
    ) -> Columns:
        """Return one value per valid row."""
        column = np.full(len(valid), b"", dtype=object)
        rows = np.flatnonzero(valid)
        chosen = values[rows].tolist()
        if self.value_type == DataType.BOOL:
            chosen = [bool(value) for value in chosen]
        if len(rows):
            column[rows] = objects(self.pack_many(chosen, event_time[rows], sequence[rows]))
        return (column,)

    def pack_many(self, values: list[Any], event_time: np.ndarray, sequence: np.ndarray) -> list[bytes]:
        """Return ``pack`` of every value."""
        orders = zip(event_time.tolist(), sequence.tolist(), strict=True)
        return [self.pack(value, order) for value, order in zip(values, orders, strict=True)]  # type: ignore[arg-type]

    def merge_columns(self, a: Columns, b: Columns) -> Columns:
        """Return the merges of all pairs."""
        pairs = np.empty(2 * len(a[0]), dtype=object)
        pairs[0::2], pairs[1::2] = a[0], b[0]
        return self.merge_groups((pairs,), np.arange(0, len(pairs), 2))

    def merge_groups(self, columns: Columns, starts: np.ndarray) -> Columns:
        """Return the merge of every group of rows, all parts of a group at once."""
        blobs = columns[0].tolist()
        bounds = [*starts.tolist(), len(blobs)]
        merged = []
        for begin, end in itertools.pairwise(bounds):
            parts = [blob for blob in blobs[begin:end] if blob]
            merged.append(self.merge_parts(parts) if len(parts) > 1 else parts[0] if parts else b"")
        return (objects(merged),)

    def finalize_columns(self, partial: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return the values; null where there is none."""
        results = [self.finalize((data,)) for data in partial[0].tolist()]
        valid = np.array([result is not None for result in results], dtype=bool)
        if self.result_type.is_object:
            return objects(results), valid
        kind = np.float64 if self.result_type == DataType.FLOAT64 else np.int64
        return np.array([0 if result is None else result for result in results], dtype=kind), valid


@dataclass(frozen=True, repr=False)
class Records(Packed):
    """A partial of rows of one fixed length, which ``merge_parts`` chooses for scalars and ``select`` for many groups."""

    @property
    @abstractmethod
    def record(self) -> np.dtype[Any]:
        """The row."""

    @abstractmethod
    def select(self, rows: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Return which rows stay, as indices in the order in which they are kept, group by group.

        Args:
            rows: Rows of many partials, of dtype ``record``.
            group: Ascending; the group of every row.
        """

    def check_length(self, data: bytes) -> bytes:
        """Return bytes that are whole rows."""
        if len(data) % self.record.itemsize:
            raise broken(self, f"has {len(data)} bytes, which is no multiple of {self.record.itemsize}")
        return data

    def merge_groups(self, columns: Columns, starts: np.ndarray) -> Columns:
        """Return the merge of every group, all groups in one sort."""
        blobs = columns[0].tolist()
        lengths = np.fromiter(map(len, blobs), np.int64, len(blobs))
        if (lengths % self.record.itemsize).any():
            raise broken(self, f"has a length that is no multiple of {self.record.itemsize}")
        of_row = np.searchsorted(starts, np.arange(len(blobs)), side="right") - 1
        rows = np.frombuffer(b"".join(blobs), dtype=self.record)
        group = np.repeat(of_row, lengths // self.record.itemsize)
        kept = self.select(rows, group)
        data = rows[kept].tobytes()
        counts = np.bincount(group[kept], minlength=len(starts))
        bounds = [0, *(np.cumsum(counts) * self.record.itemsize).tolist()]
        return (objects([data[begin:end] for begin, end in itertools.pairwise(bounds)]),)


def first_of_groups(group: np.ndarray, k: int) -> np.ndarray:
    """Return which elements are among the first k of their group; ``group`` is ascending."""
    begins = np.searchsorted(group, group, side="left")
    return np.asarray(np.arange(len(group)) - begins < k)
