"""Verbs that read features: lookup, training-set, serve."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.app import app
from featurestore.cli.output import (
    ConfigOption,
    JsonOption,
    example,
    note,
    open_store,
    print_json,
    print_lines,
    print_table,
)
from featurestore.datatypes import DataType
from featurestore.errors import ConfigError, DefinitionError, SpineError, UnknownNameError, did_you_mean
from featurestore.timeline import MILLISECOND, SECOND, parse_duration, to_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.config import ServeSettings
    from featurestore.online.vector import FeatureVector
    from featurestore.scoring.listener import TlsFiles
    from featurestore.scoring.tokens import TokenSettings

_LEAST_TIMEOUT = "2s"
"""A command connects anew each time, which a request path does not: the store gets at least this long."""


@app.command(
    epilog=example(
        "featurestore lookup fraud_v1 card_id=c1",
        "featurestore lookup fraud_v1 card_id=c1 --now 2026-01-01T00:00:00Z",
        "featurestore lookup fraud_v1 card_id=c1 --watch",
    )
)
def lookup(
    service: Annotated[str, typer.Argument(help="Name of the feature service.")],
    keys: Annotated[list[str] | None, typer.Argument(help="Key columns and request values, name=value each.")] = None,
    now: Annotated[str | None, typer.Option(help="Time of the lookup, ISO 8601; the present by default.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Features to return, separated by commas; all by default.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Read again and again, until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option(help="With --watch: time between two reads.")] = "1s",
    refreshes: Annotated[int | None, typer.Option(min=1, help="With --watch: end after so many reads.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the features of one entity from the online store."""
    at = None if now is None else to_instant(now, name="--now")
    store = open_store(config)
    timeout = max(store.settings.online.timeout, _LEAST_TIMEOUT, key=parse_duration)
    with store.client(timeout=timeout) as client:
        chosen = None if features is None else [name.strip() for name in features.split(",")]
        plan = client.service(service).chosen(chosen).plan
        given = parse_keys(f"service {service}", keys or [], {**plan.keys, **plan.request_values})
        keys_of = {name: given[name] for name in plan.keys}

        def read() -> FeatureVector:
            return client.get(service, keys_of, now=at, request=given, features=chosen)

        if watch:
            from featurestore.cli.watch import vector_table
            from featurestore.cli.watch import watch as show

            seconds = parse_duration(every) / SECOND
            show(read, vector_table, lambda: time.sleep(seconds), as_json=as_json, refreshes=refreshes)
            return
        vector = read()
    if as_json:
        print_json(vector.to_dict())
        return
    shown = vector.to_dict()
    rows = [
        (name, "null" if value is None else value, shown["status"][name]) for name, value in shown["values"].items()
    ]
    print_table(("feature", "value", "status"), rows)
    for view, instant in shown["as_of"].items():
        note(f"{view}: newest event {instant or 'none'}")
    note(f"complete through {shown['complete_through'] or 'unknown'}")


def parse_keys(
    where: str, given: Sequence[str], columns: Mapping[str, DataType], *, option: str = ""
) -> dict[str, Any]:
    """Return typed key values out of ``name=value`` texts; ``where`` says what has these keys, ``option`` how they are given.

    Raises:
        UnknownNameError: A key is missing, or one is none of the service's.
        DefinitionError: A value is not of its column's type, or a text is not ``name=value``.
    """
    keys: dict[str, Any] = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator:
            raise DefinitionError(f"{each!r} is not name=value.", hint=f"write {option}{next(iter(columns))}=....")
        if name not in columns:
            raise UnknownNameError(f"{where} has no key {name!r}.", hint=did_you_mean(name, columns, what="keys"))
        keys[name] = _typed(name, value, columns[name])
    missing = [name for name in columns if name not in keys]
    if missing:
        raise UnknownNameError(
            f"{where} needs key {missing[0]!r}.", hint=f"add {' '.join(f'{option}{name}=...' for name in missing)}."
        )
    return keys


def _typed(name: str, value: str, kind: DataType) -> Any:
    if kind == DataType.STRING:
        return value
    if kind == DataType.BOOL and value in ("true", "false"):
        return value == "true"
    if kind == DataType.TIMESTAMP:
        return to_instant(value, name=f"key {name}")
    try:
        if kind == DataType.INT64:
            return int(value)
        if kind == DataType.FLOAT64:
            return float(value)
    except ValueError:
        pass
    raise DefinitionError(f"key {name}: {value!r} is not {kind}.")


@app.command(
    "training-set",
    epilog=example("featurestore training-set fraud_v1 spine.parquet --event-time ts --out training/"),
)
def training_set(
    service: Annotated[str, typer.Argument(help="Name of the feature service.")],
    spine: Annotated[Path, typer.Argument(help="Parquet, Delta or .csv: key columns, a time, and anything else.")],
    event_time: Annotated[str, typer.Option(help="The spine's time column; events at or after it do not count.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    as_served: Annotated[bool, typer.Option("--as-served", help="Hide what had not arrived by then.")] = False,
    visible_at: Annotated[str | None, typer.Option(help="Column of times: hide what had not arrived by that.")] = None,
    leak_report: Annotated[
        bool, typer.Option("--leak-report", help="Also tell where values by event time differ from those served.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a point-in-time training set: Parquet files, and _manifest.json, which Parquet readers skip."""
    if not spine.exists():
        raise SpineError(f"spine {spine} does not exist.", hint="pass Parquet files, a Delta table or a .csv.")
    if out.exists():
        raise ConfigError(f"--out {out} exists already.", hint="choose another folder, or delete it.")
    store = open_store(config)
    with _working(f"computing {service}"):
        made = store.training_set(
            service,
            spine.resolve(),
            event_time=event_time,
            as_served=visible_at if visible_at is not None else as_served,
            leak_report=leak_report,
        )
        target = str(out.resolve())
        manifest = {**made.write(target), "out": target}
        found = made.leaks if leak_report else ()
    if as_json:
        print_json({**manifest, **({"leaks": [asdict(each) for each in found]} if leak_report else {})})
    else:
        print_lines([target, *found])


@app.command(
    epilog=example(
        "featurestore snapshot card_spend --at 2026-01-01T00:00:00Z",
        "featurestore snapshot card_spend --start 2026-01-01T00:00:00Z --end 2026-01-02T00:00:00Z --every 1h",
    ),
)
def snapshot(
    name: Annotated[str, typer.Argument(help="A view, or a service whose views share their key columns.")],
    at: Annotated[str | None, typer.Option(help="The instant, ISO 8601 with an offset.")] = None,
    start: Annotated[str | None, typer.Option(help="First instant of a range.")] = None,
    end: Annotated[str | None, typer.Option(help="Last possible instant of a range.")] = None,
    every: Annotated[str | None, typer.Option(help="Step of a range, for example 1h.")] = None,
    path: Annotated[
        str | None, typer.Option(help="Delta table; snapshots/NAME of the offline store by default.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the features of all keys at an instant, or at every step of a range, to a Delta table to query with SQL."""
    store = open_store(config)
    with _working(f"computing {name}"):
        written = store.snapshot(name, at=at, start=start, end=end, every=every, path=path)
    if as_json:
        print_json({"path": written})
    else:
        print_lines([written])


def _working(text: str) -> Any:
    """Return a context that shows a spinner on a terminal, and nothing in a pipe."""
    from contextlib import nullcontext

    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


@app.command(
    epilog=example(
        "featurestore serve --port 8080",
        "featurestore serve --model flight_late:3 --port 0",
        "featurestore serve --host 0.0.0.0 --workers 4 --api-key-file keys --tls-certificate chain.pem --tls-key key.pem",
    )
)
def serve(
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder of the models; the settings' by default.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VERSION; may be repeated; all by default.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind; other than loopback it needs keys or tokens.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.")] = None,
    admin_host: Annotated[str | None, typer.Option(help="Address of the metrics; likewise.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of the metrics; a free one by default where --port is 0.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that serve.")] = None,
    allow_now: Annotated[bool, typer.Option("--allow-now", help="Let requests set the time of the lookup.")] = False,
    api_key_file: Annotated[Path | None, typer.Option(help="Lines of id:sha256 [scope ...].")] = None,
    token_key_file: Annotated[
        Path | None, typer.Option(help="JWKS or PEM with the public keys of who signs tokens.")
    ] = None,
    token_algorithm: Annotated[str | None, typer.Option(help="The one algorithm that is taken.")] = None,
    token_audience: Annotated[str | None, typer.Option(help="What a token's aud has to name.")] = None,
    token_issuer: Annotated[str | None, typer.Option(help="What a token's iss has to be.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM chain; with it the listeners speak TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM of the authorities whose certificates callers have to show.")
    ] = None,
    challenger: Annotated[
        str | None, typer.Option(help='What the challenger does: "off", "shadow", or a share of the keys like "5%".')
    ] = None,
    follow: Annotated[str | None, typer.Option(help="How often to look whether another version is champion.")] = None,
    prediction_log: Annotated[
        str | None, typer.Option(help='Where predictions are logged: "delta" or "kafka:TOPIC"; nowhere by default.')
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Serve the champions of all models over HTTP until Ctrl-C or SIGTERM."""
    given = {name: value for name, value in locals().items() if name in _OF_SERVE and value is not None}
    store = open_store(config)
    from featurestore.cli.models import in_step, sink_factory
    from featurestore.scoring.limits import ScorerLimits
    from featurestore.scoring.service import serve as run

    timeout_us = parse_duration(store.settings.online.timeout)
    if timeout_us < MILLISECOND:
        raise ConfigError(f"online.timeout {store.settings.online.timeout!r} is under a millisecond.")
    settings = store.settings.serve.model_copy(update=given)
    free_port = settings.port == 0 and admin_port is None and "admin_port" not in settings.model_fields_set
    folder = models or store.settings.models
    with in_step(store, folder, every=settings.follow, config=config):
        run(
            folder,
            store.client,
            host=settings.host,
            port=settings.port,
            admin_host=settings.admin_host,
            admin_port=0 if free_port else settings.admin_port,
            workers=settings.workers,
            allow_now=allow_now,
            models=model,
            api_key_file=settings.api_key_file,
            tokens=_tokens(settings),
            tls=_tls(settings),
            limits=ScorerLimits.of(settings.limits),
            follow_s=parse_duration(settings.follow) / SECOND,
            challenger=settings.challenger,
            sink_factory=sink_factory(store.settings, settings.prediction_log),
        )


_OF_SERVE = {"host", "port", "admin_host", "admin_port", "workers", "api_key_file"}
_OF_SERVE |= {"token_key_file", "token_algorithm", "token_audience", "token_issuer"}
_OF_SERVE |= {"tls_certificate", "tls_key", "tls_client_ca", "challenger", "follow", "prediction_log"}
"""Options of ``serve`` that are settings too."""


def _tokens(settings: ServeSettings) -> TokenSettings | None:
    if settings.token_key_file is None:
        return None
    from featurestore.scoring.tokens import TokenSettings

    return TokenSettings(
        key_file=settings.token_key_file,
        algorithm=settings.token_algorithm,
        audience=settings.token_audience,
        issuer=settings.token_issuer,
    )


def _tls(settings: ServeSettings) -> TlsFiles | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        if settings.tls_certificate != settings.tls_key or settings.tls_client_ca is not None:
            raise ConfigError("TLS needs a certificate and its key.", hint="give --tls-certificate and --tls-key.")
        return None
    from featurestore.scoring.listener import TlsFiles

    return TlsFiles(certificate=settings.tls_certificate, key=settings.tls_key, client_ca=settings.tls_client_ca)
