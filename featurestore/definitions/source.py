"""EventSource: a Kafka topic and the contract its events keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract
from featurestore.definitions.entity import check_name
from featurestore.errors import DefinitionError, UnknownNameError, did_you_mean
from featurestore.timeline import Duration, format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

WIRES = ("plain", "confluent")
_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("max_bytes", 1, 1 << 30),
    ("quarantine_limit", 0, 1),
    ("quarantine_after", 1, 10**9),
)
_TOPIC_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True)
class EventSource:
    """Events of one kind, read from one topic.

    Args:
        name: Its name; the event log is named after it.
        topic: The Kafka topic.
        schema: Path of a JSON Schema or Avro (.avsc) file, which brings the versions before it in its folder along; or a loaded
            contract.
        event_time: The field that says when the event happened; a date-time, or an integer of microseconds UTC.
        event_id: The field that tells events apart, when there is one, a text or an integer: an event that its producer sends
            twice counts once. Null tells nothing apart. Copies are recognised within one partition.
        id_horizon: How long after its last copy an event is still recognised, in arrival times. Every id within it costs the
            online store about 100 bytes per view, and the driver as much.
        allowed_skew: How far event time may be ahead of arrival; an event from further in the future is quarantined.
        late_after: An event that arrives later than this after it happened is counted as late. It is merged all the same.
        wire: "plain": records are JSON documents, or Avro data of this version; "confluent": each stands behind the byte 0 and
            a schema id of 4 bytes. By default "plain" for JSON, "confluent" for Avro.
        max_bytes: The longest record; a longer one is quarantined unread.
        quarantine_limit: The share of records in quarantine above which a job stops instead of going on; 1.0 never stops it.
        quarantine_after: How many records that share is taken of, at least.
        description: For people.

    Raises:
        DefinitionError: A name, duration, limit or wire format is not usable.
        ContractError: The schema cannot be read or uses something unsupported.
        UnknownNameError: ``event_time`` or ``event_id`` is no field of the schema.
    """

    name: str
    topic: str
    schema: str | Path | Contract
    event_time: str
    event_id: str | None = None
    id_horizon: str = "10m"
    allowed_skew: str = "5m"
    late_after: str = "1m"
    wire: str | None = None
    max_bytes: int = 1 << 20
    quarantine_limit: float = 0.5
    quarantine_after: int = 1_000
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "source")
        if not self.topic or len(self.topic) > 249 or set(self.topic) - _TOPIC_CHARACTERS:
            raise DefinitionError(f"source {self.name}: {self.topic!r} is no Kafka topic name.")
        if not isinstance(self.schema, Contract):
            object.__setattr__(self, "schema", Contract.load(Path(self.schema)))
        for what in ("event_time", "event_id"):
            column = getattr(self, what)
            if column is not None and column not in self.contract.columns:
                raise UnknownNameError(
                    f"source {self.name}: {what} {column!r} is no field of contract {self.contract.name}.",
                    hint=did_you_mean(column, self.contract.columns, what="fields"),
                )
        if self.contract.columns[self.event_time] not in (DataType.TIMESTAMP, DataType.INT64):
            raise DefinitionError(
                f"source {self.name}: event_time {self.event_time!r} is {self.contract.columns[self.event_time]}; "
                'it must be a string with "format": "date-time", or an integer of microseconds UTC.'
            )
        if self.event_id is not None and self.contract.columns[self.event_id] not in (DataType.STRING, DataType.INT64):
            raise DefinitionError(
                f"source {self.name}: event_id {self.event_id!r} is {self.contract.columns[self.event_id]}; "
                "it must be a string or an integer."
            )
        parse_duration(self.id_horizon)
        parse_duration(self.allowed_skew)
        parse_duration(self.late_after)
        if self.wire is None:
            object.__setattr__(self, "wire", "plain" if self.contract.avro is None else "confluent")
        self._check_limits()

    def _check_limits(self) -> None:
        if self.wire not in WIRES:
            raise DefinitionError(
                f"source {self.name}: wire {self.wire!r} is not known.", hint=did_you_mean(str(self.wire), WIRES)
            )
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise DefinitionError(f"source {self.name}: {name} is {value!r}, allowed are {low:,} to {high:,}.")
            if name != "quarantine_limit" and not isinstance(value, int):
                raise DefinitionError(f"source {self.name}: {name} is {value!r}; it must be a whole number.")

    @property
    def contract(self) -> Contract:
        """The loaded schema."""
        assert isinstance(self.schema, Contract)  # noqa: S101 - loaded in __post_init__
        return self.schema

    @property
    def allowed_skew_us(self) -> Duration:
        """The allowed skew in microseconds."""
        return parse_duration(self.allowed_skew)

    @property
    def late_after_us(self) -> Duration:
        """The delay in microseconds from which an event counts as late."""
        return parse_duration(self.late_after)

    @property
    def id_horizon_us(self) -> Duration:
        """How long an id is remembered, in microseconds."""
        return parse_duration(self.id_horizon)

    @property
    def id_meaning(self) -> dict[str, Any]:
        """What decides which events are repetitions; nothing where events have no ids."""
        return {} if self.event_id is None else {"event_id": self.event_id, "id_horizon": self.id_horizon_us}

    def to_dict(self) -> dict[str, Any]:
        """Return the source as data, contract included."""
        return {
            "name": self.name,
            "topic": self.topic,
            "contract": self.contract.to_dict(),
            "event_time": self.event_time,
            "event_id": self.event_id,
            "allowed_skew": format_duration(self.allowed_skew_us),
            "late_after": format_duration(parse_duration(self.late_after)),
            **{name: getattr(self, name) for name, default in self._usual().items() if getattr(self, name) != default},
            "description": self.description,
        }

    def _usual(self) -> dict[str, Any]:
        """Return the settings that data leaves out where they are as usual."""
        wire = "plain" if self.contract.avro is None else "confluent"
        return {
            "id_horizon": "10m",
            "wire": wire,
            "max_bytes": 1 << 20,
            "quarantine_limit": 0.5,
            "quarantine_after": 1_000,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> EventSource:
        """Return the source that ``to_dict`` wrote."""
        rest = {name: value for name, value in data.items() if name != "contract"}
        return EventSource(schema=Contract.from_dict(data["contract"]), **rest)
