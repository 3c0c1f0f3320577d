"""Erasing an entity from what scoring keeps: the Delta tables ``predictions`` and ``score_quarantine``.

    predictions        rows whose entity key has the given columns with the given values, and perhaps others
    score_quarantine   rows whose event has them, in a CloudEvent's Base64 too; one that cannot be read goes if its bytes hold the
                       values as words

Rules:
    1. An entity may be named by some of its columns: a card's predictions go, whichever shop the key names besides.
    2. In doubt a refused event goes: it never was a prediction, and nothing is made of it.
    3. Each table is one commit, which is made again where another writer was in its way. Streams go on; what they copied is noted
       in the table and not copied again. What is scored after the start stays.
    4. The files of before hold the rows until they are vacuumed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from featurestore.datatypes import DataType
from featurestore.errors import OfflineStoreUnavailableError
from featurestore.jobs.score_log import PREDICTIONS, QUARANTINE
from featurestore.jobs.worker import decoder_of
from featurestore.offline.compact import retried
from featurestore.scoring.prediction_log import value_text
from featurestore.timeline import SystemClock, format_instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from featurestore.definitions.source import EventSource
    from featurestore.events.decode import Decoder

_READ = ("source", "_topic", "_partition", "_offset", "_arrival", "raw")
_AT_ONCE = 5_000
_BASE64 = re.compile(rb'"data_base64"\s*:\s*"((?:[^"\\]|\\.)*)')
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass
class Erased:
    """What was erased.

    Attributes:
        rows: Table to the rows that went; only of tables that are there.
        files_deleted: Table to the files that vacuum deleted.
    """

    rows: dict[str, int] = field(default_factory=dict)
    files_deleted: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as data."""
        return {"rows": self.rows, "files_deleted": self.files_deleted}


def erase_scored(
    offline: str, keys: Mapping[str, Any], sources: Mapping[str, EventSource], *, retention_hours: int | None = None
) -> Erased:
    """Delete the records of an entity from the prediction log and from what could not be scored.

    Args:
        offline: Root of the Delta tables.
        keys: Key columns to their values, in the columns' types; instants are microseconds.
        sources: The applied sources, which say how refused events are read.
        retention_hours: Delete files that no version has named for so long; None keeps all files.

    Raises:
        OfflineError: Other writers were in the way too often.
        OfflineStoreUnavailableError: A table cannot be read or written.
    """
    result = Erased()
    for name in (PREDICTIONS, QUARANTINE):
        path = f"{offline.rstrip('/')}/{name}"
        try:
            if not DeltaTable.is_deltatable(path):
                continue
            if name == PREDICTIONS:
                # Bounded in time, so that what is appended meanwhile is seen to be none of it, by its files' statistics.
                until = format_instant(SystemClock().now())
                result.rows[name] = _delete(name, path, f"{_of_key(keys)} AND scored_at <= {_sql(until)}")
            else:
                places = _refused(path, keys, sources)
                result.rows[name] = sum(_delete(name, path, each) for each in places)
            if retention_hours is not None:
                result.files_deleted[name] = len(DeltaTable(path).vacuum(retention_hours, dry_run=False))
        except (DeltaError, OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:300]
            raise OfflineStoreUnavailableError(f"{path} cannot be erased from: {reason}.") from error
    return result


def _delete(name: str, path: str, predicate: str) -> int:
    return retried(name, lambda: int(DeltaTable(path).delete(predicate)["num_deleted_rows"]))


def _of_key(keys: Mapping[str, Any]) -> str:
    """Return the SQL that is true of predictions for a key."""
    return " AND ".join(
        f"map_extract(keys, {_sql(name)})[1] = {_sql(value_text(value))}" for name, value in keys.items()
    )


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _refused(path: str, keys: Mapping[str, Any], sources: Mapping[str, EventSource]) -> list[str]:
    """Return the SQL that is true of refused events that have a key, a statement for some thousands of them."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for batch in DeltaTable(path).to_pyarrow_dataset().to_batches(columns=list(_READ)):
        for topic, partition, offset in _places(batch, keys, sources):
            found[topic, partition].append(offset)
    return [
        f"_topic = {_sql(topic)} AND _partition = {partition} AND _offset IN ({', '.join(map(str, offsets[at : at + _AT_ONCE]))})"
        for (topic, partition), offsets in found.items()
        for at in range(0, len(offsets), _AT_ONCE)
    ]


def _places(
    batch: pa.RecordBatch, keys: Mapping[str, Any], sources: Mapping[str, EventSource]
) -> Iterator[tuple[str, int, int]]:
    words = [re.compile(rb"(?<![\w.-])" + re.escape(_word(value)) + rb"(?![\w.-])") for value in keys.values()]
    decoders = {
        name: decoder_of(source)
        for name, source in sources.items()
        if all(column in source.contract.columns for column in keys)
    }
    for row in batch.to_pylist():
        raw, decoder = row["raw"] or b"", decoders.get(row["source"])
        if any(_has(content, row["_arrival"], keys, words, decoder) for content in (raw, *_unwrapped(raw))):
            yield row["_topic"], row["_partition"], row["_offset"]


def _unwrapped(raw: bytes) -> Iterator[bytes]:
    """Yield what a CloudEvent carries as Base64, of a broken one too: in doubt it is read, whatever its padding or alphabet."""
    for written in _BASE64.findall(raw):
        text = written
        with contextlib.suppress(ValueError):  # JSON may write any letter as an escape
            text = json.loads(b'"' + written + b'"').encode()
        letters = _NO_BASE64.sub(b"", text.translate(_URL_SAFE))
        whole = letters[: len(letters) - (len(letters) % 4 == 1)]
        yield base64.b64decode(whole + b"=" * (-len(whole) % 4))


def _has(
    raw: bytes, arrival: int, keys: Mapping[str, Any], words: list[re.Pattern[bytes]], decoder: Decoder | None
) -> bool:
    """Return whether an event has a key, as far as it can be read."""
    has = None if decoder is None else _decoded_has(raw, arrival, keys, decoder)
    if has is None:
        has = _json_has(raw, keys)
    return all(word.search(raw) for word in words) if has is None else has


def _word(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else value_text(value).encode()


def _decoded_has(raw: bytes, arrival: int, keys: Mapping[str, Any], decoder: Decoder) -> bool | None:
    """Return whether an event has a key; None where its contract refuses it."""
    batch = decoder.decode([raw], np.array([arrival], np.int64)).batch
    if not batch.num_rows:
        return None
    return all(_plain(batch.column(name), decoder.contract.columns[name]) == value for name, value in keys.items())


def _json_has(raw: bytes, keys: Mapping[str, Any]) -> bool | None:
    """Return whether an object in a JSON document has a key; None where it is no JSON, or none has any of the columns."""
    try:
        objects = list(_objects(json.loads(raw)))
    except ValueError:
        return None
    if any(all(one.get(name) == value for name, value in keys.items()) for one in objects):
        return True
    return False if any(keys.keys() & one.keys() for one in objects) else None


def _plain(column: pa.Array, kind: DataType) -> Any:
    return (column.cast(pa.int64()) if kind is DataType.TIMESTAMP else column)[0].as_py()


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in a document."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
