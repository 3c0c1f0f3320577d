"""Verbs of a project: init, plan, apply, version."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli import templates
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
from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.definitions.registry import Change
    from featurestore.store import FeatureStore

DefinitionsOption = Annotated[
    str | None, typer.Option("--definitions", "-d", help="Module or .py file; the settings' own by default.")
]
_PARTS = ("featurestore", "pyspark", "delta-spark", "deltalake", "kafka-python", "redis", "pyarrow", "onnxruntime")


@app.command(
    epilog=example("featurestore init shop && cd shop && featurestore up --detach && featurestore apply --yes")
)
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the project; made when missing.")] = Path(),
    project: Annotated[str | None, typer.Option(help="Its name; the folder's by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write featurestore.toml and a small features.py that works with `featurestore up`."""
    from featurestore.definitions.entity import check_name

    name = project or templates.project_name(folder.resolve().name)
    files = templates.project_files(check_name(name, "project"))
    present = [file for file in files if (folder / file).exists()]
    if present:
        raise ConfigError(f"{folder / present[0]} exists already.", hint="choose another folder; nothing was written.")
    for file, text in files.items():
        path = folder / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
    written = [str(folder / file) for file in files]
    if as_json:
        print_json({"project": name, "files": written})
    else:
        print_lines(written)
        note("next: featurestore up --detach; featurestore apply --yes; featurestore jobs submit --service shop_v1")


@app.command(
    epilog=example(
        "featurestore plan", "featurestore plan --costs", "featurestore plan --definitions features.py --json"
    )
)
def plan(
    definitions: DefinitionsOption = None,
    costs: Annotated[
        bool, typer.Option("--costs", help="Show the most that every view keeps per key, ladder by ladder, instead.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `apply` would change: + added, ~ changed, - removed. Touches nothing."""
    store = open_store(config, **named(definitions))
    if costs:
        print_costs(store, as_json=as_json)
        return
    changes = store.plan()
    if as_json:
        print_json({"changes": [change.to_dict() for change in changes]})
    else:
        print_lines(changes or ["no changes"])
    warn_of(changes)


def print_costs(store: FeatureStore, *, as_json: bool) -> None:
    """Print what every view of the project's definitions keeps per key at most."""
    from featurestore.definitions.cost import cost_of
    from featurestore.definitions.registry import collect
    from featurestore.modules import load_module
    from featurestore.timeline import format_duration

    found = [cost_of(view.layout) for view in collect(load_module(store.settings)).views.values()]
    if as_json:
        print_json({"costs": [each.to_dict() for each in found]})
        return
    rows = [
        (
            each.view,
            ", ".join(ladder.windows),
            "-" if ladder.hop is None else "every event" if ladder.rows is None else format_duration(ladder.hop),
            "no cap" if ladder.rows is None else f"{ladder.rows:,}",
            f"{ladder.row_bytes:,}{'' if ladder.is_fixed else ' and more'}",
        )
        for each in found
        for ladder in each.ladders
    ]
    print_table(("view", "windows", "hop", "rows at most", "bytes a row"), rows)
    print_lines(f"{each.view}: {each}" for each in found)
    for each in found:
        for warning in each.warnings:
            note(f"warning: {warning}")


def warn_of(changes: Sequence[Change]) -> None:
    """Say what is costly among the changes."""
    for change in changes:
        for warning in () if change.cost is None else change.cost.warnings:
            note(f"warning: {warning}")


@app.command(epilog=example("featurestore apply", "featurestore apply --yes --create-topics"))
def apply(
    definitions: DefinitionsOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    create_topics: Annotated[
        bool, typer.Option("--create-topics", help="Create Kafka topics that are missing.")
    ] = False,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of created topics.")] = 2,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record the definitions and publish them to the online store. Applying the same again changes nothing."""
    store = open_store(config, **named(definitions))
    from featurestore.modules import load_module

    module = load_module(store.settings)
    changes = store.plan(module)
    warn_of(changes)
    if changes and not yes:
        for change in changes:
            note(str(change))
        if not sys.stdin.isatty():
            raise ConfigError("apply has to be confirmed, and nobody is at the terminal.", hint="pass --yes.")
        typer.confirm(f"apply {len(changes)} changes?", abort=True, err=True)
    result = store.apply(module, create_topics=create_topics, partitions=partitions)
    if as_json:
        print_json(result.to_dict())
    else:
        print_lines([result])
        note(f"published: {', '.join(result.published) or 'no service'}")


@app.command(epilog=example("featurestore version --json"))
def version(as_json: JsonOption = False) -> None:
    """Print the versions of this package and of what it runs on."""
    versions = installed_versions()
    if as_json:
        print_json(versions)
    else:
        print_table(("part", "version"), [(name, found or "not installed") for name, found in versions.items()])


def installed_versions() -> dict[str, Any]:
    """Return part -> version, None where it is not installed."""
    import featurestore

    versions: dict[str, Any] = {}
    for part in _PARTS:
        try:
            versions[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            versions[part] = None
    return {**versions, "featurestore": featurestore.__version__, "python": platform.python_version()}


def named(definitions: str | None) -> dict[str, Any]:
    """Return the settings that --definitions stands for."""
    if definitions is None:
        return {}
    is_file = definitions.endswith(".py")
    return {"definitions": str(Path(definitions).expanduser().resolve()) if is_file else definitions}
