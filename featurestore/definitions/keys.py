"""Entity keys as bytes: injective, typed, the same wherever a key is hashed, stored, shuffled or compared. Pure."""

from __future__ import annotations

import struct
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.errors import DefinitionError, UnknownNameError, did_you_mean
from featurestore.timeline import to_instant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PLAIN = frozenset({str, int, bool, type(None)})
_INT = struct.Struct("<cq")
_LENGTH = struct.Struct("<cI")


def encode_key(values: Sequence[Any], types: Sequence[DataType]) -> bytes:
    """Return the bytes of a key tuple; different tuples never give the same bytes.

    Every part is a type tag and its value: text is length-prefixed UTF-8, integers and instants are 8 bytes, null is a tag
    of its own. So ('1', '23') is not ('12', '3'), integer 1 is not text "1", and null is not "".

    numpy's scalars count as Python's; a timestamp may be an aware datetime.

    Raises:
        DefinitionError: A value is not of its column's type.
    """
    parts = []
    for given, kind in zip(values, types, strict=True):
        value = given if type(given) in _PLAIN else _plain(given, kind)
        if value is None:
            parts.append(b"n")
        elif kind == DataType.STRING and isinstance(value, str):
            try:
                text = value.encode()
            except UnicodeEncodeError:
                raise DefinitionError(f"key {value!r} is not valid Unicode text.") from None
            parts.append(_LENGTH.pack(b"s", len(text)) + text)
        elif kind == DataType.BOOL and isinstance(value, bool):
            parts.append(b"T" if value else b"F")
        elif (
            kind in (DataType.INT64, DataType.TIMESTAMP)
            and isinstance(value, int)
            and not isinstance(value, bool)
            and -(2**63) <= value < 2**63
        ):
            parts.append(_INT.pack(b"i" if kind == DataType.INT64 else b"t", value))
        else:
            raise DefinitionError(f"key value {value!r} is {type(value).__name__}, expected {kind}.")
    return b"".join(parts)


def encode_parts(values: Sequence[Any], kind: DataType) -> list[bytes]:
    """Return what ``encode_key`` makes of each value of one key column; a key of several columns is its parts joined.

    Args:
        values: Values of that type, or None; text as its UTF-8 bytes, an instant as its microseconds.
        kind: Type of the column.
    """
    if kind == DataType.STRING:
        pack = _LENGTH.pack
        return [b"n" if value is None else pack(b"s", len(value)) + value for value in values]
    if kind == DataType.BOOL:
        return [b"n" if value is None else b"T" if value else b"F" for value in values]
    tag, pack = b"i" if kind == DataType.INT64 else b"t", _INT.pack
    return [b"n" if value is None else pack(tag, value) for value in values]


def _plain(value: Any, kind: DataType) -> Any:
    """Return a numpy scalar as Python's, and an aware datetime of a timestamp key as its microseconds."""
    if kind == DataType.TIMESTAMP and isinstance(value, datetime):
        return to_instant(value, name="key value")
    return value.item() if hasattr(value, "item") else value


def key_values(keys: Mapping[str, Any], columns: Sequence[tuple[str, DataType]], *, where: str) -> list[Any]:
    """Return the values of a view's key columns out of what the caller passed.

    Raises:
        UnknownNameError: A key column is not among them.
    """
    try:
        return [keys[name] for name, _ in columns]
    except KeyError as error:
        missing = error.args[0]
        given = ", ".join(map(repr, keys)) or "none"
        raise UnknownNameError(
            f"{where} needs key {missing!r}; given: {given}.",
            hint=did_you_mean(missing, keys, what="keys") if keys else f"pass {{{missing!r}: ...}}.",
        ) from None
