"""What Spark's workers count their records in: an accumulator of how many met which fate (``worker.COUNTS``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyspark.accumulators import AccumulatorParam

from featurestore.jobs.worker import COUNTS

if TYPE_CHECKING:
    from pyspark.accumulators import Accumulator
    from pyspark.sql import SparkSession


class Sums(AccumulatorParam[dict[str, int]]):
    """Adds counts by name."""

    def zero(self, _value: dict[str, int]) -> dict[str, int]:
        """Return what nothing adds up to."""
        return {}

    def addInPlace(self, value1: dict[str, int], value2: dict[str, int]) -> dict[str, int]:  # noqa: N802 - Spark's name
        """Return the sums, as a dict of their own: whoever reads the old one meanwhile has it whole."""
        return {name: value1.get(name, 0) + value2.get(name, 0) for name in COUNTS}


def counter(session: SparkSession) -> Accumulator[dict[str, int]]:
    """Return what the workers of a query count in; of a task that is run again, one run counts."""
    return session.sparkContext.accumulator({}, Sums())
