"""What a query may go on from: its checkpoint is held against its tables and its topics before Spark sees it.

    lost       tables hold events, but there is no checkpoint
    damaged    files are missing in the middle, or cannot be read
    truncated  the tables hold batches that the checkpoint has yet to plan: Delta would take the next ones for repetitions of
               those, and leave their events out
    foreign    it belongs to another project or another log, or keeps its progress in the other way
    gone       Kafka no longer has the records that come next

Each is refused with the choices that are left. Only the last can be accepted, as a loss that is written down.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.errors import CheckpointMismatchError, OffsetsGoneError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Offsets = dict[str, dict[int, int]]
"""Topic to partition to offset."""
ASYNCHRONOUS, SYNCHRONOUS = "asynchronous", "synchronous"
_CHOICES = {
    "hot": "restore it from a copy, or delete it: the fences drop what is applied, so nothing counts twice.",
    "archive": "restore it from a copy that is as new as the tables; or move the offline tables and the checkpoint away, and "
    "the topics are read again from their first records.",
}
_ANEW = (
    "offsets begin again there, and fences and event log know the old ones. Restore the topic; or give the new one, and its "
    "source, another name; or begin anew: empty the online store, and move the offline tables and the checkpoints away."
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of Spark's, as far as it says where a query goes on.

    Attributes:
        path: Its directory.
        query_id: The id of the query it belongs to.
        planned: The newest batch that was begun.
        committed: The newest batch that was finished; None when none was.
        ends: Where that batch ended, which is what comes next; nothing when none was finished.
    """

    path: Path
    query_id: str
    planned: int
    committed: int | None
    ends: Offsets

    @staticmethod
    def read(path: Path) -> Checkpoint | None:
        """Return the checkpoint in a directory; None where no batch was ever begun.

        Raises:
            CheckpointMismatchError: It is damaged.
        """
        planned, committed = _batches(path / "offsets"), _batches(path / "commits")
        if not planned and not committed:
            return None
        both = sorted(planned & committed)
        if not planned or max(committed, default=-1) > max(planned):
            raise _mismatch(path, f"commits/{max(committed)} has no offsets/{max(committed)}, it lost files")
        last = both[-1] if both else None
        try:
            query_id = str(json.loads((path / "metadata").read_text(encoding="utf-8"))["id"])
            ends = {} if last is None else _ends(path / "offsets" / str(last))
            _ends(path / "offsets" / str(max(planned)))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise _mismatch(path, f"it is damaged: {' '.join(str(error).split())[:200]}") from error
        return Checkpoint(path, query_id, max(planned), last, ends)


def _batches(folder: Path) -> set[int]:
    return {int(file.name) for file in folder.glob("[0-9]*") if file.name.isdecimal()} if folder.is_dir() else set()


def _ends(file: Path) -> Offsets:
    """Return the offsets in a file of Spark's offset log: a version, settings, and one line per source."""
    lines = file.read_text(encoding="utf-8").splitlines()
    if lines[0] != "v1":
        if lines[0][:1] == "v" and lines[0][1:].isdecimal():
            return {}  # of a Spark to come: its place is Spark's to tell
        raise ValueError(f"{file.name} begins with {lines[0][:20]!r}")
    topics = json.loads(lines[2])
    return {topic: {int(number): int(offset) for number, offset in each.items()} for topic, each in topics.items()}


def _mismatch(path: Path, what: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(f"checkpoint {path}: {what}.", hint=_CHOICES[_kind(path)])


def _kind(path: Path) -> str:
    return "archive" if path.name == "archive" else "hot"


def refuse_foreign(path: Path, found: Checkpoint | None, project: str, progress: str) -> None:
    """Raise when a note beside a checkpoint says that it is another's, or kept in another way.

    Args:
        path: The checkpoint.
        found: What it says; None where there is none.
        project: The project of the job.
        progress: ``ASYNCHRONOUS`` or ``SYNCHRONOUS``: how the query writes its progress. Spark takes a checkpoint of one for a
            damaged one of the other.

    Raises:
        CheckpointMismatchError: It does.
    """
    try:
        note = json.loads(_note(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if found is None:
        return
    if note["project"] != project:
        raise _mismatch(path, f"it is one of project {note['project']}, this is project {project}")
    if note["query"] != found.query_id:
        raise _mismatch(path, f"it is one of query {found.query_id}, the one that was here is {note['query']}")
    if note["progress"] != progress:
        raise _mismatch(path, f"its progress is {note['progress']}, this query's is {progress}; the two do not mix")


def remember(path: Path, query_id: str, project: str, progress: str, topics: Mapping[str, str] | None = None) -> None:
    """Note beside a checkpoint whose it is, for ``refuse_foreign``, and the ids of the topics that its offsets are of."""
    note = _note(path)
    partial = note.with_suffix(".partial")
    told = {
        "query": query_id,
        "project": project,
        "progress": progress,
        "topics": {**noted_topics(path), **(topics or {})},
    }
    partial.write_text(json.dumps(told), encoding="utf-8")
    partial.replace(note)


def noted_topics(path: Path) -> dict[str, str]:
    """Return the ids of the topics that a checkpoint's offsets are of, as far as they were noted."""
    try:
        return dict(json.loads(_note(path).read_text(encoding="utf-8"))["topics"])
    except (OSError, ValueError, KeyError):
        return {}


def refuse_other_topics(where: str, known: Mapping[str, str], ids: Mapping[str, str]) -> None:
    """Raise when a topic is not the one that offsets are of: its name came back, and its offsets began again.

    Args:
        where: What knows the old offsets.
        known: Topic to the id it had.
        ids: Topic to the id it has; one that is not there, or has none, is not judged.

    Raises:
        OffsetsGoneError: It is not.
    """
    for topic, before in sorted(known.items()):
        now = ids.get(topic, before)
        if now != before:
            raise OffsetsGoneError(
                f"topic {topic} was made anew: its id is {now}, and {where} knows offsets of {before}.", hint=_ANEW
            )


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.query.json")


def refuse_other_tables(path: Path, found: Checkpoint | None, written: int | None, table: str | None) -> None:
    """Raise when the archive's checkpoint and its tables are not of one moment.

    Args:
        path: The checkpoint.
        found: What it says; None where there is none.
        written: The newest batch of the checkpoint's query in the tables; None when they have none of it.
        table: A table that holds events; None when all are empty.

    Raises:
        CheckpointMismatchError: They are not.
    """
    if found is None:
        if table is not None:
            raise CheckpointMismatchError(
                f"checkpoint {path} is gone, but {table} holds events it has written.",
                hint="restore the checkpoint, or move the offline tables away to read the topics again from the start.",
            )
        return
    if written is None:
        if found.committed is not None and table is None:
            raise _mismatch(path, f"it has finished batch {found.committed:,}, but the offline tables hold no event")
        if table is not None:
            raise _mismatch(path, f"it is not the one that wrote {table}: no batch of query {found.query_id} is there")
        return
    if written > found.planned:
        raise _mismatch(
            path,
            f"it is older than the tables: they have batch {written:,} of its query, its newest is {found.planned:,}, and "
            "batches of the numbers between would be left out",
        )
    if found.committed is not None and written < found.committed:
        raise _mismatch(
            path, f"the tables are older than it: they have batch {written:,}, it has finished {found.committed:,}"
        )


@dataclass(frozen=True)
class Loss:
    """Records that a query will never read: offsets [begin, end) of a partition."""

    topic: str
    partition: int
    begin: int
    end: int


def losses(needed: Mapping[str, Mapping[int, int]], firsts: Offsets, ends: Offsets) -> list[Loss]:
    """Return what Kafka no longer has of the records that come next.

    Args:
        needed: The offsets that come next.
        firsts: The oldest offsets that Kafka has.
        ends: The offsets after its newest.

    Raises:
        OffsetsGoneError: A topic ends before what comes next: it was made anew, and its offsets begin again.
    """
    found, anew = [], []
    for topic, offsets in needed.items():
        for partition, offset in sorted(offsets.items()):
            first, end = firsts.get(topic, {}).get(partition), ends.get(topic, {}).get(partition)
            if first is None or end is None or offset > end:
                anew.append(gone_in_words(topic, partition, offset, first or 0, end or 0))
            elif offset < first:
                found.append(Loss(topic, partition, offset, first))
    if anew:
        raise OffsetsGoneError(
            f"the topic is another one than before: {'; '.join(anew)}.",
            hint=_ANEW,
        )
    return found


def refuse_losses(query: str, found: list[Loss], ends: Offsets) -> None:
    """Raise when there are losses, with ranges and counts.

    Raises:
        OffsetsGoneError: There are.
    """
    if found:
        words = [
            gone_in_words(one.topic, one.partition, one.begin, one.end, ends[one.topic][one.partition]) for one in found
        ]
        raise OffsetsGoneError(
            f"query {query}: records that were to come next are gone from Kafka: {'; '.join(words)}.",
            hint="rebuild from a copy of the topic; or go on without them by --accept-loss, which writes the loss down.",
        )


def gone_in_words(topic: str, partition: int, offset: int, first: int, end: int) -> str:
    """Return what has become of the offset that was to come next in a partition, of which Kafka has [first, end)."""
    found = f"{topic}-{partition}: offset {offset:,} was next, Kafka has {first:,} to {end:,}"
    if offset > end:
        return f"{found} (the topic was made anew, or lost its end)"
    return f"{found} ({first - offset:,} records lost)"
