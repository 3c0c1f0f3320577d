"""The breaker between a source and the quarantine: a job stops before it files away most of a topic.

One bad event never stops a job. A contract that does not fit its topic does: records are counted until there are
``quarantine_after`` of them, then their share in quarantine is held against ``quarantine_limit`` and counting begins anew. The
records that go beyond it are not passed: no fence moves over them and no table gets them, so once the contract is mended, the
job reads them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.errors import QuarantineLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from featurestore.definitions.source import EventSource
    from featurestore.events.decode import Rejected


class QuarantineBreaker:
    """Counts the records of one source. Not thread-safe; every worker has its own.

    Args:
        source: The source.
    """

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._consumed = self._refused = 0

    def check(self, partition: int, offsets: np.ndarray, rejected: Sequence[Rejected]) -> None:
        """Count consecutive records of a partition, before they are applied.

        Raises:
            QuarantineLimitError: Too many are no events.
        """

        def example() -> str:
            first = rejected[0]
            place = f"{self._source.topic}-{partition} offset {int(offsets[first.row])}"
            return f"{place}: {first.reason}, {first.detail}"

        self.count(len(offsets), len(rejected), example)

    def count(self, consumed: int, refused: int, example: Callable[[], str]) -> None:
        """Count records before they are passed on.

        Args:
            consumed: How many records there are.
            refused: How many of them are no events.
            example: Says where one of those is, and what is wrong with it; asked only when there is one.

        Raises:
            QuarantineLimitError: Too many are no events.
        """
        source = self._source
        self._consumed += consumed
        self._refused += refused
        if self._consumed < source.quarantine_after:
            return
        consumed, refused = self._consumed, self._refused
        self._consumed = self._refused = 0
        if refused > source.quarantine_limit * consumed:
            found = f"; one of them: {example()}" if refused else ""
            raise QuarantineLimitError(
                f"source {source.name}: {refused:,} of {consumed:,} records are no events of contract {source.contract.name} "
                f"version {source.contract.version}, allowed are {source.quarantine_limit:.0%}{found}.",
                hint="they were not passed. Mend the contract, apply it and submit the job again; or let them into quarantine "
                "with quarantine_limit=1.0.",
            )
