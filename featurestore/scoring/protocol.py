"""The Open Inference Protocol, version 2: tensors to rows, predictions to tensors, metadata. Pure: no HTTP.

Each entity key and each request input is one input tensor of shape [rows] or [rows, 1]; ``score`` is the one output,
FP32 [rows]. ``parameters`` hold scalars only, as the protocol says, so nested names are joined: ``as_of.card_spend``.
Beyond the protocol, null is allowed in ``data``: it is how JSON says NaN, and a null key is a key.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.errors import ModelInputError, did_you_mean
from featurestore.online.vector import DEGRADED, STALE
from featurestore.scoring.inputs import ScoreRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.scorer import Prediction
    from featurestore.scoring.wire import InferBody, InputTensor

OUTPUT = "score"

_WHOLE = {
    **{f"INT{bits}": range(-(1 << bits - 1), 1 << bits - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": range(1 << bits) for bits in (8, 16, 32, 64)},
}
_KEY_DATATYPE = {
    DataType.STRING: "BYTES",
    DataType.INT64: "INT64",
    DataType.FLOAT64: "FP64",
    DataType.BOOL: "BOOL",
    DataType.TIMESTAMP: "INT64",
}


def _fits(datatype: str, value: Any) -> bool:
    """Return whether a JSON value is an element of a tensor of this datatype."""
    if value is None:
        return True
    if datatype == "BYTES":
        return isinstance(value, str)
    if datatype == "BOOL":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if datatype in _WHOLE:
        return isinstance(value, int) and value in _WHOLE[datatype]
    return isinstance(value, (int, float))


DATATYPES = ("BYTES", "BOOL", "FP16", "FP32", "FP64", *_WHOLE)


def read_rows(body: InferBody, manifest: ModelManifest, *, max_rows: int) -> list[ScoreRequest]:
    """Return the rows in the input tensors; values are typed by tensor here and by name when rows are checked.

    Raises:
        ModelInputError: A tensor is unknown, twice there, of another shape than its data, or of a datatype that is not
            taken; or there are no rows, or more than ``max_rows``.
    """
    columns: dict[str, list[Any]] = {}
    rows = None
    for tensor in body.inputs:
        name = tensor.name[:80]
        if tensor.name in columns:
            raise ModelInputError(f"input tensor {name!r} is there twice.")
        if tensor.name not in manifest.keys and tensor.name not in manifest.sent:
            known = (*manifest.keys, *manifest.sent)
            raise ModelInputError(
                f"input tensor {name!r} is unknown to model {manifest.label}.",
                hint=did_you_mean(name, known, what="input tensors"),
            )
        column = _column(tensor)
        if rows is not None and len(column) != rows:
            raise ModelInputError(f"input tensor {name!r} has {len(column)} rows, the one before it {rows}.")
        rows = len(column)
        columns[tensor.name] = column
    check_row_count(rows or 0, max_rows)
    for requested in body.outputs or ():
        if requested.name != OUTPUT:
            raise ModelInputError(f"output {requested.name[:80]!r} is unknown.", hint=f"the only output is {OUTPUT!r}.")
    keys = [name for name in manifest.keys if name in columns]
    sent = [name for name in manifest.sent if name in columns]
    return [
        ScoreRequest({name: columns[name][row] for name in keys}, {name: columns[name][row] for name in sent})
        for row in range(rows or 0)
    ]


def check_row_count(rows: int, max_rows: int) -> None:
    """Return when a request may have so many rows.

    Raises:
        ModelInputError: None, or more than ``max_rows``.
    """
    if not 1 <= rows <= max_rows:
        raise ModelInputError(
            f"the request has {rows} rows; 1 to {max_rows} are allowed.", hint="send several requests."
        )


def _column(tensor: InputTensor) -> list[Any]:
    """Return a tensor's values by row, checked against its shape and datatype."""
    name = tensor.name[:80]
    if tensor.datatype not in DATATYPES:
        raise ModelInputError(
            f"input tensor {name!r} has datatype {tensor.datatype[:20]!r}.", hint=f"allowed: {', '.join(DATATYPES)}."
        )
    shape = tensor.shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1) or shape[0] < 0:
        raise ModelInputError(f"input tensor {name!r} has shape {str(shape)[:40]}; [rows] or [rows, 1] is allowed.")
    values = tensor.data
    if len(shape) == 2 and values and isinstance(values[0], list):
        if not all(isinstance(one, list) and len(one) == 1 for one in values):
            raise ModelInputError(f"input tensor {name!r}: its data is not nested as shape {shape} says.")
        values = [one[0] for one in values]  # type: ignore[index]
    if len(values) != shape[0]:
        raise ModelInputError(f"input tensor {name!r} has {len(values)} values, shape {shape} says {shape[0]}.")
    for row, value in enumerate(values):
        if not _fits(tensor.datatype, value):
            raise ModelInputError(f"input tensor {name!r}, row {row}: {str(value)[:40]!r} is not {tensor.datatype}.")
    return values


def write_response(predictions: Sequence[Prediction], manifest: ModelManifest, request_id: str) -> dict[str, Any]:
    """Return the answer; freshness covers all rows, so the oldest of each is given.

    Where a canary scored all rows, the version is its own; where it scored some, the champion's. With a prediction log,
    the parameter ``prediction_id`` has the rows' ids in order, separated by commas.
    """
    versions = {one.version for one in predictions}
    version = str(versions.pop() if len(versions) == 1 else manifest.version)
    answer: dict[str, Any] = {"model_name": manifest.name, "model_version": version, "id": request_id}
    parameters = {"model_version": version, **freshness(predictions)}
    ids = [one.prediction_id for one in predictions if one.prediction_id is not None]
    if ids:
        parameters["prediction_id"] = ",".join(ids)
    answer["parameters"] = parameters
    answer["outputs"] = [
        {
            "name": OUTPUT,
            "shape": [len(predictions)],
            "datatype": "FP32",
            "data": [one.score for one in predictions],
        }
    ]
    return answer


def freshness(predictions: Sequence[Prediction]) -> dict[str, int | str]:
    """Return the oldest freshness of some rows, how many feature values have each status, and which a policy answered for.

    ``complete_through`` is left out where a row doesn't know it, ``as_of.<view>`` where no row has an event. ``stale`` and
    ``degraded`` name features, separated by commas.
    """
    found: dict[str, int | str] = {}
    complete = [one.complete_through for one in predictions]
    known = [one for one in complete if one is not None]
    if known and len(known) == len(complete):
        found["complete_through"] = min(known)
    oldest: dict[str, int] = {}
    for one in predictions:
        for view, instant in one.as_of.items():
            if instant is not None and instant < oldest.get(view, instant + 1):
                oldest[view] = instant
    found |= {f"as_of.{view}": instant for view, instant in oldest.items()}
    counts: Counter[str] = Counter()
    for one in predictions:
        counts.update(one.tally)
    found.update({f"statuses.{status}": count for status, count in sorted(counts.items())})
    for status in (STALE, DEGRADED):
        if status in counts:
            names = {name: None for one in predictions for name, its in one.statuses.items() if its == status}
            found[status] = ",".join(names)
    return found


def model_metadata(manifest: ModelManifest, versions: Sequence[int]) -> dict[str, Any]:
    """Return what a caller must send and gets back."""
    inputs = [_tensor(name, _KEY_DATATYPE[kind]) for name, kind in manifest.keys.items()]
    inputs += [
        _tensor(name, _KEY_DATATYPE[manifest.request_values.get(name, DataType.FLOAT64)]) for name in manifest.sent
    ]
    properties: Mapping[str, str] = {
        "service": manifest.service,
        "service_fingerprint": manifest.service_fingerprint,
        "sha256": manifest.sha256,
        "created_at": manifest.created_at,
    }
    return {
        "name": manifest.name,
        "versions": [str(one) for one in versions],
        "platform": "onnx_onnxruntime",
        "inputs": inputs,
        "outputs": [_tensor(OUTPUT, "FP32")],
        "properties": properties,
    }


def _tensor(name: str, datatype: str) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1]}
