"""Arrow bodies of ``POST /score/{model}``: an IPC stream of a table in, another one out.

In: one column for each key and request input, by name; ``explain`` ("true") and ``now`` are metadata of the schema.
Out: ``score`` (float32), ``at``, ``complete_through`` (timestamps), with ``explain`` one column per feature,
``status:FEATURE`` and ``as_of:VIEW``; ``model`` and ``version`` are metadata of the schema.

Rules:
    1. Types are the plain ones: text, numbers, booleans, timestamps. Nested, dictionary, run-end and view types are refused.
    2. Compressed buffers are refused before they are read: a small body must not become a large one.
    3. Offsets, lengths and UTF-8 are checked before a value is touched.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import ModelInputError
from featurestore.scoring.inputs import ScoreRequest
from featurestore.scoring.protocol import check_row_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featurestore.scoring.manifest import ModelManifest
    from featurestore.scoring.scorer import Prediction

_MAX_COLUMNS = 1000
_MAX_BATCHES = 1000
_HINT = "send an uncompressed Arrow IPC stream with one column per key and request input."


@dataclass(frozen=True, slots=True)
class ArrowOptions:
    """What the schema's metadata asks for."""

    explain: bool
    now: str | int | None


def read_rows(body: bytes, manifest: ModelManifest, *, max_rows: int) -> tuple[list[ScoreRequest], ArrowOptions]:
    """Return the rows of a stream; values are typed by column here and by name when rows are checked.

    Raises:
        ModelInputError: It is no such stream, has another column than the model takes, or no or too many rows.
    """
    import pyarrow as pa

    try:
        batches = list(_batches(body, max_rows))
        schema = batches[0].schema if batches else pa.ipc.open_stream(body).schema
        names = list(schema.names)
        columns = [[value for batch in batches for value in _values(batch.column(at))] for at in range(len(names))]
    except ModelInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        raise ModelInputError(f"the body is refused: no Arrow stream ({type(error).__name__}).", hint=_HINT) from None
    for name in names:
        if names.count(name) > 1:
            raise ModelInputError(f"column {name[:80]!r} is there twice.")
        if name not in manifest.keys and name not in manifest.sent:
            raise ModelInputError(
                f"column {name[:80]!r} is unknown to model {manifest.label}.",
                hint=f"it takes {', '.join((*manifest.keys, *manifest.sent))}.",
            )
    check_row_count(sum(len(batch) for batch in batches), max_rows)
    keys = [(name, values) for name, values in zip(names, columns, strict=True) if name in manifest.keys]
    sent = [(name, values) for name, values in zip(names, columns, strict=True) if name not in manifest.keys]
    rows = [
        ScoreRequest({name: values[row] for name, values in keys}, {name: values[row] for name, values in sent})
        for row in range(sum(len(batch) for batch in batches))
    ]
    return rows, _options(schema)


def _batches(body: bytes, max_rows: int) -> Iterator[Any]:
    """Yield the record batches of a stream, each checked whole."""
    import pyarrow as pa

    messages = pa.ipc.MessageReader.open_stream(body)
    schema = None
    rows = 0
    for number, message in enumerate(messages):
        if message.type == "schema" and schema is None:
            schema = pa.ipc.read_schema(message)
            _check_types(schema)
        elif message.type == "record batch" and schema is not None:
            _refuse_compression(message.metadata.to_pybytes())
            batch = pa.ipc.read_record_batch(message, schema)
            rows += batch.num_rows
            if rows > max_rows or number > _MAX_BATCHES:
                check_row_count(max(rows, max_rows + 1), max_rows)
            batch.validate(full=True)
            yield batch
        else:
            raise ValueError(message.type)
    if schema is None:
        raise ValueError("no schema")


def _check_types(schema: Any) -> None:
    import pyarrow as pa

    types = pa.types
    plain = (
        types.is_string,
        types.is_large_string,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_timestamp,
    )
    if len(schema) > _MAX_COLUMNS:
        raise ModelInputError(f"the stream has {len(schema)} columns; {_MAX_COLUMNS} are allowed.")
    for field in schema:
        if not any(is_plain(field.type) for is_plain in plain):
            raise ModelInputError(
                f"column {field.name[:80]!r} is {str(field.type)[:80]}.",
                hint="allowed are string, integers, floats, bool and timestamp; cast dictionaries to string.",
            )
        if types.is_timestamp(field.type) and field.type.tz is None:
            raise ModelInputError(f"column {field.name[:80]!r} is a timestamp without a time zone.", hint="send UTC.")


def _refuse_compression(message: bytes) -> None:
    """Read the flatbuffer of a record batch's message as far as its field ``compression``, which has to be absent."""

    def field(table: int, number: int) -> int:
        """Return where a field of a table lies, 0 if it is absent."""
        vtable = table - struct.unpack_from("<i", message, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", message, vtable)[0]:
            return 0
        offset: int = struct.unpack_from("<H", message, vtable + 4 + 2 * number)[0]
        return table + offset if offset else 0

    root: int = struct.unpack_from("<I", message, 0)[0]
    header = field(root, 2)  # Message: version, header_type, header, bodyLength
    batch = header + struct.unpack_from("<I", message, header)[0]
    if field(batch, 3):  # RecordBatch: length, nodes, buffers, compression
        raise ModelInputError("the body is refused: its buffers are compressed.", hint=_HINT)


def _values(column: Any) -> list[Any]:
    """Return a column as a request has its values: timestamps as microseconds since 1970."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
    values: list[Any] = column.to_pylist()
    return values


def _options(schema: Any) -> ArrowOptions:
    metadata = schema.metadata or {}
    explain = metadata.get(b"explain", b"false")
    if explain not in (b"true", b"false"):
        raise ModelInputError("explain in the schema's metadata is neither true nor false.")
    now: str | int | None = None
    if b"now" in metadata:
        text = metadata[b"now"][:64].decode("latin-1")
        now = int(text) if text.lstrip("-").isascii() and text.lstrip("-").isdecimal() and len(text) < 20 else text
    return ArrowOptions(explain == b"true", now)


def write_predictions(predictions: Sequence[Prediction], manifest: ModelManifest) -> bytes:
    """Return the stream of an answer; the columns of features are there when the predictions have their vectors.

    ``prediction_id`` is there with a prediction log.
    """
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    columns = {
        "score": pa.array([one.score for one in predictions], pa.float32()),
        "at": pa.array([one.at for one in predictions], instant),
        "complete_through": pa.array([one.complete_through for one in predictions], instant),
    }
    if predictions[0].prediction_id is not None:
        columns["prediction_id"] = pa.array([one.prediction_id for one in predictions], pa.string())
    vectors = [one.vector for one in predictions if one.vector is not None]
    if len(vectors) == len(predictions):
        for name in manifest.feature_inputs:
            columns[name] = pa.array([vector[name] for vector in vectors])
        for name in manifest.feature_inputs:
            columns[f"status:{name}"] = pa.array([one.statuses[name] for one in predictions], pa.string())
        for view in predictions[0].as_of:
            columns[f"as_of:{view}"] = pa.array([one.as_of[view] for one in predictions], instant)
    table = pa.table(columns).replace_schema_metadata({"model": manifest.name, "version": str(manifest.version)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
