"""The models one scorer serves, each bound to the store's feature service as soon as the store answers."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from featurestore.errors import FeatureStoreError, ModelError, OnlineStoreTimeoutError, OnlineStoreUnavailableError
from featurestore.scoring.inputs import ModelInputs
from featurestore.scoring.manifest import LoadedModel, list_models, load_model
from featurestore.scoring.scorer import FeatureReader, Scorer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from featurestore.scoring.manifest import ModelManifest

_LOG = logging.getLogger("featurestore.scoring")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class ServedModel:
    """One loaded version and the client it looks features up with."""

    def __init__(self, loaded: LoadedModel, client: FeatureReader) -> None:
        self.manifest: ModelManifest = loaded.manifest
        self.inputs = ModelInputs(loaded.manifest)
        self._model = loaded.model
        self._client = client
        self._scorer: Scorer | None = None

    @property
    def bound(self) -> Scorer | None:
        """The scorer, if it has been bound already."""
        return self._scorer

    def scorer(self) -> Scorer:
        """Return the scorer, bound on the first call that reaches the store. Worker thread only.

        Raises:
            ModelError: The store serves another definition of the feature service.
            OnlineStoreUnavailableError: The store is not there yet.
        """
        if self._scorer is None:
            self._scorer = Scorer(self._model, self.manifest, self._client)
        return self._scorer

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
    """The served versions, by name; a request without a version gets the newest of them.

    Args:
        loaded: The models.
        client: Looks their features up.

    Raises:
        ModelError: There are none.
    """

    def __init__(self, loaded: Iterable[LoadedModel], client: FeatureReader) -> None:
        self.client = client
        self._versions: dict[str, dict[int, ServedModel]] = {}
        for one in loaded:
            self._versions.setdefault(one.manifest.name, {})[one.manifest.version] = ServedModel(one, client)
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
        wanted: ``"name"`` for its newest version or ``"name:3"`` for that one; None for the newest of every name.

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
        loaded.append(load_model(root, name, int(version) if version else None))
    return loaded
