"""Which model answers for a row, and who else scores it: champion, canary, shadow.

::

    one lookup ──► table ──┬── champion ──► the answer, but for the canary's share of the keys
                           ├── canary   ──► the answer for its share
                           └── shadow   ──► off the response path, on a thread of its own ──► prediction log

Rules:
    1. All of them score the same fetched values: nothing is looked up twice.
    2. The share of a canary is a share of the keys, by a hash of the entity key and the model's name: a key stays with its model
       across requests, processes and restarts, and a larger share keeps the keys of a smaller one.
    3. A challenger takes what the champion takes of a caller, and the same feature service; another one is not used.
    4. A challenger that fails costs nobody an answer: the champion gives it, and the failure is counted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from featurestore.errors import ConfigError, ModelError
from featurestore.scoring.scorer import Scorer, Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.scoring.inputs import CheckedRow
    from featurestore.scoring.manifest import LoadedModel, ModelManifest
    from featurestore.scoring.prediction_log import Role
    from featurestore.scoring.scorer import FeatureReader, FeatureRows, Prediction

_LOG = logging.getLogger("featurestore.scoring")
_SHARE = re.compile(r"(100|[0-9]{1,2}(?:\.[0-9]{1,3})?)%")
_KEY = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True)
class Challenge:
    """What a challenger does: answer for a share of the keys, or score all of them in the shadow where the share is 0."""

    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Challenge | None:
        """Return what ``off``, ``shadow`` or a percentage says.

        Raises:
            ConfigError: It is none of them.

        >>> Challenge.parse("5%"), Challenge.parse("shadow"), Challenge.parse("off")
        (Challenge(share=0.05), Challenge(share=0.0), None)
        """
        if text == "off":
            return None
        if text == "shadow":
            return cls()
        found = _SHARE.fullmatch(text)
        if found is None or float(found[1]) == 0:
            raise ConfigError(
                f"challenger {text!r} is not understood.", hint='write "off", "shadow", or a share like "5%".'
            )
        return cls(float(found[1]) / 100)


def place_of(keys: Mapping[str, Any], model: str) -> float:
    """Return where an entity key falls in [0, 1), the same whenever and wherever it is asked; keys in any order.

    >>> place_of({"card_id": "c1"}, "fraud") == place_of({"card_id": "c1"}, "fraud")
    True
    """
    digest = hashlib.blake2b(_KEY.encode(keys), digest_size=8, key=model.encode()).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """The rows of a batch that one model scored."""

    manifest: ModelManifest
    role: Role
    rows: Sequence[int]
    """Their places in the batch."""
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """What was scored together, for whoever looks on after the answer."""

    batch_id: str
    """``prediction_id`` of row i is ``batch_id-i``."""
    rows: Sequence[CheckedRow]
    table: FeatureRows
    parts: Sequence[ScoredPart]
    scored_at: int
    """Wall clock, microseconds since 1970."""
    latency_us: int
    """From the start of the lookup to the scores."""


class RoutedScorer(Scorer):
    """A champion's scorer that lets a challenger take its share, and shows what was scored to others.

    Args:
        champion: The model that answers.
        client: Looks the features up.
        challenger: The model with the alias; None where there is none.
        challenge: What it does.
        watchers: Called with every batch after it was scored. They must not block, and get the arrays as they are.
        failed: Called with a challenger's label when it failed.

    Raises:
        ModelError: As of :class:`Scorer`; or the challenger takes other things of a caller or another feature service.
    """

    def __init__(
        self,
        champion: LoadedModel,
        client: FeatureReader,
        *,
        challenger: LoadedModel | None = None,
        challenge: Challenge | None = None,
        watchers: Sequence[Callable[[ScoredBatch], None]] = (),
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(champion.model, champion.manifest, client)
        self.challenger: Scorer | None = None
        self._share = challenge.share if challenge is not None else 0.0
        self._watchers = tuple(watchers)
        self._failed = failed
        if challenger is not None and challenge is not None:
            _require_alike(champion.manifest, challenger.manifest)
            self.challenger = Scorer(challenger.model, challenger.manifest, client)

    @property
    def shadow(self) -> Scorer | None:
        """The challenger, where it is to score in the shadow."""
        return self.challenger if self._share == 0.0 else None

    def score_looked_up(
        self, rows: Sequence[CheckedRow], decode: Callable[[], FeatureRows], *, explain: Sequence[bool], lookup: float
    ) -> tuple[list[Prediction], Timings]:
        """Return the predictions of rows whose features have been read, each by the model that its key belongs to."""
        kept: list[FeatureRows] = []

        def keep() -> FeatureRows:
            kept.append(decode())
            return kept[0]

        predictions, timings = super().score_looked_up(rows, keep, explain=explain, lookup=lookup)
        (table,) = kept
        theirs = self._canary_rows(rows)
        started = time.perf_counter()
        taken = self._by_canary(theirs, rows, table, predictions, explain) if theirs else None
        if taken is not None:
            timings = timings._replace(model=timings.model + time.perf_counter() - started)
        if self._watchers:
            batch_id = os.urandom(9).hex()
            for index, one in enumerate(predictions):
                one.prediction_id = f"{batch_id}-{index}"
            latency = timings.lookup + timings.decode + timings.model
            batch = ScoredBatch(
                batch_id, rows, table, self._parts(predictions, taken), time.time_ns() // 1000, int(latency * 1e6)
            )
            for watch in self._watchers:
                watch(batch)
        return predictions, timings

    def _canary_rows(self, rows: Sequence[CheckedRow]) -> list[int]:
        if self.challenger is None or self._share == 0.0:
            return []
        name = self.manifest.name
        return [index for index, row in enumerate(rows) if place_of(row.keys, name) < self._share]

    def _by_canary(
        self,
        theirs: list[int],
        rows: Sequence[CheckedRow],
        table: FeatureRows,
        predictions: list[Prediction],
        explain: Sequence[bool],
    ) -> list[int] | None:
        """Put the canary's predictions in their places; return these, or None where it failed and nothing was changed."""
        canary = self.challenger
        if canary is None:
            return None
        try:
            scores = canary.model.predict(np.ascontiguousarray(canary.matrix(rows, table)[theirs]))
        except ModelError as error:
            _LOG.warning("challenger %s: %s", canary.manifest.label, error)
            self._failed(canary.manifest.label)
            return None
        for index, score in zip(theirs, scores.tolist(), strict=True):
            predictions[index] = canary.prediction(score, table, index, explain=explain[index])
        return theirs

    def _parts(self, predictions: list[Prediction], taken: list[int] | None) -> list[ScoredPart]:
        if not taken or self.challenger is None:
            every = range(len(predictions))
            return [ScoredPart(self.manifest, "champion", every, [one.score for one in predictions])]
        others = sorted(set(range(len(predictions))) - set(taken))
        pairs: list[tuple[ModelManifest, Role, list[int]]] = [
            (self.manifest, "champion", others),
            (self.challenger.manifest, "canary", taken),
        ]
        return [
            ScoredPart(manifest, role, rows, [predictions[row].score for row in rows])
            for manifest, role, rows in pairs
            if rows
        ]


class ShadowRunner:
    """Scores batches with challengers on a thread of its own, from the values that were fetched for the champion.

    Args:
        watchers: Called with what a shadow scored: the batch's ids, rows and table, and its own part.
        max_batches: Batches that may wait; further ones are dropped and counted.
        count: Called with "scored", "dropped" or "failed" and a number of rows.
    """

    def __init__(
        self,
        watchers: Sequence[Callable[[ScoredBatch], None]] = (),
        *,
        max_batches: int = 256,
        count: Callable[[str, int], None] = lambda _outcome, _rows: None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._watchers = tuple(watchers)
        self._count_also = count
        self._queue: queue.Queue[tuple[Scorer, ScoredBatch] | None] = queue.Queue(max_batches)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def watch(self, shadow: Scorer, batch: ScoredBatch) -> None:
        """Take a batch to score; drop it where too many wait. Never blocks."""
        try:
            self._queue.put_nowait((shadow, batch))
        except queue.Full:
            self._count("dropped", len(batch.rows))

    def close(self) -> None:
        """Score what waits, then end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (found := self._queue.get()) is not None:
            shadow, batch = found
            started = time.perf_counter()
            try:
                scores = shadow.model.predict(shadow.matrix(batch.rows, batch.table)).tolist()
            except ModelError as error:
                _LOG.warning("challenger %s: %s", shadow.manifest.label, error)
                self._count("failed", len(batch.rows))
                continue
            took = int((time.perf_counter() - started) * 1e6)
            part = ScoredPart(shadow.manifest, "shadow", range(len(scores)), scores)
            self._count("scored", len(scores))
            shown = replace(batch, parts=[part], scored_at=time.time_ns() // 1000, latency_us=took)
            for watch in self._watchers:
                watch(shown)

    def _count(self, outcome: Literal["scored", "dropped", "failed"], rows: int) -> None:
        self.counts[outcome] += rows
        self._count_also(outcome, rows)


def _require_alike(champion: ModelManifest, challenger: ModelManifest) -> None:
    for what in ("service", "service_fingerprint", "keys", "request_inputs", "request_values"):
        if getattr(champion, what) != getattr(challenger, what):
            raise ModelError(
                f"challenger {challenger.label} has {what} {getattr(challenger, what)!r}, champion {champion.label} has "
                f"{getattr(champion, what)!r}.",
                hint="a challenger scores what was fetched for the champion; serve this one as a model of its own.",
            )
