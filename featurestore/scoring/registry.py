"""Which version of a model is which, kept by MLflow: versions, aliases, and the definition each was trained on.

::

    register ──► MLflow version n ──► <root>/<name>/n/            on this machine; a server keeps the files too
    promote  ──► MLflow aliases   ──► <root>/<name>/aliases.json ◄── what scorers follow, without MLflow
    sync     ──► both, on a machine that serves

Rules:
    1. MLflow counts the versions. A number that the folder has for something else is skipped.
    2. A version is bound to its feature service by the fingerprint, in its tags and in its manifest. An alias moves to a version
       only if the fingerprint is the applied one and the files are those of the tags.
    3. ``promote`` keeps what was champion as ``previous``; ``rollback`` exchanges the two. Scorers read the folder: a registry
       that is away stops moves, and nothing that is served.
    4. MLflow takes seconds to import, so nothing that serves imports this module's third parties.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.config import hide_url
from featurestore.errors import ConfigError, ModelError, ModelRegistryUnavailableError, UnknownNameError, did_you_mean
from featurestore.scoring.folder import check_model_name, read_aliases, write_aliases
from featurestore.scoring.manifest import ModelVersion, adopt_version, find_model, load_model, save_model
from featurestore.scoring.runtimes import ONNX
from featurestore.timeline import MILLISECOND, format_instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from featurestore.definitions.service import FeatureService

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_TAG = "featurestore."
_EXPERIMENT = "featurestore-models"


@dataclass(frozen=True)
class RegisteredVersion:
    """One version, as the registry has it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    service: str
    service_fingerprint: str
    sha256: str
    created_at: str


@dataclass(frozen=True)
class Move:
    """What an alias points to now, and what it pointed to before."""

    name: str
    alias: str
    version: int
    before: int | None

    def __str__(self) -> str:
        return f"{self.name}: {self.alias} is version {self.version}, was {self.before or 'none'}"


class ModelRegistry:
    """The models of a project in MLflow, and the folder that scorers read.

    Args:
        uri: The URL of an MLflow server, or a database as SQLAlchemy names it: ``sqlite:///models/registry.db``.
        root: The folder of all models on this machine.

    Raises:
        ConfigError: The ``registry`` extra is not installed.
    """

    def __init__(self, uri: str, root: str | Path) -> None:
        self.uri = uri
        self.root = Path(root)

    def register(
        self,
        name: str,
        model: Any,
        *,
        service: FeatureService,
        inputs: Sequence[str],
        sample: Any,
        alias: str | None = None,
        output: str | None = None,
        runtime: str = ONNX,
        metrics: Mapping[str, Any] | None = None,
        training_set: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """Convert a model, compare it with the original on real rows, and store it as the next version.

        Args:
            name: Lower-case letters, digits, ``_`` and ``-``.
            model: What was trained, with LightGBM, XGBoost or scikit-learn; or the bytes of an ONNX file, or of the runtime's.
            service: The applied feature service that it was trained on.
            inputs: The columns of the training matrix in order. Those that are features of the service are looked up, the
                others are sent by the caller.
            sample: Real rows of the training set, as a table with these columns or an array [rows, inputs].
            alias: ``challenger``, say; None gives it none. To make it champion, promote it.
            output: The graph's output with the score; None takes the only float one.
            runtime: What runs the bytes; a plug-in's name when they are not ONNX.
            metrics: Whatever was measured.
            training_set: What it was trained on: ``TrainingSet.manifest``.

        Raises:
            ModelError: The model is refused, cannot be converted, or ONNX and original differ.
            UnknownNameError: An input looks like a feature and is none of the service.
            ModelRegistryUnavailableError: The registry cannot be reached; nothing was stored.
        """
        from featurestore.scoring.convert import content_of

        check_model_name(name)
        columns = tuple(inputs)
        looked_up = [column for column in columns if column in service.feature_ids]
        astray = [column for column in columns if "." in column and column not in looked_up]
        if astray:
            raise UnknownNameError(
                f"model {name}: input {astray[0]!r} is no feature of service {service.name!r}.",
                hint=did_you_mean(astray[0], service.feature_ids, what="features"),
            )
        content, parity = content_of(model, columns, sample, name=name, output=output, runtime=runtime)
        facts: dict[str, Any] = {
            "service": service.name,
            "service_fingerprint": service.fingerprint,
            "keys": service.keys,
            "inputs": columns,
            "request_inputs": [column for column in columns if column not in looked_up],
            "feature_inputs": looked_up,
            "request_values": service.request_values,
            "output": output,
            "metrics": metrics,
            "training_set": training_set,
            "parity": parity,
            "runtime": runtime,
        }
        with tempfile.TemporaryDirectory() as rehearsal:  # whatever is refused is refused before MLflow counts
            trial = save_model(rehearsal, name, content, **facts)
        version, run = self._next_version(name, trial)
        stored = save_model(self.root, name, content, **facts, version=version)
        if run is not None:
            with self._asking("uploading"):
                for file in sorted(stored.directory.iterdir()):
                    self._client.log_artifact(run, str(file), "model")
        if alias is not None:
            self._set_alias(name, alias, version)
        self._mirror(name)
        return stored

    def promote(
        self, name: str, version: int | None = None, *, applied: Mapping[str, str], alias: str = CHAMPION
    ) -> Move:
        """Make a version the champion, and what was champion ``previous``.

        Args:
            name: The model.
            version: None takes the challenger, which then is none any more.
            applied: Feature service to fingerprint, as applied.
            alias: Another alias to move, without a ``previous``.

        Raises:
            ModelError: There is no such version, its files are not those that were registered, or it was trained on another
                definition; nothing was moved.
            ModelRegistryUnavailableError: The registry cannot be reached; nothing was moved.
        """
        aliases = self._aliases(name)
        if version is None:
            if CHALLENGER not in aliases:
                raise ModelError(f"model {name} has no challenger.", hint="name the version to promote.")
            version = aliases[CHALLENGER]
        self._check(name, version, applied)
        before = aliases.get(alias)
        if before != version:
            if alias == CHAMPION and before is not None:
                self._set_alias(name, PREVIOUS, before)  # first: a crash between leaves a champion
            self._set_alias(name, alias, version)
        if alias == CHAMPION and aliases.get(CHALLENGER) == version:
            with self._asking("removing an alias"):
                self._client.delete_registered_model_alias(name, CHALLENGER)
        self._mirror(name)
        return Move(name, alias, version, before)

    def rollback(self, name: str, *, applied: Mapping[str, str]) -> Move:
        """Make ``previous`` the champion again, and the champion ``previous``.

        Raises:
            ModelError: There is no previous version, or it was trained on another definition; nothing was moved.
            ModelRegistryUnavailableError: The registry cannot be reached.
        """
        aliases = self._aliases(name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if previous is None or previous == champion:
            raise ModelError(f"model {name} has no previous version.", hint="promote the version you want.")
        self._check(name, previous, applied)
        self._set_alias(name, CHAMPION, previous)
        if champion is not None:
            self._set_alias(name, PREVIOUS, champion)
        self._mirror(name)
        return Move(name, CHAMPION, previous, champion)

    def versions(self, name: str | None = None) -> list[RegisteredVersion]:
        """Return all versions of a model, or of all models, by name and version.

        Raises:
            ModelError: There is no such model.
            ModelRegistryUnavailableError: The registry cannot be reached.
        """
        names = sorted(self._names()) if name is None else [name]
        found = []
        for each in names:
            aliases = self._aliases(each)
            with self._asking("listing versions"):
                versions = list(self._client.search_model_versions(f"name = '{check_model_name(each)}'"))
            found += [_registered(one, aliases) for one in versions if f"{_TAG}sha256" in one.tags]
        return sorted(found, key=lambda one: (one.name, one.version))

    def sync(self) -> dict[str, dict[str, int]]:
        """Bring every version that has an alias into this machine's folder, then the aliases; return them by model.

        Raises:
            ModelError: The files of a version are not those that were registered: its aliases stay as they were.
            ModelRegistryUnavailableError: The registry cannot be reached: everything stays as it was.
        """
        found = {}
        failed: ModelError | None = None
        for name in sorted(self._names()):
            try:
                found[name] = self._mirror(name)
            except ModelError as error:  # the others are not kept waiting
                failed = failed or error
        if failed is not None:
            raise failed
        return found

    def _mirror(self, name: str) -> dict[str, int]:
        aliases = self._aliases(name)
        for version in sorted(set(aliases.values())):
            self._pull(name, version)
        if aliases != read_aliases(self.root, name):
            write_aliases(self.root, name, aliases)
        return aliases

    def _pull(self, name: str, version: int) -> ModelVersion:
        """Return a version in this machine's folder, brought there if need be, once it is what was registered."""
        with self._asking("reading a version"):
            entry = self._client.get_model_version(name, str(version))
        if not (self.root / name / str(version)).is_dir():
            if not entry.run_id:
                raise ModelError(
                    f"model {name}:{version} is not in {self.root}, and the registry has no files of it.",
                    hint="register it again; a registry in a database keeps no files, a server does.",
                )
            with tempfile.TemporaryDirectory() as folder:
                with self._asking("downloading"):
                    found = self._client.download_artifacts(entry.run_id, "model", folder)
                adopt_version(self.root, name, version, Path(found))
        stored = find_model(self.root, name, version)
        tags = {each: entry.tags.get(f"{_TAG}{each}") for each in ("sha256", "service_fingerprint")}
        ours = {"sha256": stored.manifest.sha256, "service_fingerprint": stored.manifest.service_fingerprint}
        if tags != ours:
            what = next(each for each in tags if tags[each] != ours[each])
            raise ModelError(
                f"model {name}:{version}: the registry has {what} {tags[what]}, {stored.directory} has {ours[what]}.",
                hint="the folder holds another model of this number: serve from a folder of its own, and sync it.",
            )
        return stored

    def _check(self, name: str, version: int, applied: Mapping[str, str]) -> None:
        manifest = self._pull(name, version).manifest
        fingerprint = applied.get(manifest.service, "none")
        if manifest.service_fingerprint != fingerprint:
            raise ModelError(
                f"model {manifest.label} was trained on feature service {manifest.service!r} with fingerprint "
                f"{manifest.service_fingerprint}, applied is {fingerprint}; no alias was moved.",
                hint="train and register the model again on the applied definitions, or apply those it was trained on.",
            )
        load_model(self.root, name, version)

    def _next_version(self, name: str, trial: ModelVersion) -> tuple[int, str | None]:
        """Create the next version in MLflow; return its number, and the run that holds its files where a server keeps them."""
        manifest = trial.manifest
        tags = {
            f"{_TAG}{each}": str(getattr(manifest, each))
            for each in ("service", "service_fingerprint", "sha256", "runtime")
        }
        source, run = (self.root / name).absolute().as_uri(), None
        with self._asking("registering"):
            if name not in self._names():
                self._client.create_registered_model(name, tags={f"{_TAG}models": "1"})
            if self.uri.startswith(("http://", "https://")):
                experiment = self._client.get_experiment_by_name(_EXPERIMENT)
                number = experiment.experiment_id if experiment else self._client.create_experiment(_EXPERIMENT)
                started = self._client.create_run(number, run_name=name)
                run, source = started.info.run_id, f"{started.info.artifact_uri}/model"
                self._client.set_terminated(run)
            while True:
                version = int(self._client.create_model_version(name, source, run_id=run, tags=tags).version)
                if not (self.root / name / str(version)).exists():
                    return version, run
                self._client.delete_model_version(name, str(version))

    def _set_alias(self, name: str, alias: str, version: int) -> None:
        with self._asking("setting an alias"):
            self._client.set_registered_model_alias(name, alias, str(version))

    def _aliases(self, name: str) -> dict[str, int]:
        check_model_name(name)
        with self._asking("reading a model"):
            for model in self._client.search_registered_models(f"name = '{name}'"):
                return {alias: int(version) for alias, version in model.aliases.items()}
        raise ModelError(f"model {name!r} is not registered.", hint=did_you_mean(name, self._names(), what="models"))

    def _names(self) -> set[str]:
        """Return the models that this package registered."""
        with self._asking("listing models"):
            found: set[str] = set()
            token: str | None = None
            while True:
                page = self._client.search_registered_models(page_token=token)
                found |= {one.name for one in page if f"{_TAG}models" in one.tags}
                token = page.token
                if not token:
                    return found

    @cached_property
    def _client(self) -> Any:
        return _mlflow_client(self.uri, self.root)

    @contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        """Raise what MLflow raises as ours."""
        _ = self._client  # imports MLflow, and is opened outside of what is tried here
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            reason = _reason(error)
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise ModelError(f"registry {hide_url(self.uri)}: {doing} is refused: {reason}.") from error
            raise ModelRegistryUnavailableError(
                f"registry {hide_url(self.uri)}: {doing} failed: {reason}.",
                hint="is the MLflow server up? what is served goes on; moves wait.",
            ) from error


def _registered(one: Any, aliases: Mapping[str, int]) -> RegisteredVersion:
    version = int(one.version)
    return RegisteredVersion(
        one.name,
        version,
        tuple(sorted(alias for alias, target in aliases.items() if target == version)),
        one.tags.get(f"{_TAG}service", ""),
        one.tags.get(f"{_TAG}service_fingerprint", ""),
        one.tags.get(f"{_TAG}sha256", ""),
        format_instant(one.creation_timestamp * MILLISECOND),
    )


def _reason(error: Exception) -> str:
    """Return what MLflow said, on one line, without the passwords in its URLs."""
    return " ".join(hide_url(word) if "://" in word else word for word in str(error).split())[:200]


def _mlflow_client(uri: str, root: Path) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        with warnings.catch_warnings():  # of its own use of SQLAlchemy, when imported
            warnings.simplefilter("ignore")
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            for name in ("mlflow", "alembic"):  # MLflow has set it to INFO, and tells of every table that it makes
                logging.getLogger(name).setLevel(logging.WARNING)
            if uri.startswith("sqlite:"):
                root.mkdir(parents=True, exist_ok=True)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_registered_models(max_results=1)
            return client
    except ImportError as error:
        raise ConfigError(
            f"the model registry needs MLflow ({error}).", hint="pip install 'featurestore[registry]'."
        ) from error
    except MlflowException as error:
        reason = _reason(error)
        raise ModelRegistryUnavailableError(
            f"registry {hide_url(uri)}: it cannot be opened: {reason}.", hint="is the MLflow server up? check registry."
        ) from error
