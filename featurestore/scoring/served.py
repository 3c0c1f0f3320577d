"""The models one scorer serves, each bound to the store's feature service as soon as the store answers."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.errors import FeatureStoreError, ModelError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.scoring.folder import read_aliases
from featurestore.scoring.inputs import ModelInputs
from featurestore.scoring.manifest import LoadedModel, list_models, load_model
from featurestore.scoring.routing import RoutedScorer
from featurestore.scoring.scorer import FeatureReader, Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.routing import Challenge, ScoredBatch, ShadowRunner

_LOG = logging.getLogger("featurestore.scoring")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Company:
    """Who else joins in when a model scores.

    Attributes:
        challenge: What challengers do; None leaves them out.
        shadows: Scores in the shadow; needed where challengers do that.
        watchers: Called with what was scored; the prediction log's.
        failed: Called with the label of a challenger that failed or does not fit.
    """

    challenge: Challenge | None = None
    shadows: ShadowRunner | None = None
    watchers: tuple[Callable[[ScoredBatch], None], ...] = ()
    failed: Callable[[str], None] = lambda _: None


class ServedModel:
    """One loaded version and the client it looks features up with; with company, others score the same rows.

    Args:
        loaded: The model that answers.
        client: Looks features up.
        challenger: The version with the alias, if any.
        company: Who joins in.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        client: FeatureReader,
        *,
        challenger: LoadedModel | None = None,
        company: Company | None = None,
    ) -> None:
        self.manifest: ModelManifest = loaded.manifest
        self.inputs = ModelInputs(loaded.manifest)
        self.challenger = challenger.manifest if challenger is not None else None
        self._loaded = loaded
        self._challenger = challenger
        self._company = company or Company()
        self._client = client
        self._scorer: Scorer | None = None
        self._shadow: Scorer | None = None

    @property
    def bound(self) -> Scorer | None:
        """The scorer, if it has been bound already."""
        return self._scorer

    def scorer(self) -> Scorer:
        """Return the scorer, bound on the first call that reaches the store. Worker thread only.

        Raises:
            ModelError: The store serves another definition of the feature service, or the challenger does not fit the model.
            OnlineStoreUnavailableError: The store is not there yet.
        """
        if self._scorer is None:
            self._scorer = self._bind()
        return self._scorer

    def _bind(self) -> Scorer:
        company = self._company
        if company.challenge is None and not company.watchers:
            return Scorer(self._loaded.model, self.manifest, self._client)
        watchers = list(company.watchers)
        scorer = RoutedScorer(
            self._loaded,
            self._client,
            challenger=self._challenger,
            challenge=company.challenge,
            watchers=watchers if self._challenger is None else (*watchers, self._watch_shadow),
            failed=company.failed,
        )
        self._shadow = scorer.shadow
        return scorer

    def _watch_shadow(self, batch: ScoredBatch) -> None:
        if self._shadow is not None and self._company.shadows is not None:
            self._company.shadows.watch(self._shadow, batch)

    def is_ready(self) -> bool:
        """Return whether the store answers and serves what the model was trained on. Worker thread only."""
        try:
            self._client.ping()
            self.scorer().check_service()
        except FeatureStoreError as error:
            _LOG.warning("model %s is not ready: %s", self.manifest.label, type(error).__name__)
            return False
        return True


class ModelSet:
    """The served versions, by name; a request without a version gets the newest of them, or what ``replace`` put there.

    Args:
        loaded: The models.
        client: Looks their features up.
        company: Who joins in when they score.

    Raises:
        ModelError: There are none.
    """

    def __init__(self, loaded: Iterable[LoadedModel], client: FeatureReader, *, company: Company | None = None) -> None:
        self.client = client
        self.company = company
        self._versions: dict[str, dict[int, ServedModel]] = {}
        for one in loaded:
            self._versions.setdefault(one.manifest.name, {})[one.manifest.version] = ServedModel(
                one, client, company=company
            )
        if not self._versions:
            raise ModelError("there is no model to serve.", hint="store one with save_model, or check the models root.")
        self._newest = {name: versions[max(versions)] for name, versions in self._versions.items()}

    def __iter__(self) -> Iterator[ServedModel]:
        return (one for versions in self._versions.values() for one in versions.values())

    def find(self, name: str, version: str | None = None) -> ServedModel | None:
        """Return a served version, by default the newest; None if it is not served."""
        if version is None:
            return self._newest.get(name)
        if not _VERSION.fullmatch(version):
            return None
        return self._versions.get(name, {}).get(int(version))

    def replace(self, served: ServedModel) -> ServedModel | None:
        """Serve a bound version instead of the one that a request without a version gets; return that one.

        One assignment: a request has either of them, and one that has begun ends with the one it has. Others of this name that
        were asked for by number go on being served.
        """
        name = served.manifest.name
        before = self._newest.get(name)
        kept = {
            version: one
            for version, one in self._versions.get(name, {}).items()
            if before is None or version != before.manifest.version
        }
        self._versions = {**self._versions, name: {**kept, served.manifest.version: served}}
        self._newest = {**self._newest, name: served}
        return before

    def versions(self, name: str) -> list[int]:
        """Return the served versions of a name, oldest first."""
        return sorted(self._versions.get(name, ()))

    def bind(self) -> None:
        """Bind every model to the store; leave that for later where the store is away. Worker thread only.

        Raises:
            ModelError: The store serves another definition than a model was trained on.
            UnknownNameError: A feature service is not applied.
        """
        for one in self:
            try:
                one.scorer()
            except (OnlineStoreUnavailableError, OnlineStoreTimeoutError):
                _LOG.warning("model %s waits for the online store", one.manifest.label)

    def readiness(self) -> dict[tuple[str, int], bool]:
        """Return which versions can score now, by name and version. Worker thread only; asks the store."""
        return {(one.manifest.name, one.manifest.version): one.is_ready() for one in self}


def load_models(root: str | Path, wanted: Sequence[str] | None = None) -> list[LoadedModel]:
    """Return the models to serve.

    Args:
        root: The directory of all models.
        wanted: ``"name"`` for its champion, or its newest version where no registry named one; ``"name:3"`` for that one;
            None for the first of every name.

    Raises:
        ModelError: A wanted model is not stored or refused, or nothing is stored.
    """
    if wanted is None:
        wanted = sorted({one.name for one in list_models(root)})
    loaded = []
    for entry in wanted:
        name, _, version = entry.partition(":")
        if version and not _VERSION.fullmatch(version):
            raise ModelError(f"model {entry!r}: {version!r} is not a version.", hint="write name or name:3.")
        chosen = int(version) if version else read_aliases(root, name).get("champion")
        loaded.append(load_model(root, name, chosen))
    return loaded
