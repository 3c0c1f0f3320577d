"""Verbs that check: verify, explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli import exits
from featurestore.cli.app import app
from featurestore.cli.output import (
    ConfigOption,
    JsonOption,
    example,
    note,
    open_store,
    print_json,
    print_lines,
    progress_bar,
)
from featurestore.cli.project import DefinitionsOption
from featurestore.cli.project import named as overriding
from featurestore.timeline import to_instant

if TYPE_CHECKING:
    from featurestore.checks.verify import VerifyResult


@app.command(
    epilog=example(
        "featurestore verify",
        "featurestore verify --service fraud_v1 --seconds 60",
        "featurestore verify --engines spark",
        "featurestore verify --seed 7 --json",
    )
)
def verify(
    service: Annotated[str | None, typer.Option(help="Only the views of this service.")] = None,
    view: Annotated[str | None, typer.Option(help="Only this view.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to look; every view gets a case.")] = 20.0,
    seed: Annotated[int | None, typer.Option(help="Chooses the cases; random by default, and printed.")] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            help="memory, redis, spark, or several with commas; memory and redis by default, where a server can be started."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the failing case here, as a pytest.")] = None,
    definitions: DefinitionsOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check that every path computes the same on your definitions. Ends with 0 when all are equal, with 1 when not."""
    store = open_store(config, **overriding(definitions))
    chosen = None if engines is None else [each.strip() for each in engines.split(",")]
    with progress_bar("verify", total=seconds) as move:

        def moved(result: VerifyResult) -> None:
            if move is not None:
                move(completed=min(result.seconds, seconds), description=f"{sum(result.cases.values())} cases")

        result = store.verify(service=service, view=view, seconds=seconds, seed=seed, engines=chosen, progress=moved)
    if as_json:
        print_json(result.to_dict())
    else:
        print_lines([result])
    if out is not None and result.failure is not None:
        out.write_text(result.failure.test, encoding="utf-8")
        note(f"written: {out}")
    return exits.OK if result.equal else exits.FAILED


@app.command(
    epilog=example(
        "featurestore explain card_spend.spend_1h --key card_id=c1",
        "featurestore explain fraud_v1.card_spend.spend_1h --key card_id=c1 --at 2026-01-01T00:00:00Z --json",
        "featurestore explain fraud_v1.amount_ratio --key card_id=c1 --request amount=12",
    )
)
def explain(
    feature: Annotated[str, typer.Argument(help="VIEW.FEATURE, SERVICE.VIEW.FEATURE, or SERVICE.REQUEST_FEATURE.")],
    key: Annotated[list[str] | None, typer.Option(help="A key column, name=value; once per column.")] = None,
    request: Annotated[list[str] | None, typer.Option(help="A request value, name=value; once per value.")] = None,
    at: Annotated[str | None, typer.Option(help="The time, ISO 8601 with an offset; now by default.")] = None,
    as_served: Annotated[
        bool, typer.Option("--as-served", help="Leave out of the offline side what arrived after --at.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="Events and tiles to show, the newest.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show where one value comes from: window, events, tiles and stored record, online and offline side by side.

    Ends with 0 when both sides agree, with 1 when they differ, and says why; with 3 when a store cannot be reached.
    """
    from featurestore.checks.explain_derived import DerivedExplanation, NamedDerived, find
    from featurestore.cli.serving import parse_keys

    store = open_store(config)
    instant = None if at is None else to_instant(at, name="--at")
    named = find(store.definitions(), feature)
    columns = named.keys if isinstance(named, NamedDerived) else dict(named.view.layout.keys)
    keys = parse_keys(f"feature {named.id}", key or [], columns, option="--key ")
    takes = named.request if isinstance(named, NamedDerived) else {}
    values = parse_keys(f"feature {named.id}", request or [], takes, option="--request ")
    found = store.explain(feature, keys, at=instant, request=values, as_served=as_served, shown=limit)
    if as_json:
        print_json(found.to_dict())
    else:
        from featurestore.cli.explain_text import print_derived, print_explanation

        if isinstance(found, DerivedExplanation):
            print_derived(found)
        else:
            print_explanation(found)
    if not found.is_reachable:
        return exits.UNREACHABLE
    return exits.OK if found.is_equal else exits.FAILED
