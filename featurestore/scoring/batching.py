"""Adaptive micro-batching without a timer: what arrives while one batch is in flight forms the next one.

Rules:
    1. An idle scorer starts a request at the end of the event loop's tick; nobody ever waits for company.
    2. A batch holds requests of one model and one ``now``, up to ``max_rows`` rows; a larger request goes alone.
    3. Lookups and model runs happen on one worker thread, so the client and the model never see two callers at once.
    4. Each request gets its own rows or its own error. If a batch fails for another reason than the store being away,
       its requests are tried one by one, so that one bad key fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from featurestore.errors import FeatureStoreError, OnlineStoreTimeoutError, OnlineStoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.scoring.inputs import CheckedRow
    from featurestore.scoring.scorer import Prediction, Scorer, Timings
    from featurestore.timeline import Instant

T = TypeVar("T")

MAX_BATCH_ROWS = 256
_STORE_AWAY = (OnlineStoreUnavailableError, OnlineStoreTimeoutError)


class BatchTarget(Protocol):
    """Something that has a scorer, perhaps only once the store answers."""

    def scorer(self) -> Scorer:
        """Return the scorer; called on the worker thread only."""


@dataclass(slots=True, eq=False)
class _Waiting:
    target: BatchTarget
    rows: Sequence[CheckedRow]
    now: Instant | None
    explain: bool
    outcome: asyncio.Future[list[Prediction]]


class Batcher:
    """Joins concurrent requests into batches and runs them on one worker thread.

    Args:
        max_rows: Rows after which no further request joins a batch.
        observe: Called on the worker thread after each batch with its predictions and timings.
    """

    def __init__(
        self,
        *,
        max_rows: int = MAX_BATCH_ROWS,
        observe: Callable[[list[Prediction], Timings], None] | None = None,
    ) -> None:
        self._max_rows = max_rows
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._running = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")

    async def score(
        self, target: BatchTarget, rows: Sequence[CheckedRow], now: Instant | None, *, explain: bool = False
    ) -> list[Prediction]:
        """Return the predictions of these rows, computed together with whoever else is waiting.

        Raises:
            FeatureStoreError: What the lookup or the model raised for these rows.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[list[Prediction]] = loop.create_future()
        self._waiting.append(_Waiting(target, rows, now, explain, outcome))
        if not self._running:
            self._running = True
            loop.call_soon(self._start, loop)
        return await outcome

    async def on_worker(self, call: Callable[[], T]) -> T:
        """Return the result of a call made on the worker thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    def close(self) -> None:
        """Wait for the batch in flight and end the worker thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
        if not batch:
            self._running = False
            return
        done = loop.run_in_executor(self._worker, self._run, batch)
        done.add_done_callback(lambda outcomes: self._finish(loop, batch, outcomes))

    def _take(self) -> list[_Waiting]:
        """Remove and return the oldest waiting request and all that may share its batch."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows = 0
        for one in self._waiting:
            if one.outcome.done():  # its caller has gone
                continue
            if not batch or (
                one.target is batch[0].target and one.now == batch[0].now and rows + len(one.rows) <= self._max_rows
            ):
                batch.append(one)
                rows += len(one.rows)
            else:
                left.append(one)
        self._waiting = left
        return batch

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Waiting],
        outcomes: asyncio.Future[list[list[Prediction] | FeatureStoreError]],
    ) -> None:
        failure = None if outcomes.cancelled() else outcomes.exception()
        for index, one in enumerate(batch):
            if one.outcome.done():
                continue
            if outcomes.cancelled():
                one.outcome.cancel()
                continue
            result = failure if failure is not None else outcomes.result()[index]
            if isinstance(result, BaseException):
                one.outcome.set_exception(result)
            else:
                one.outcome.set_result(result)
        self._start(loop)

    def _run(self, batch: list[_Waiting]) -> list[list[Prediction] | FeatureStoreError]:
        """Score a batch on the worker thread; return each request's predictions or error."""
        try:
            return list(self._score(batch))
        except _STORE_AWAY as error:
            return [error] * len(batch)
        except FeatureStoreError as error:
            if len(batch) == 1:
                return [error]
            return [self._run([one])[0] for one in batch]

    def _score(self, batch: list[_Waiting]) -> list[list[Prediction]]:
        rows = [row for one in batch for row in one.rows]
        explain = [one.explain for one in batch for _ in one.rows]
        predictions, timings = batch[0].target.scorer().score_checked(rows, batch[0].now, explain=explain)
        if self._observe is not None:
            self._observe(predictions, timings)
        shares: list[list[Prediction]] = []
        start = 0
        for one in batch:
            shares.append(predictions[start : start + len(one.rows)])
            start += len(one.rows)
        return shares
