"""What ``explain`` found out about one value, as data."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.timeline import format_instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.engines.fates import Judged
    from featurestore.online.inspect import Blob
    from featurestore.timeline import Instant

EQUAL, DIFFERENT, NOT_COMPARED = "equal", "different", "not compared"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why two sides differ, or why they were not compared.

    Attributes:
        kind: One word, stable: "unreachable", "unreadable", "definition", "empty", "behind", "log_behind", "lost",
            "repeated", "arrival", "past", "tiles", "kernel" or "disagreement".
        text: In words, with numbers.
        hint: What to do; "" when there is nothing.
    """

    kind: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return self.text if not self.hint else f"{self.text} Hint: {self.hint}"


@dataclass(frozen=True, slots=True)
class Tile:
    """The events of one grid step: merged from the event log, and as the tiles table has it.

    Attributes:
        start: Where the tile begins.
        is_whole: Whether all of it lies in the window; what is stored then has to be the same.
        events: Merged events.
        value: What they alone would answer.
        stored: What the stored tile alone would answer; None where there is none, too.
        is_stored: Whether there is one.
    """

    start: Instant
    is_whole: bool
    events: int
    value: Any
    stored: Any
    is_stored: bool


@dataclass(frozen=True)
class OfflineSide:
    """What the event log says.

    Attributes:
        version: Delta version of the log.
        events: Events of the key in the window and a little around it.
        fates: How many met which fate; None when there were too many to look at one by one.
        specification: The value, by the specification, event by event; None when it was not asked.
        is_specified: Whether it was: there were few enough events.
        training_set: The value, by the kernel of training sets.
    """

    version: int
    events: int
    fates: Mapping[str, int] | None
    specification: Any
    is_specified: bool
    training_set: Any


@dataclass(frozen=True)
class OnlineSide:
    """What the online store says.

    Attributes:
        status: "read"; "missing": no record of the key; "unreadable": bytes that are no record; "unreachable".
        at: The time it answers for: later than the one asked about where merged events have passed that.
        value: Its value; None is null.
        as_of: Newest event time inside it.
        complete_through: Arrival up to which the whole source is applied.
        fences: Per source partition, the next offset to apply to this key's bucket; None where nothing has been.
        blob: What it holds; None without one.
        detail: The error, where there was one.
    """

    status: str
    at: Instant
    value: Any = None
    as_of: Instant | None = None
    complete_through: Instant | None = None
    fences: Mapping[int, int | None] = field(default_factory=dict)
    blob: Blob | None = None
    detail: str = ""


@dataclass(frozen=True)
class Explanation:
    """One value, where it comes from, and whether both sides agree on it.

    Attributes:
        feature: Its full name.
        service: The service whose published plan was looked at; None where no service has the view.
        source: Name of the source.
        topic: Its topic.
        fingerprint: Of the definition that was explained.
        aggregate: The aggregate, as it is written.
        where: The view's condition; None without one.
        keys: The entity's key values.
        at: The time asked about.
        as_served: Whether what had not arrived by then was left out of the offline side.
        start: The first instant of the window; None reaches back without end.
        end: The first instant after it.
        rule: How both follow from ``at``.
        offline: The event log's side.
        online: The online store's side.
        events: The newest events, with their fates, oldest first.
        left_out: Events that are not shown.
        tiles: The newest tiles, oldest first.
        tiles_left_out: Tiles that are not shown.
        tile: Length of a tile in microseconds; None where the window is kept event by event.
        verdict: "equal", "different" or "not compared".
        compared_at: The time for which both sides were compared.
        expected: The offline value at that time.
        causes: Why they differ, the decisive one first; and what else is worth knowing.
    """

    feature: str
    service: str | None
    source: str
    topic: str
    fingerprint: str
    aggregate: str
    where: str | None
    keys: Mapping[str, Any]
    at: Instant
    as_served: bool
    start: Instant | None
    end: Instant
    rule: str
    offline: OfflineSide
    online: OnlineSide
    events: tuple[Judged, ...]
    left_out: int
    tiles: tuple[Tile, ...]
    tiles_left_out: int
    tile: int | None
    verdict: str
    compared_at: Instant
    expected: Any
    causes: tuple[Cause, ...]

    @property
    def value(self) -> Any:
        """The value, as a training set has it."""
        return self.offline.training_set

    @property
    def is_equal(self) -> bool:
        """Whether both sides were compared and agree."""
        return self.verdict == EQUAL

    @property
    def is_reachable(self) -> bool:
        """Whether the online store answered."""
        return self.online.status != "unreachable"

    @property
    def cause(self) -> str | None:
        """The kind of the decisive cause; None where there is none."""
        return self.causes[0].kind if self.causes else None

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as data for JSON: times as ISO 8601, doubles that JSON cannot write as texts."""
        online, offline, blob = self.online, self.offline, self.online.blob
        found = {
            "feature": self.feature,
            "service": self.service,
            "definition": {
                "fingerprint": self.fingerprint,
                "source": self.source,
                "topic": self.topic,
                "aggregate": self.aggregate,
                "where": self.where,
            },
            "keys": dict(self.keys),
            "at": _time(self.at),
            "as_served": self.as_served,
            "window": {"start": _time(self.start), "end": _time(self.end), "rule": self.rule},
            "verdict": self.verdict,
            "compared_at": _time(self.compared_at),
            "expected": self.expected,
            "causes": [asdict(cause) for cause in self.causes],
            "offline": {
                "version": offline.version,
                "events": offline.events,
                "fates": offline.fates,
                "specification": offline.specification,
                "is_specified": offline.is_specified,
                "training_set": offline.training_set,
            },
            "online": {
                "status": online.status,
                "at": _time(online.at),
                "value": online.value,
                "as_of": _time(online.as_of),
                "complete_through": _time(online.complete_through),
                "fences": {str(partition): offset for partition, offset in online.fences.items()},
                "detail": online.detail,
                "blob": None if blob is None else _timed(asdict(blob)),
            },
            "events": [
                {
                    "topic": self.topic,
                    "partition": one.event.partition,
                    "offset": one.event.offset,
                    **({} if one.event.position is None else {"position": one.event.position}),
                    "event_time": _time(one.event.event_time),
                    "arrival": _time(one.event.arrival),
                    "inputs": inputs_of(one),
                    "value": one.value,
                    "fate": str(one.fate),
                }
                for one in self.events
            ],
            "events_left_out": self.left_out,
            "tile_us": self.tile,
            "tiles": [_timed(asdict(tile)) for tile in self.tiles],
            "tiles_left_out": self.tiles_left_out,
        }
        made: dict[str, Any] = plain(found)
        return made


def inputs_of(judged: Judged) -> dict[str, Any]:
    """Return the columns of an event that its view uses, without its place."""
    return {name: value for name, value in judged.event.row.items() if not name.startswith("_")}


def counted(events: list[Judged]) -> dict[str, int]:
    """Return how many events met which fate."""
    return dict(Counter(str(one.fate) for one in events))


_TIMES = frozenset({"start", "newest", "oldest"})


def _time(instant: Instant | None) -> str | None:
    return None if instant is None else format_instant(instant)


def _timed(data: Any) -> Any:
    """Return nested data with its instants as texts."""
    if isinstance(data, dict):
        return {
            name: _time(value)
            if name in _TIMES or (name in ("hop", "tile") and "value" in data)  # of a row or record, not of a ladder
            else _timed(value)
            for name, value in data.items()
        }
    return [_timed(each) for each in data] if isinstance(data, (list, tuple)) else data


def plain(data: Any) -> Any:
    """Return nested data as JSON can hold it: doubles that it cannot write as texts."""
    if isinstance(data, dict):
        return {name: plain(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(each) for each in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
