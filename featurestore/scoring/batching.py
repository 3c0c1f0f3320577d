"""Adaptive micro-batching without a timer: what arrives while one batch is in flight forms the next one.

::

    score() ──► waiting ──► one read of the store ──► decode, matrix, model ──► each its own rows
                   ▲          (event loop, by callbacks)   (event loop; a thread for many rows)
                   └── whoever comes meanwhile

What is usual takes no task: the store's answer is scored, and its callers are answered, within the call that receives it.
Whatever is not (a store that is not connected, an error, many rows) goes on in a task, with what has been read already.

Rules:
    1. An idle scorer starts a request at the end of the event loop's tick, for others may come in it, and at once where the
       last one had no company; nobody ever waits for any.
    2. A batch holds requests of one model and one ``now``, up to ``max_rows`` rows; a larger request goes alone.
    3. One batch at a time is read and scored, so the client and the model never see two callers at once.
    4. Each request gets its own rows or its own error. If a batch fails for another reason than the store being away or
       behind, its requests are tried one by one, so that one bad key fails alone.
    5. A request whose deadline passes fails then, and is answered by nothing later; one that still waits is never read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from featurestore.errors import (
    FeatureStoreError,
    OnlineStoreTimeoutError,
    OnlineStoreUnavailableError,
    StaleFeatureError,
)
from featurestore.scoring.problems import deadline_passed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from featurestore.online.async_client import Outcome
    from featurestore.scoring.inputs import CheckedRow
    from featurestore.scoring.reads import Reads
    from featurestore.scoring.scorer import FeatureRows, Prediction, Scorer, Timings
    from featurestore.timeline import Instant

T = TypeVar("T")

MAX_BATCH_ROWS = 256
INLINE_ROWS = 64
INLINE_SECONDS = 0.005
"""So few rows that take so little time are decoded and scored on the event loop: a thread and back would cost more."""
_OF_ALL = (OnlineStoreUnavailableError, OnlineStoreTimeoutError, StaleFeatureError)


class BatchTarget(Protocol):
    """Something that has a scorer, perhaps only once the store answers."""

    @property
    def bound(self) -> Scorer | None:
        """The scorer, if it has one already."""

    def scorer(self) -> Scorer:
        """Return the scorer; called on the worker thread only."""


@dataclass(slots=True, eq=False)
class _Waiting:
    target: BatchTarget
    rows: Sequence[CheckedRow]
    now: Instant | None
    explain: bool
    expires: float
    outcome: Outcome


class Batcher:
    """Joins concurrent requests into batches.

    Args:
        reads: Makes the reads of the store, given what runs a call on the worker thread.
        max_rows: Rows after which no further request joins a batch.
        observe: Called with the predictions and timings of each batch, after its answers have been given, on the event loop.
    """

    def __init__(
        self,
        reads: Callable[[Callable[[Callable[[], T]], asyncio.Future[T]]], Reads],
        *,
        max_rows: int = MAX_BATCH_ROWS,
        observe: Callable[[list[Prediction], Timings], None] | None = None,
    ) -> None:
        self._max_rows = max_rows
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._taken: list[_Waiting] = []
        self._is_serving = False
        self._last = 0
        self._serving: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires = float("inf")
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self.reads = reads(self.on_worker)

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet; any thread may ask."""
        return len(self._waiting)

    def score(
        self,
        target: BatchTarget,
        rows: Sequence[CheckedRow],
        now: Instant | None,
        *,
        explain: bool = False,
        expires: float = float("inf"),
    ) -> asyncio.Future[list[Prediction]]:
        """Return the predictions of these rows, computed together with whoever else is waiting.

        Args:
            target: Has the scorer.
            rows: Checked rows.
            now: Time of the lookup; None is the clock.
            explain: Whether predictions carry their vectors.
            expires: In the loop's time: when nobody wants the answer any more.

        Raises:
            FeatureStoreError: What the lookup or the model raised for these rows.
            Refusal: The deadline passed.
        """
        outcome: asyncio.Future[list[Prediction]] = asyncio.get_running_loop().create_future()
        self.ask(outcome, target, rows, now, explain=explain, expires=expires)
        return outcome

    def ask(
        self,
        outcome: Outcome,
        target: BatchTarget,
        rows: Sequence[CheckedRow],
        now: Instant | None,
        *,
        explain: bool,
        expires: float,
    ) -> None:
        """Do as ``score``, and tell ``outcome``; never before the call has returned."""
        loop = asyncio.get_running_loop()
        self._waiting.append(_Waiting(target, rows, now, explain, expires, outcome))
        if expires < self._fires:
            self._arm(loop, expires)
        if not self._is_serving:
            self._is_serving = True
            if self._last == 1:  # it was alone
                self._next()
            else:
                loop.call_soon(self._next)

    def on_worker(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Return the result of a call made on the worker thread."""
        return asyncio.get_running_loop().run_in_executor(self._worker, call)

    async def close(self) -> None:
        """Wait for the batch in flight and end the worker thread."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_serving:
            self._ended = asyncio.get_running_loop().create_future()
            await self._ended
        await self.reads.close()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> None:
        """Serve the next batch, if anybody waits."""
        self._taken = []
        while self._waiting:
            self._taken = batch = self._take()
            self._last = len(batch)
            if batch:
                if not self._begin(batch):
                    self._go_slowly(batch, None)
                return
        self._is_serving = False
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _begin(self, batch: list[_Waiting]) -> bool:
        """Read a batch by callbacks alone and return True, if that can be."""
        scorer = batch[0].target.bound
        if scorer is None:
            return False
        try:
            reading = _Reading(self, batch, scorer)
            return self.reads.begin_numbers(
                reading,
                scorer.manifest.service,
                reading.keys,
                now=batch[0].now,
                request=scorer.request_of(reading.rows),
            )
        except Exception:  # noqa: BLE001 - the slow way raises it again, and knows whose it is
            return False

    def go_on(self, reading: _Reading) -> None:
        """Score what was read by callbacks, and serve the next batch."""
        if reading.decode is not None and reading.is_quick():
            try:
                self._hand_out(reading, *reading.score())
            except Exception as error:  # noqa: BLE001 - the slow way raises it again, and knows whose it is
                reading.error = error
            else:
                self._next()
                return
        self._go_slowly(reading.batch, reading)

    def _go_slowly(self, batch: list[_Waiting], reading: _Reading | None) -> None:
        self._serving = asyncio.get_running_loop().create_task(self._serve(batch, reading))

    async def _serve(self, batch: list[_Waiting], reading: _Reading | None) -> None:
        await self._run(batch, reading)
        self._next()

    def _take(self) -> list[_Waiting]:
        """Remove and return the oldest waiting request and all that may share its batch."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows = 0
        for one in self._waiting:
            if one.outcome.done():  # its caller has gone, or its time is up
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

    async def _run(self, batch: list[_Waiting], reading: _Reading | None = None) -> None:
        """Score a batch and hand out its predictions or errors; what has been read of it already is not read again."""
        try:
            reading = reading or await self._read(batch)
            if reading.error is not None:
                raise reading.error  # noqa: TRY301 - handled as one that is raised here
            scored = reading.score() if reading.is_quick() else await self.on_worker(reading.score)
            self._hand_out(reading, *scored)
        except _OF_ALL as error:
            _fail(batch, error)
        except FeatureStoreError as error:
            if len(batch) == 1:
                _fail(batch, error)
            for one in batch if len(batch) > 1 else ():
                await self._run([one])
        except Exception as error:  # noqa: BLE001 - a bug of ours, handed to whoever asked: they answer and log it
            _fail(batch, error)

    async def _read(self, batch: list[_Waiting]) -> _Reading:
        """Return a batch as it was read."""
        target = batch[0].target
        scorer = target.bound
        if scorer is None:
            scorer = await self.on_worker(target.scorer)
        reading = _Reading(self, batch, scorer)
        decode = await self.reads.fetch_numbers(
            scorer.manifest.service, reading.keys, now=batch[0].now, request=scorer.request_of(reading.rows)
        )
        reading.take(decode)
        return reading

    def _hand_out(self, reading: _Reading, predictions: list[Prediction], took: Timings) -> None:
        """Give each request its own predictions."""
        now = reading.loop.time()
        start = 0
        for one in reading.batch:
            end = start + len(one.rows)
            if not one.outcome.done():
                if now < one.expires:
                    one.outcome.set_result(predictions[start:end])
                else:
                    one.outcome.set_exception(deadline_passed())
            start = end
        if self._observe is not None:  # once the answers are on their way
            reading.loop.call_soon(self._observe, predictions, took)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail whose time is up, and look again when the next one's is."""
        now = loop.time()
        next_ = float("inf")
        for one in (*self._taken, *self._waiting):
            if one.outcome.done():
                continue
            if one.expires <= now:
                one.outcome.set_exception(deadline_passed())
            else:
                next_ = min(next_, one.expires)
        self._arm(loop, next_)

    def _arm(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires = when
        self._timer = None if when == float("inf") else loop.call_at(when, self._expire, loop)


class _Reading:
    """A batch's read: who scores it, and, once the store has answered, the call that decodes, or why there is none."""

    __slots__ = ("_batcher", "_lookup", "_started", "batch", "decode", "error", "loop", "rows", "scorer")

    def __init__(self, batcher: Batcher, batch: list[_Waiting], scorer: Scorer) -> None:
        scorer.check_service()  # the client may have read a newer plan since
        self._batcher, self.batch, self.scorer = batcher, batch, scorer
        self.rows = batch[0].rows if len(batch) == 1 else [row for one in batch for row in one.rows]
        self.decode: Callable[[], FeatureRows] | None = None
        self.error: Exception | None = None
        self.loop = asyncio.get_running_loop()
        self._started = self.loop.time()

    @property
    def keys(self) -> list[dict[str, Any]]:
        """What to read."""
        return [row.keys for row in self.rows]

    def take(self, decode: Callable[[], FeatureRows]) -> None:
        """Take what was read."""
        self.decode, self._lookup = decode, self.loop.time() - self._started

    def done(self) -> bool:
        """Whether the store has answered."""
        return self.decode is not None or self.error is not None

    def set_result(self, decode: Callable[[], FeatureRows]) -> None:
        """Take what was read, and go on."""
        self.take(decode)
        self._batcher.go_on(self)

    def set_exception(self, error: Exception) -> None:
        """Take why nothing was read, and go on."""
        self.error = error
        self._batcher.go_on(self)

    def is_quick(self) -> bool:
        """Whether scoring takes less time than a thread and back."""
        rows = len(self.rows)
        return rows <= INLINE_ROWS and rows * self.scorer.row_seconds <= INLINE_SECONDS

    def score(self) -> tuple[list[Prediction], Timings]:
        """Return the predictions, and where the time went."""
        assert self.decode is not None  # noqa: S101 - it was read
        scorer, rows = self.scorer, self.rows
        explain = [one.explain for one in self.batch for _ in one.rows]
        predictions, took = scorer.score_looked_up(rows, self.decode, explain=explain, lookup=self._lookup)
        # The least of late: what a batch took besides was a busy machine's doing, and waiting for a thread there is dearer still.
        scorer.row_seconds = min((took.decode + took.model) / len(rows), scorer.row_seconds * 1.1)
        return predictions, took


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for one in batch:
        if not one.outcome.done():
            one.outcome.set_exception(error)
