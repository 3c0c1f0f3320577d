"""Scoring the events of a topic: decode, check, look up, run the model. The same for the Spark job and the light worker.

    record --(envelope, contract)--> event --(columns named as the model's keys and request inputs)--> one row
    rows   --(one lookup, one model run: ``scoring.scorer``)--> PredictionRecord, with values and statuses as served

Rules:
    1. Every record becomes a prediction or a refusal with its coordinates; a bad one never stops the job.
    2. ``prediction_id`` is TOPIC/PARTITION/OFFSET of the event. A record that is scored again, after a crash, has the same id,
       keys and request; features, score and times are those of the later lookup, for the world has moved on.
    3. While the online store is away nothing is scored: the error is raised, and the caller waits and tries again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.datatypes import DataType
from featurestore.errors import (
    ContractError,
    FeatureStoreError,
    ModelError,
    ModelInputError,
    did_you_mean,
)
from featurestore.events.wire import Reason
from featurestore.jobs.worker import decoder_of
from featurestore.scoring.inputs import CheckedRow, ScoreRequest
from featurestore.scoring.kafka_envelope import Envelope, Headers, unwrap
from featurestore.scoring.prediction_log import PredictionRecord, ServedValue
from featurestore.timeline import SystemClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.definitions.source import EventSource
    from featurestore.events.decode import Decoded
    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.scorer import Prediction
    from featurestore.scoring.served import ServedModel
    from featurestore.timeline import Instant

CLOCK, EVENT = "clock", "event"
MODEL_INPUT = "model_input"
"""Reason of a refusal: the event has no value of the model's type for a key or request input."""
FEATURES = "features"
"""Reason of a refusal: the features of this event cannot be had, or their policy forbids to score with them."""


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """What a scoring job needs to know; plain data, so that it can go to workers.

    Attributes:
        project: Namespace of the online store.
        source: Whose topic is scored.
        models: Folder of the models.
        model: NAME:VERSION, to begin with.
        service: Whose features it takes, and every version that it follows.
        topic: Where predictions go; refusals go to ``quarantine_topic``.
        online_url: The online store.
        offline: Root of the Delta tables.
        kafka: Kafka settings.
        envelope: How predictions are wrapped; other than none, events may be CloudEvents too.
        starting: "earliest" or "latest": where the job begins that has no offsets yet.
        at: "clock" or "event": the time that features are looked up for.
        follow_s: Seconds between two looks at which version is champion; 0 keeps the version.
    """

    project: str
    source: EventSource
    models: str
    model: str
    service: str
    topic: str
    online_url: str
    offline: str
    kafka: dict[str, str] = field(repr=False)
    envelope: Envelope = Envelope.NONE
    starting: str = "earliest"
    at: str = CLOCK
    follow_s: float = 0.0

    @property
    def quarantine_topic(self) -> str:
        """Topic of what could not be scored; it ends up in the table ``score_quarantine``."""
        return f"{self.topic}.quarantine"

    @property
    def origin(self) -> str:
        """The ``source`` of a prediction as a CloudEvent."""
        return f"/featurestore/{self.project}/{self.model.partition(':')[0]}"


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that could not be scored: its row in the input, why, and what exactly."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of n records: every row is in one of both, ascending.

    Attributes:
        rows: Where the event of each prediction stood in the input.
        predictions: The predictions.
        refused: All others.
    """

    rows: list[int]
    predictions: list[PredictionRecord]
    refused: list[Refused]


class EventScorer:
    """Scores the records of one source with one model. Not thread-safe.

    Args:
        source: The source.
        served: The model, with the client that looks its features up.
        envelope: Other than none: records may be CloudEvents.
        at: CLOCK, or EVENT: features are those of the event's own time, a lookup for each such time; an event whose time the
            store has passed is refused.

    Raises:
        ModelError: The events lack a column of the model, or have it in another type.
    """

    def __init__(
        self, source: EventSource, served: ServedModel, envelope: Envelope = Envelope.NONE, *, at: str = CLOCK
    ) -> None:
        check_columns(source, served.manifest)
        self._source, self._served, self._envelope, self._at = source, served, envelope, at
        self._decoder = decoder_of(source)
        self._view_of = {name: name.partition(".")[0] for name in served.manifest.feature_inputs}

    @property
    def manifest(self) -> ModelManifest:
        """Of the model."""
        return self._served.manifest

    def bind(self) -> None:
        """Return once model and store agree on the definition.

        Raises:
            ModelError: The store serves another definition than the model was trained on.
            OnlineStoreUnavailableError: The store is away.
        """
        self._served.scorer()

    def score(
        self,
        partition: int,
        offsets: np.ndarray,
        arrival: np.ndarray,
        values: pa.Array | Sequence[bytes | None],
        headers: Sequence[Headers] | None = None,
    ) -> Outcome:
        """Return what becomes of records of one partition.

        Args:
            partition: Their partition.
            offsets: int64 [records].
            arrival: int64 [records], microseconds.
            values: Their values.
            headers: Their headers; looked at where events may have an envelope.

        Raises:
            OnlineStoreUnavailableError: The store is away; nothing was scored.
            OnlineStoreTimeoutError: It did not answer in time.
            ModelError: The model fails, or is bound to another definition than the store serves.
        """
        kept, values, refused = self._unwrapped(values, headers)
        decoded = self._decoder.decode(values, arrival[kept])
        refused += [Refused(int(kept[one.row]), str(one.reason), one.detail) for one in decoded.rejected]
        requests = self._requests(decoded)
        rows, checked, sent, times = [], [], [], []
        for at, request, time_us in zip(
            kept[decoded.rows].tolist(), requests, decoded.event_time_us.tolist(), strict=True
        ):
            try:
                checked.append(self._served.inputs.check(request))
            except ModelInputError as error:
                refused.append(Refused(at, MODEL_INPUT, error.message))
            else:
                rows.append(at)
                sent.append(request)
                times.append(time_us)
        began = time.perf_counter()
        predictions = self._score(checked) if self._at == CLOCK else self._score_at(checked, times)
        took = round((time.perf_counter() - began) * 1e6)
        scored_at = SystemClock().now()
        scored: list[int] = []
        records: list[PredictionRecord] = []
        for at, row, request, found in zip(rows, checked, sent, predictions, strict=True):
            if isinstance(found, FeatureStoreError):
                refused.append(Refused(at, FEATURES, found.message))
                continue
            scored.append(at)
            place = f"{self._source.topic}/{partition}/{int(offsets[at])}"
            records.append(self._record(place, row, request, found, scored_at, took))
        refused.sort(key=lambda one: one.row)
        return Outcome(scored, records, refused)

    def _unwrapped(
        self, values: pa.Array | Sequence[bytes | None], headers: Sequence[Headers] | None
    ) -> tuple[np.ndarray, pa.Array | Sequence[bytes | None], list[Refused]]:
        """Return which records are left, their data, and the others."""
        if self._envelope is Envelope.NONE or headers is None:
            return np.arange(len(values)), values, []
        records: Sequence[Any] = values.to_pylist() if isinstance(values, pa.Array) else values
        kept, data, refused = [], [], []
        for row, (value, own) in enumerate(zip(records, headers, strict=True)):
            try:
                data.append(unwrap(value, own))
                kept.append(row)
            except ContractError as error:
                refused.append(Refused(row, str(Reason.CONTRACT), error.message))
        return np.array(kept, np.int64), data, refused

    def _requests(self, decoded: Decoded) -> list[ScoreRequest]:
        """Return keys and request of every event, by column name."""
        manifest = self._served.manifest
        columns = {name: _values(decoded.batch.column(name)) for name in (*manifest.keys, *manifest.sent)}
        return [
            ScoreRequest(
                {name: columns[name][at] for name in manifest.keys}, {name: columns[name][at] for name in manifest.sent}
            )
            for at in range(decoded.batch.num_rows)
        ]

    def _score_at(self, rows: list[CheckedRow], times: list[int]) -> Sequence[Prediction | FeatureStoreError]:
        """Return a prediction of every row with the features of its own time, a lookup for each."""
        together: dict[int, list[int]] = {}
        for place, time_us in enumerate(times):
            together.setdefault(time_us, []).append(place)
        found: dict[int, Prediction | FeatureStoreError] = {}
        for time_us, places in together.items():
            found.update(zip(places, self._score([rows[place] for place in places], time_us), strict=True))
        return [found[place] for place in range(len(rows))]

    def _score(self, rows: list[CheckedRow], now: Instant | None = None) -> Sequence[Prediction | FeatureStoreError]:
        """Return a prediction of every row; where the batch fails for a reason of some rows, those have it in their place."""
        try:
            return self._served.scorer().score_checked(rows, now, explain=[True] * len(rows))[0]
        except (ConnectionError, TimeoutError, ModelError):
            raise
        except FeatureStoreError as error:
            if len(rows) == 1:
                return [error]
            half = len(rows) // 2
            return [*self._score(rows[:half], now), *self._score(rows[half:], now)]

    def _record(
        self, place: str, row: CheckedRow, request: ScoreRequest, found: Prediction, scored_at: int, took: int
    ) -> PredictionRecord:
        manifest = self._served.manifest
        vector, statuses, as_of, views = found.vector or {}, found.statuses, found.as_of, self._view_of
        return PredictionRecord(
            prediction_id=place,
            model=found.model,
            version=found.version,
            role="champion",
            service=manifest.service,
            service_fingerprint=manifest.service_fingerprint,
            keys=row.keys,
            request=dict(request.request),
            features={
                name: ServedValue(value=value, status=statuses[name], as_of=as_of.get(views[name]))
                for name, value in vector.items()
            },
            score=found.score,
            at=found.at,
            scored_at=scored_at,
            complete_through=found.complete_through,
            latency_us=took,
        )


def check_columns(source: EventSource, manifest: ModelManifest) -> None:
    """Return if events of a source have all that a model takes of its caller.

    Raises:
        ModelError: A column is missing, or of another type.
    """
    columns = source.contract.columns
    types = {**dict.fromkeys(manifest.request_inputs), **manifest.request_values, **manifest.keys}
    for name, kind in types.items():
        if name not in columns:
            raise ModelError(
                f"model {manifest.label} takes {name!r}, which events of source {source.name} do not have.",
                hint=did_you_mean(name, columns, what="columns"),
            )
        numbers = (DataType.INT64, DataType.FLOAT64, DataType.BOOL)
        fits = columns[name] in numbers if kind is None else columns[name] == kind
        if not fits and (kind, columns[name]) != (DataType.FLOAT64, DataType.INT64):
            raise ModelError(
                f"model {manifest.label} takes {name!r} as {kind or 'a number'}, events of source {source.name} have it as "
                f"{columns[name]}."
            )


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values; timestamps as instants."""
    values: list[Any] = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return values
