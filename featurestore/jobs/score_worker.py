"""Which model a scoring job scores with: made in the process that scores, and replaced there when another becomes champion."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from featurestore.errors import ModelError, OnlineStoreTimeoutError, OnlineStoreUnavailableError, UnknownNameError
from featurestore.jobs.score import EventScorer
from featurestore.online.client import FeatureClient
from featurestore.scoring.folder import read_aliases
from featurestore.scoring.follow import load_tried
from featurestore.scoring.served import ServedModel, load_models

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.jobs.score import ScoreSpec
    from featurestore.scoring.manifest import LoadedModel, ModelManifest

_LOG = logging.getLogger("featurestore.scoring")
LOOKUP_TIMEOUT = "5s"
"""A job waits longer for the store than a caller would."""
_TRY_AGAIN_S = 60.0


@dataclass(frozen=True, eq=False)
class ScoreWorker:
    """The scorer of a job in this process; it is made when it is first asked for."""

    spec: ScoreSpec

    @property
    def scorer(self) -> EventScorer:
        """The scorer of the model as of now; to be asked for before each batch.

        Raises:
            ModelError: The model is not stored, or does not fit the events.
        """
        return self._followed.scorer()

    def close(self) -> None:
        """Close the scorer's client, if there is one; the scorer is not used after."""
        if "_followed" in self.__dict__:
            self._followed.close()

    @cached_property
    def _followed(self) -> FollowedModel:
        return FollowedModel(self.spec)


class FollowedModel:
    """The model of a job, which follows the champion where its version is not fixed; with a client of its own.

    A champion that is refused leaves the version before, and is tried again after a minute; one that the store is away for, at
    the next look.

    Args:
        spec: What to score.
        clock: Seconds.

    Raises:
        ModelError: The model is not stored, or does not fit the events.
    """

    def __init__(self, spec: ScoreSpec, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec, self._clock, self._looked = spec, clock, float("-inf")
        self._refused: dict[int, float] = {}
        loaded = self._first()
        self._client = FeatureClient(spec.online_url, project=spec.project, timeout=LOOKUP_TIMEOUT)
        try:
            self._scorer = self._made(loaded)
        except ModelError:
            self.close()
            raise

    def scorer(self) -> EventScorer:
        """Return the scorer; another version's than before, if that has become champion."""
        now = self._clock()
        if self._spec.follow_s and now - self._looked >= self._spec.follow_s:
            self._looked = now
            self._follow(now)
        return self._scorer

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _follow(self, now: float) -> None:
        served = self._scorer.manifest
        try:
            champion = read_aliases(self._spec.models, served.name).get("champion", served.version)
        except ModelError as error:
            _LOG.warning("model %s: %s", served.name, error)
            return
        if champion == served.version or now - self._refused.get(champion, float("-inf")) < _TRY_AGAIN_S:
            return
        try:
            loaded = load_tried(self._spec.models, served.name, champion)
            self._require_service(loaded.manifest)
            scorer = self._made(loaded)
            scorer.bind()
        except (OnlineStoreUnavailableError, OnlineStoreTimeoutError):
            return
        except (ModelError, UnknownNameError) as error:
            _LOG.error("model %s:%d is refused, version %d stays: %s", served.name, champion, served.version, error)
            self._refused[champion] = now
            return
        _LOG.warning("model %s: version %d scores, was %d", served.name, champion, served.version)
        self._scorer = scorer

    def _first(self) -> LoadedModel:
        """Return the version to begin with; where that of the job's submission has been deleted since, the champion.

        A job outlives the processes that score for it, and may outlive the version it began with.
        """
        spec = self._spec
        try:
            (loaded,) = load_models(spec.models, [spec.model])
        except ModelError:
            name = spec.model.partition(":")[0]
            if not spec.follow_s or "champion" not in read_aliases(spec.models, name):
                raise
            (loaded,) = load_models(spec.models, [name])
            self._require_service(loaded.manifest)
            _LOG.warning("model %s cannot be had, %s scores", spec.model, loaded.manifest.label)
        return loaded

    def _made(self, loaded: LoadedModel) -> EventScorer:
        spec = self._spec
        return EventScorer(spec.source, ServedModel(loaded, self._client), spec.envelope, at=spec.at)

    def _require_service(self, manifest: ModelManifest) -> None:
        if manifest.service != self._spec.service:
            raise ModelError(
                f"model {manifest.label} is one of service {manifest.service!r}, not of {self._spec.service!r}.",
                hint="submit a job for that service.",
            )
