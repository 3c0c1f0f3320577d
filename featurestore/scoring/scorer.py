"""Scoring a batch: check the rows, one lookup, one float32 matrix, one model run.

::

    rows ── ModelInputs.check ──► keys ── client.get_many ──► FeatureTable [rows x service features]
                            └──► request inputs ────────────┐        │
                                                            ▼        ▼
                              matrix float32 [rows x manifest.inputs] ──► model.predict ──► one Prediction per row

Rules:
    1. The matrix has the manifest's columns in the manifest's order. Missing and null are NaN, never 0.
    2. A model is bound to the feature service it was trained on: another fingerprint is refused,
       when the scorer is made and before every batch. What request features take is looked up with, typed as the service says.
    3. A failed lookup raises. It is never a row of nulls.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from featurestore.errors import ModelError
from featurestore.scoring.inputs import CheckedRow, ModelInputs, ScoreRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.datatypes import DataType
    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.model import Model
    from featurestore.timeline import Instant


class FeatureRow(Protocol):
    """What scoring reads of one looked-up row; ``featurestore.FeatureVector`` is one."""

    def to_list(self) -> list[Any]:
        """Return the values in the table's column order; None is null."""

    @property
    def status(self) -> Mapping[str, str]:
        """Feature id to ``present``, ``null``, ``missing``, ``stale`` or ``degraded``."""

    @property
    def as_of(self) -> Mapping[str, Instant | None]:
        """View to the newest event time inside its values."""


class FeatureRows(Protocol):
    """What scoring reads of a looked-up batch; ``featurestore.FeatureTable`` is one."""

    @property
    def names(self) -> Sequence[str]:
        """Feature ids, in column order."""

    @property
    def at(self) -> Instant:
        """The time it was looked up for."""

    @property
    def complete_through(self) -> Instant | None:
        """The arrival instant up to which everything has been applied."""

    def tally(self, row: int, /) -> Mapping[str, int]:
        """Return how many features of a row have which status."""

    def to_numpy(self) -> NDArray[np.floating]:
        """Return float64 [rows, names], or float32; NaN for null and missing."""

    def __getitem__(self, index: int, /) -> FeatureRow:
        """Return one row with its statuses."""


class FeatureReader(Protocol):
    """The lookup a scorer needs; ``featurestore.FeatureClient`` is one. It is called from one thread at a time."""

    def get_many(
        self,
        service: str,
        keys: list[dict[str, Any]],
        *,
        now: Instant | None = None,
        request: Sequence[Mapping[str, Any]] | None = None,
    ) -> FeatureRows:
        """Return one row per key, in one round trip; None for ``now`` is the clock, ``request`` has the request values of each.

        Raises:
            OnlineStoreUnavailableError: The store cannot be reached.
            OnlineStoreTimeoutError: It did not answer in time.
        """

    def service_fingerprint(self, service: str) -> str:
        """Return the fingerprint of the service's plan that ``get_many`` uses; cheap once it has been read.

        Raises:
            UnknownNameError: No such service is applied.
            OnlineStoreUnavailableError: It has not been read yet and the store cannot be reached.
        """

    def request_values(self, service: str) -> Mapping[str, DataType]:
        """Return name to type of what the service's request features take of a caller."""

    def ping(self) -> None:
        """Return when the store answers.

        Raises:
            OnlineStoreUnavailableError: It cannot be reached.
            OnlineStoreTimeoutError: It did not answer in time.
        """


def _typed(types: Mapping[str, DataType]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items()) or "none"


class Prediction:
    """One row's score and how fresh the features behind it were.

    Attributes:
        score: The model's.
        model: Its name.
        version: Its version.
        at: The time the features were looked up for.
        complete_through: The arrival instant up to which everything had been applied; None when the store does not say.
        tally: How many of the statuses are which.
        vector: Feature id to the value as served, if asked for; the model's features only.
        prediction_id: Its id in the prediction log; None where there is none.
    """

    __slots__ = (
        "_names", "_place", "_table", "at", "complete_through", "model", "prediction_id", "score", "tally", "vector",
        "version",
    )  # fmt: skip

    def __init__(
        self, score: float, manifest: ModelManifest, table: FeatureRows, place: int, *, names: Sequence[str] | None
    ) -> None:
        """Make the prediction of a row of a table; ``names`` are the model's features where they are not all of it."""
        self.score, self.model, self.version = score, manifest.name, manifest.version
        self.at, self.complete_through = table.at, table.complete_through
        self.vector: Mapping[str, Any] | None = None
        self.prediction_id: str | None = None
        self._table, self._place, self._names = table, place, names
        self.tally: Mapping[str, int] = table.tally(place) if names is None else Counter(self.statuses.values())

    @property
    def statuses(self) -> Mapping[str, str]:
        """Feature id to present, null, missing, stale or degraded; the model's features only."""
        status = self._table[self._place].status
        return status if self._names is None else {name: status[name] for name in self._names}

    @property
    def as_of(self) -> Mapping[str, Instant | None]:
        """View to the newest event time inside its values; None where the view holds nothing for the key."""
        return self._table[self._place].as_of


class Timings(NamedTuple):
    """Where the time of one batch went, in seconds."""

    lookup: float
    """Until the store's answer was there; with ``decode`` inside where both are one call."""
    model: float
    decode: float = 0.0
    """From the store's answer to the model's matrix."""


class Scorer:
    """Scores rows with one model and the features it was trained on.

    Args:
        model: Runs the matrix.
        manifest: Names the columns and binds them to a feature service.
        client: Looks the features up.

    Raises:
        ModelError: The applied service is not the one of the manifest, or the model has other inputs.
        OnlineStoreUnavailableError: The store cannot be asked which service is applied.
    """

    def __init__(self, model: Model, manifest: ModelManifest, client: FeatureReader) -> None:
        if model.inputs != manifest.inputs:
            raise ModelError(f"model {manifest.label}: its inputs {model.inputs} are not those of its manifest.")
        self.model = model
        self.manifest = manifest
        self.inputs = ModelInputs(manifest)
        self._client = client
        self._names: Sequence[str] | None = None
        self._is_whole = False
        position = {name: index for index, name in enumerate(manifest.inputs)}
        self._request_columns = np.array([position[name] for name in manifest.request_inputs], dtype=np.intp)
        self._feature_columns = np.array([position[name] for name in manifest.feature_inputs], dtype=np.intp)
        self._is_bare = manifest.inputs == manifest.feature_inputs
        """Whether the features are all that the model takes, in their order."""
        self._table_columns: list[int] = []
        self.row_seconds = math.inf
        """What a row took at least, lately; kept by who scores."""
        self.check_service()
        taken = dict(client.request_values(manifest.service))
        if taken != manifest.request_values:
            raise ModelError(
                f"model {manifest.label}: service {manifest.service!r} takes request values {_typed(taken)}, its manifest says "
                f"{_typed(manifest.request_values)}.",
                hint="store it with request_values=service.request_values.",
            )

    def check_service(self) -> None:
        """Return when the client reads the definition that the model was trained on.

        Raises:
            ModelError: It reads another definition.
        """
        applied = self._client.service_fingerprint(self.manifest.service)
        if applied != self.manifest.service_fingerprint:
            raise ModelError(
                f"model {self.manifest.label}: it was trained on feature service {self.manifest.service!r} with "
                f"fingerprint {self.manifest.service_fingerprint}, the store serves {applied}.",
                hint="train and store the model again on the applied definitions, or apply those it was trained on.",
            )

    def score(
        self, requests: Sequence[ScoreRequest], now: Instant | None = None, *, explain: bool = False
    ) -> list[Prediction]:
        """Return one prediction per request, in order: one lookup and one model run for all of them.

        Args:
            requests: The rows; none gives none.
            now: Look up as of this instant, the events at it excluded; None is the clock.
            explain: Also return the feature values as served.

        Raises:
            ModelInputError: A key or request input is missing, unknown or mistyped.
            OnlineError: The lookup failed.
            ModelError: The model failed.
        """
        rows = [self.inputs.check(request, at=f"row {index}: ") for index, request in enumerate(requests)]
        return self.score_checked(rows, now, explain=[explain] * len(rows))[0]

    def score_checked(
        self, rows: Sequence[CheckedRow], now: Instant | None, *, explain: Sequence[bool]
    ) -> tuple[list[Prediction], Timings]:
        """Return the predictions of rows that ``self.inputs`` has checked, and where the time went."""
        if not rows:
            return [], Timings(0.0, 0.0)
        self.check_service()  # the client may have read a newer plan since
        started = time.perf_counter()
        table = self._client.get_many(
            self.manifest.service, [row.keys for row in rows], now=now, request=self.request_of(rows)
        )
        return self.score_looked_up(rows, lambda: table, explain=explain, lookup=time.perf_counter() - started)

    def request_of(self, rows: Sequence[CheckedRow]) -> list[Mapping[str, Any]] | None:
        """Return the request values that a lookup of these rows takes; None where the service takes none."""
        return [row.request for row in rows] if self.manifest.request_values else None

    def score_looked_up(
        self, rows: Sequence[CheckedRow], decode: Callable[[], FeatureRows], *, explain: Sequence[bool], lookup: float
    ) -> tuple[list[Prediction], Timings]:
        """Return the predictions of rows whose features have been read. No I/O.

        Args:
            rows: Checked by ``self.inputs``.
            decode: Returns what was read, one row each.
            explain: Per row, whether its prediction carries the vector.
            lookup: How long reading took, in seconds.
        """
        started = time.perf_counter()
        table = decode()
        matrix = self.matrix(rows, table)
        decoded = time.perf_counter()
        scores = self.model.predict(matrix)
        ran = time.perf_counter()
        predictions = [
            self.prediction(score, table, index, explain=explain[index]) for index, score in enumerate(scores.tolist())
        ]
        return predictions, Timings(lookup, ran - decoded, decoded - started)

    def matrix(self, rows: Sequence[CheckedRow], table: FeatureRows) -> NDArray[np.float32]:
        """Return what the model gets of rows and their features: float32 [rows, inputs], NaN for null and missing."""
        if self._is_bare:
            return np.ascontiguousarray(self._features(table))
        matrix = np.empty((len(rows), len(self.manifest.inputs)), dtype=np.float32)
        if len(self._feature_columns):
            matrix[:, self._feature_columns] = self._features(table)
        if len(self._request_columns):
            matrix[:, self._request_columns] = [row.values for row in rows]
        return matrix

    def _features(self, table: FeatureRows) -> NDArray[np.float32]:
        """Return the model's features, of shape [rows, features]."""
        columns, values = self._columns_of(table), table.to_numpy()
        if values.dtype != np.float32:
            with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, as it did in training
                values = values.astype(np.float32)
        return values if columns is None else values[:, columns]

    def _columns_of(self, table: FeatureRows) -> list[int] | None:
        """Return where the model's features are in a table, None where they are all of it; remembered until its names change."""
        names = table.names
        if names is not self._names:
            position = {name: index for index, name in enumerate(names)}
            absent = [name for name in self.manifest.feature_inputs if name not in position]
            if absent:
                raise ModelError(
                    f"model {self.manifest.label}: feature {absent[0]!r} is not in service {self.manifest.service!r}.",
                    hint="train and store the model again on the applied definitions.",
                )
            table.to_numpy()  # refuses a feature that is no number
            self._table_columns = [position[name] for name in self.manifest.feature_inputs]
            self._is_whole = tuple(names) == self.manifest.feature_inputs
            self._names = names
        return None if self._is_whole else self._table_columns

    def prediction(self, score: float, table: FeatureRows, row: int, *, explain: bool) -> Prediction:
        """Return a score with the freshness of the features behind it."""
        made = Prediction(
            score, self.manifest, table, row, names=None if self._is_whole else self.manifest.feature_inputs
        )
        if explain:
            made.vector = self._vector(table[row])
        return made

    def _vector(self, row: FeatureRow) -> dict[str, Any]:
        """Return the feature values as served, in their own types."""
        values = row.to_list()
        return {name: values[at] for name, at in zip(self.manifest.feature_inputs, self._table_columns, strict=True)}
