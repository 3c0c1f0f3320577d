"""Request values of a lookup: what only the caller knows, checked by name and type before anything is read. Pure.

Every request value of the service has to be there: leaving one out is an error, None is null. What the service does not take
is ignored, so that a caller may pass the whole request. A whole number is taken for a float64; nothing else is converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError, UnknownNameError, did_you_mean
from featurestore.timeline import to_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.online.plan import LookupPlan

    RequestRows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

_INT64 = range(-(2**63), 2**63)


def read_time_inputs(
    plan: LookupPlan, entities: Sequence[Mapping[str, Any]], request: RequestRows, *, single: bool
) -> list[dict[str, Any]]:
    """Return what the request features of a plan take of every entity besides features; as of ``ServiceLookup.inputs``."""
    rows = request_rows(plan.service, plan.request_values, request, len(entities), single=single)
    keys = {name: kind for name, kind in plan.keys.items() if any(name in each.reads for each in plan.request)}
    where = f"service {plan.service}: key"
    return [
        {**row, **{name: typed_value(entity[name], kind, where=f"{where} {name!r}") for name, kind in keys.items()}}
        for entity, row in zip(entities, rows, strict=True)
    ]


def request_rows(
    service: str, types: Mapping[str, DataType], request: RequestRows, count: int, *, single: bool
) -> list[dict[str, Any]]:
    """Return the request values of every entity, typed: floats are float, instants microseconds.

    Args:
        service: The service, for messages.
        types: The request values it takes.
        request: One mapping of values when ``single``; else one per entity, or a mapping of columns with a value per entity.
        count: How many entities.
        single: Whether ``request`` is of one entity.

    Raises:
        UnknownNameError: A value is missing.
        DefinitionError: A value has another type, or there are not as many as entities.
    """
    if not types:
        return [{}] * count
    if single:
        rows: Sequence[Any] = [request or {}]
    elif isinstance(request, Mapping):
        rows = _of_columns(service, types, request)
    else:
        rows = request or []
    if len(rows) != count:
        if not rows:
            rows = [{}]  # says which value is missing
        else:
            raise DefinitionError(f"service {service}: {len(rows):,} requests for {count:,} entities.")
    found = []
    for number, row in enumerate(rows):
        where = f"service {service}" if single else f"service {service}, entity {number}"
        if not isinstance(row, Mapping):
            raise DefinitionError(
                f"{where}: request is {type(row).__name__}.", hint="pass a mapping of names to values."
            )
        typed = {}
        for name, kind in types.items():
            if name not in row:
                raise UnknownNameError(
                    f"{where}: request value {name!r} is missing.",
                    hint=did_you_mean(name, row, what="values")
                    if row
                    else f"pass request={{{name!r}: ...}} of type {kind}; None is a value.",
                )
            typed[name] = typed_value(row[name], kind, where=f"{where}: request value {name!r}")
        found.append(typed)
    return found


def _of_columns(service: str, types: Mapping[str, DataType], request: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = {}
    for name in types:
        if name in request:
            column = request[name]
            columns[name] = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise DefinitionError(f"service {service}: columns of request values differ in length: {sizes}.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def typed_value(value: Any, kind: DataType, *, where: str) -> Any:
    """Return a value as its type has it; None is null.

    Raises:
        DefinitionError: It is of another type.
    """
    plain = value.item() if hasattr(value, "item") and not isinstance(value, datetime) else value
    if plain is None or (kind == DataType.STRING and isinstance(plain, str)):
        return plain
    if kind == DataType.BOOL and isinstance(plain, bool):
        return plain
    if kind == DataType.TIMESTAMP and isinstance(plain, int | str | datetime) and not isinstance(plain, bool):
        return to_instant(plain, name=where)
    is_whole = isinstance(plain, int) and not isinstance(plain, bool) and plain in _INT64
    if kind == DataType.INT64 and is_whole:
        return plain
    if kind == DataType.FLOAT64 and (is_whole or isinstance(plain, float)):
        return float(plain)
    shown = repr(value)
    raise DefinitionError(
        f"{where} is {shown if len(shown) <= 80 else shown[:77] + '...'}, not of type {kind}.",
        hint="pass an aware datetime, ISO 8601 with an offset, or microseconds."
        if kind == DataType.TIMESTAMP
        else None,
    )
