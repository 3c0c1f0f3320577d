"""Verbs under ``models``: register, promote, rollback, list, sync."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import models_app
from featurestore.cli.output import (
    STATE,
    ConfigOption,
    JsonOption,
    example,
    open_store,
    print_json,
    print_lines,
    print_table,
)
from featurestore.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from featurestore.config import Settings
    from featurestore.scoring.log_queue import Sink
    from featurestore.store import FeatureStore

NameArgument = Annotated[str, typer.Argument(help="Name of the model.")]
SAMPLE_ROWS = 5_000


@models_app.command(
    epilog=example(
        "featurestore models register fraud model.txt --service fraud_v1 --sample training/",
        "featurestore models register fraud model.onnx --service fraud_v1 --sample training/ --inputs amount,card.spend_1h",
    )
)
def register(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(help="ONNX, LightGBM's text or XGBoost's JSON or UBJSON; never a pickle.")],
    service: Annotated[str, typer.Option(help="The applied feature service it was trained on.")],
    sample: Annotated[Path, typer.Option(help="Real rows, Parquet or .csv, as training-set writes them.")],
    inputs: Annotated[
        str | None, typer.Option(help="Columns in order, separated by commas; the model's or the service's by default.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to give it.")] = "challenger",
    output: Annotated[
        str | None, typer.Option(help="The ONNX output with the score; the only float one by default.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a model as the next version, once ONNX and original agree on real rows."""
    from featurestore.offline.sample import read_sample

    store = open_store(config)
    found = store.definitions().service(service)
    model, names = _read(file)
    columns = tuple(each.strip() for each in inputs.split(",")) if inputs else tuple(names or found.feature_ids)
    rows = read_sample(sample, columns, rows=SAMPLE_ROWS)
    _be_quick()
    stored = store.models.register(
        name, model, service=found, inputs=columns, sample=rows, alias=alias or None, output=output
    )
    manifest = stored.manifest
    if as_json:
        print_json(
            {
                "name": name,
                "version": manifest.version,
                "alias": alias or None,
                "sha256": manifest.sha256,
                "service": manifest.service,
                "service_fingerprint": manifest.service_fingerprint,
                "parity": manifest.parity,
            }
        )
        return
    compared = manifest.parity.get("max_difference")
    shown = (
        "" if compared is None else f", at most {compared:.1e} from the original on {manifest.parity['rows']:,} rows"
    )
    print_lines([f"{manifest.label}{f' ({alias})' if alias else ''}{shown}"])


@models_app.command(epilog=example("featurestore models promote fraud", "featurestore models promote fraud 3"))
def promote(
    name: NameArgument,
    version: Annotated[int | None, typer.Argument(help="The version; the challenger by default.")] = None,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version the champion, which scorers then serve; the old one is kept as previous."""
    store = open_store(config)
    _be_quick()
    moved = store.models.promote(name, version, applied=_applied(store), alias=alias)
    print_json(asdict(moved)) if as_json else print_lines([moved])


@models_app.command(epilog=example("featurestore models rollback fraud"))
def rollback(name: NameArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make the previous version the champion again."""
    store = open_store(config)
    _be_quick()
    moved = store.models.rollback(name, applied=_applied(store))
    print_json(asdict(moved)) if as_json else print_lines([moved])


@models_app.command(name="list", epilog=example("featurestore models list", "featurestore models list fraud --json"))
def list_models(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List registered versions, their aliases and whether they fit the applied definitions."""
    store = open_store(config)
    _be_quick()
    applied = _applied(store)
    versions = store.models.versions(name)
    fits = ["yes" if applied.get(one.service) == one.service_fingerprint else "no" for one in versions]
    if as_json:
        print_json([asdict(one) | {"fits": fit == "yes"} for one, fit in zip(versions, fits, strict=True)])
        return
    print_table(
        ("model", "version", "aliases", "service", "fits", "registered"),
        [
            (one.name, one.version, ", ".join(one.aliases) or "-", one.service, fit, one.created_at)
            for one, fit in zip(versions, fits, strict=True)
        ],
    )


@models_app.command(epilog=example("featurestore models sync", "featurestore models sync --every 10s"))
def sync(
    every: Annotated[str | None, typer.Option(help="Go on until Ctrl-C, so often.")] = None,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring what the registry has an alias for into this machine's folder of models, which scorers follow."""
    from featurestore.scoring.sync import keep_in_step

    store = open_store(config)
    _be_quick()

    def show(found: dict[str, dict[str, int]]) -> None:
        if as_json:
            print_json(found)
        else:
            print_lines(
                f"{name}: {alias} is version {at}" for name, each in found.items() for alias, at in each.items()
            )

    if every is None:
        show(store.models.sync())
    else:
        parent = os.getppid()
        keep_in_step(store.models, every=every, show=show, until=lambda: with_parent and os.getppid() != parent)


@contextmanager
def in_step(store: FeatureStore, folder: Path, *, every: str, config: Path | None) -> Iterator[None]:
    """Keep a folder in step with a registry that is a server, by a process of its own; a registry in a database writes it itself.

    A folder without models is filled first.
    """
    if not store.settings.registry.startswith(("http://", "https://")):
        yield
        return
    from featurestore.scoring.manifest import list_models as stored

    named = config or STATE.config
    command = [sys.executable, "-m", "featurestore.cli", "models", "sync"]
    command += [] if named is None else ["--config", str(named)]
    environment = os.environ | {"FEATURESTORE_MODELS": str(folder.absolute())}
    if not stored(folder):
        subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    process = subprocess.Popen([*command, "--every", every, "--with-parent"], env=environment, stdout=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def sink_factory(settings: Settings, text: str) -> Callable[[], Sink] | None:
    """Return what makes the sink of the prediction log, in each process that scores; None where there is no log.

    Raises:
        ConfigError: The text is neither "delta" nor "kafka:TOPIC".
    """
    if not text:
        return None
    if text == "delta":
        from featurestore.offline.predictions import DeltaSink

        return partial(DeltaSink, settings.offline)
    kind, _, topic = text.partition(":")
    if kind != "kafka" or not topic:
        raise ConfigError(f"prediction log {text!r} is not understood.", hint='write "delta" or "kafka:TOPIC".')
    from featurestore.scoring.log_queue import KafkaSink

    return partial(KafkaSink, settings.kafka, topic)


def _read(file: Path) -> tuple[Any, list[str] | None]:
    """Return a trained model and its columns' names, or the bytes of an ONNX file; told apart by the first bytes."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}).") from error
    if content.startswith(b"tree\n"):
        lightgbm = _library("lightgbm")
        model = lightgbm.Booster(model_str=content.decode())
        names = model.feature_name()
        return model, None if names == [f"Column_{index}" for index in range(len(names))] else names
    if content.startswith(b"{"):
        xgboost = _library("xgboost")
        model = xgboost.Booster()
        model.load_model(bytearray(content))
        return model, model.feature_names
    if content.startswith(b"\x80") or content[:2] in (b"PK", b"\x1f\x8b"):
        raise ModelError(
            f"{file} is a pickle, joblib file or archive, and is not read.",
            hint="register the model from Python with store.models.register, or save it as ONNX or in its library's text format.",
        )
    return content, None


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"the file is a model of {name}, which is not installed.", hint=f"pip install {name}."
        ) from None


def _applied(store: FeatureStore) -> dict[str, str]:
    """Return service to fingerprint, as applied."""
    return {name: service.fingerprint for name, service in store.definitions().services.items()}


def _be_quick() -> None:
    """Let MLflow's client give up soon: a person waits."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
