"""A Python stateful processor for Spark's transformWithState: what one would write by hand for a window of an hour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyspark.sql import Row
from pyspark.sql.streaming.stateful_processor import StatefulProcessor, StatefulProcessorHandle
from pyspark.sql.types import DoubleType, LongType, StringType, StructField, StructType

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTPUT = StructType(
    [
        StructField("card_id", StringType()),
        StructField("n", LongType()),
        StructField("spend", DoubleType()),
        StructField("most", DoubleType()),
    ]
)
_MINUTE = StructType([StructField("minute", LongType())])
_PARTIAL = StructType(
    [StructField("n", LongType()), StructField("spend", DoubleType()), StructField("most", DoubleType())]
)


class Minutes(StatefulProcessor):
    """Keeps a partial per minute of the last hour and emits the hour's after every batch."""

    def init(self, handle: StatefulProcessorHandle) -> None:
        """Open the state."""
        self._minutes = handle.getMapState("minutes", _MINUTE, _PARTIAL)

    def handleInputRows(self, key: Any, rows: Iterator[Any], timer_values: Any) -> Iterator[Row]:  # noqa: N802 - Spark's name
        """Merge the rows, drop what is older than an hour, and emit."""
        newest = 0
        for row in rows:
            minute = int(row.event_time.timestamp()) // 60
            newest = max(newest, minute)
            held = self._minutes.getValue((minute,))
            n, spend, most = held or (0, 0.0, row.amount)
            self._minutes.updateValue((minute,), (n + 1, spend + row.amount, max(most, row.amount)))
        n, spend, most = 0, 0.0, 0.0
        for (minute,), partial in list(self._minutes.iterator()):
            if minute < newest - 60:
                self._minutes.removeKey((minute,))
            else:
                n, spend, most = n + partial[0], spend + partial[1], max(most, partial[2])
        yield Row(card_id=key[0], n=n, spend=spend, most=most)

    def close(self) -> None:
        """Nothing is open."""
