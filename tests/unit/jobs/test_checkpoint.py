"""What a query may go on from: a checkpoint against its tables, its project and its topics."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from deltalake import CommitProperties, Transaction, write_deltalake

from featurestore.errors import CheckpointMismatchError, ConfigError, OffsetsGoneError
from featurestore.jobs.checkpoint import (
    ASYNCHRONOUS,
    SYNCHRONOUS,
    Checkpoint,
    Loss,
    losses,
    refuse_foreign,
    refuse_losses,
    remember,
)
from featurestore.jobs.resume import Resume
from featurestore.offline.losses import Losses
from featurestore.online.memory import MemoryOnlineStore


def checkpoint(path, *, planned=3, committed=2, query="q1"):
    """Write what Spark does for batches up to ``planned``, each of ten records."""
    for name in ("offsets", "commits"):
        (path / name).mkdir(parents=True)
    (path / "metadata").write_text(json.dumps({"id": query}))
    for batch in range(planned + 1):
        (path / "offsets" / str(batch)).write_text(
            f'v1\n{{"batchWatermarkMs":0}}\n{{"pay":{{"0":{10 * (batch + 1)}}}}}'
        )
    for batch in range(committed + 1):
        (path / "commits" / str(batch)).write_text('v1\n{"nextBatchWatermarkMs":0}')
    return path


def tables(root, *, query="q1", batch=3):
    """Write an event, and tiles that have taken a batch."""
    write_deltalake(f"{root}/events/payments", pa.table({"n": [1]}))
    properties = CommitProperties(app_transactions=[Transaction(query, batch)])
    write_deltalake(f"{root}/tiles", pa.table({"n": [1]}), commit_properties=properties)


def archive(tmp_path):
    resume = Resume("shop", str(tmp_path / "lake"), {"bootstrap.servers": "127.0.0.1:1"}, {"pay": "payments"})
    return resume.archive(tmp_path / "archive")


def test_a_checkpoint_says_what_comes_next(tmp_path):
    found = Checkpoint.read(checkpoint(tmp_path / "archive"))
    assert (found.query_id, found.planned, found.committed, found.ends) == ("q1", 3, 2, {"pay": {0: 30}})
    assert Checkpoint.read(tmp_path / "none") is None
    only_planned = Checkpoint.read(checkpoint(tmp_path / "hot", planned=0, committed=-1))
    assert (only_planned.committed, only_planned.ends) == (None, {})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "offsets" / "3").write_text(""), "it is damaged"),
        (lambda path: (path / "offsets" / "2").write_text("v1\n{}\n{"), "it is damaged"),
        (lambda path: (path / "metadata").unlink(), "it is damaged: .*No such file"),
        (lambda path: (path / "metadata").write_text("{}"), "it is damaged: 'id'"),
        (
            lambda path: [(path / "offsets" / each).unlink() for each in "23"],
            "commits/2 has no offsets/2, it lost files",
        ),
        (lambda path: [each.unlink() for each in (path / "offsets").iterdir()], "it lost files"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_choices(tmp_path, damage, said):
    for name, choices in (
        ("archive", "Hint: restore it .* or move the offline tables"),
        ("hot", "or delete it: the fences"),
    ):
        path = checkpoint(tmp_path / name)
        damage(path)
        with pytest.raises(CheckpointMismatchError, match=f"(?s){said}.*{choices}"):
            Checkpoint.read(path)


def test_an_archive_goes_on_only_with_the_tables_of_its_checkpoint(tmp_path):
    assert archive(tmp_path) is False  # nothing yet, on both sides
    tables(tmp_path / "lake")
    with pytest.raises(
        CheckpointMismatchError, match=r"archive is gone, but .*events/payments holds events it has written"
    ):
        archive(tmp_path)


@pytest.mark.parametrize(
    ("of_tables", "said"),
    [
        ({"query": "other"}, "it is not the one that wrote .*events/payments: no batch of query q1 is there"),
        ({"batch": 4}, "it is older than the tables: they have batch 4 of its query, its newest is 3"),
        ({"batch": 1}, "the tables are older than it: they have batch 1, it has finished 2"),
        (None, "it has finished batch 2, but the offline tables hold no event"),
    ],
)
def test_a_checkpoint_of_another_moment_or_log_is_refused(tmp_path, of_tables, said):
    checkpoint(tmp_path / "archive")
    if of_tables is not None:
        tables(tmp_path / "lake", **of_tables)
    with pytest.raises(CheckpointMismatchError, match=said):
        archive(tmp_path)


@pytest.mark.parametrize("batch", [2, 3])
def test_one_of_the_same_moment_is_not(tmp_path, batch):
    checkpoint(tmp_path / "archive")
    tables(tmp_path / "lake", batch=batch)
    resume = Resume("shop", str(tmp_path / "lake"), {}, {"pay": "payments"})
    with pytest.raises(ConfigError, match=r"bootstrap\.servers"):  # the topics are asked next
        resume.archive(tmp_path / "archive")


def test_offsets_of_a_topic_that_was_made_anew_are_refused(tmp_path):
    path = checkpoint(tmp_path / "archive")
    tables(tmp_path / "lake")

    def resume(**ids):
        return Resume("shop", str(tmp_path / "lake"), {}, {"pay": "payments"}, ids=ids).archive(path)

    remember(path, "q1", "shop", SYNCHRONOUS)
    with pytest.raises(ConfigError):  # no id was noted: the topics' offsets are asked next
        resume(pay="b")
    remember(path, "q1", "shop", SYNCHRONOUS, {"pay": "a"})
    for known in ({"pay": "a"}, {}, {"other": "c"}):
        with pytest.raises(ConfigError):
            resume(**known)
    with pytest.raises(
        OffsetsGoneError, match=r"topic pay was made anew: its id is b, and checkpoint .* of a.*move the"
    ):
        resume(pay="b")
    store = MemoryOnlineStore("shop")
    online = Resume("shop", "", {}, {"pay": "payments"}, ids={"pay": "a"})
    online.online(store)
    online.online(store)
    with pytest.raises(
        OffsetsGoneError, match="pay was made anew: its id is b, and the online store knows offsets of a"
    ):
        replace(online, ids={"pay": "b"}).online(store)
    replace(online, ids={"more": "c"}).online(store)  # another source; of the first nothing was said


def test_one_that_was_stopped_in_its_first_batch_goes_on(tmp_path):
    """The event log has the batch, the tiles and the checkpoint have not."""
    checkpoint(tmp_path / "archive", planned=0, committed=-1)
    mine = CommitProperties(app_transactions=[Transaction("q1", 0)])
    write_deltalake(f"{tmp_path}/lake/events/payments", pa.table({"n": [1]}), commit_properties=mine)
    assert archive(tmp_path) is False
    (tmp_path / "archive" / "metadata").write_text(json.dumps({"id": "q2"}))
    with pytest.raises(CheckpointMismatchError, match="it is not the one that wrote"):
        archive(tmp_path)


def test_what_a_note_says_about_a_checkpoint_counts(tmp_path):
    path = checkpoint(tmp_path / "hot")
    found = Checkpoint.read(path)
    refuse_foreign(path, found, "shop", ASYNCHRONOUS)  # of an older version, which wrote no note
    remember(path, "q1", "shop", ASYNCHRONOUS)
    refuse_foreign(path, found, "shop", ASYNCHRONOUS)
    refuse_foreign(path, None, "other", ASYNCHRONOUS)  # it was deleted: another begins
    with pytest.raises(CheckpointMismatchError, match="it is one of project shop, this is project other"):
        refuse_foreign(path, found, "other", ASYNCHRONOUS)
    with pytest.raises(
        CheckpointMismatchError, match=r"its progress is asynchronous, this query's is synchronous; the two do not"
    ):
        refuse_foreign(path, found, "shop", SYNCHRONOUS)
    with pytest.raises(CheckpointMismatchError, match="it is one of query q2, the one that was here is q1"):
        refuse_foreign(path, Checkpoint.read(checkpoint(tmp_path / "copy" / "hot", query="q2")), "shop", ASYNCHRONOUS)


def test_what_is_gone_is_told_with_range_and_count_and_can_be_written_down(tmp_path):
    needed, ends = {"pay": {0: 30, 1: 5}}, {"pay": {0: 90, 1: 5}}
    assert losses(needed, {"pay": {0: 30, 1: 0}}, ends) == []
    found = losses(needed, {"pay": {0: 70, 1: 5}}, ends)
    assert found == [Loss("pay", 0, 30, 70)]
    refuse_losses("archive", [], ends)
    with pytest.raises(
        OffsetsGoneError, match=r"pay-0: offset 30 was next, Kafka has 70 to 90 \(40 records lost\).*--accept-loss"
    ):
        refuse_losses("archive", found, ends)
    with pytest.raises(
        OffsetsGoneError, match=r"another one than before: pay-0: .*Kafka has 0 to 12 \(the topic was made anew"
    ):
        losses(needed, {"pay": {0: 0, 1: 0}}, {"pay": {0: 12, 1: 5}})
    Losses(str(tmp_path)).record("archive", [("pay", 0, 30, 70)])
    (row,) = Losses(str(tmp_path)).rows()
    assert {name: row[name] for name in ("query", "topic", "partition", "begin", "end")} == {
        "query": "archive", "topic": "pay", "partition": 0, "begin": 30, "end": 70,
    }  # fmt: skip
