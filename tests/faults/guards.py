"""What the archive must hold after a fault, and taking away the guards that see to it: the negative controls."""

from __future__ import annotations

import shutil
import uuid

import redis

from featurestore.jobs.archive import ArchiveBatch
from featurestore.online.epoch import EPOCH
from tests.streaming.support import (
    InProcess,
    ends_of,
    entering,
    online_differences,
    places_of,
    table,
    wait_applied,
    wait_archived,
    wait_for,
)


def once(events):
    """Return the places of events, each there one time."""
    return {(event.partition, event.offset): 1 for event in events}


def tile_count(offline):
    """Return how many events the tiles of the first view hold: the first slot of its first measure counts them."""
    tiles = table(offline, "tiles")
    rows = [] if tiles is None else tiles.to_pylist()
    return sum(int.from_bytes(row["row"][:8], "little") for row in rows if row["view"] == "visit")


def assert_archived(offline, events, job=None):
    """Fail unless event log and tiles have every event once; the tiles of a batch may come after its events."""
    assert places_of(offline, "events/payments") == once(events)
    wait_for("the tiles", lambda: tile_count(offline) >= len(events), 60.0, job)
    assert tile_count(offline) == len(events)


def assert_whole(job, store, shop, events, junk=(), *, began=None, archived=True):
    """Wait for a job to have everything; fail unless what is online, in Delta and in quarantine, and its counts, are the oracle's.

    ``began`` says where the run's hot query went on (``InProcess.began``), the first records where it is None.
    """
    url, offline = store.settings.online.url, store.settings.offline
    wait_applied(url, shop.name, ends_of(events, junk), job)
    assert online_differences(store, shop, events) == []
    if archived:
        wait_archived(offline, len(events) + len(junk), job)
        assert_archived(offline, events, job)
        assert places_of(offline, "quarantine") == dict.fromkeys(junk, 1)
    assert_counted(job, shop, events, junk, began or {})


def assert_counted(job, shop, events, junk, began):
    """Fail unless a run has counted every record from where it began, each with its fate."""
    mine = [event for event in events if event.offset >= began.get(event.partition, 0)]
    bad = [offset for partition, offset in junk if offset >= began.get(partition, 0)]
    read = len(mine) + len(bad)
    totals = wait_for("the counts", lambda: (t := job.status().totals).get("consumed", 0) >= read and t, job=job)
    found = totals["consumed"], totals["quarantined"], totals["applied"] + totals["fenced"], totals["duplicate"]
    assert found == (read, len(bad), sum(entering(view, mine) for view in shop.views), 0)


def forget_last_commit(checkpoints):
    """Leave the archive's checkpoint as a crash between its writes and its commit does; return the commit to come again."""
    commits = checkpoints / "archive" / "commits"
    last = max(int(each.name) for each in commits.glob("[0-9]*"))
    for name in (f"{last}", f".{last}.crc"):
        (commits / name).unlink()
    return commits / f"{last}"


def forget_fences(url, project, checkpoints):
    """Let the online store forget what it has applied, not that it is the same store; and the job, which would refuse it then."""
    with redis.Redis.from_url(url) as raw:
        fences = list(raw.scan_iter(f"fs:{{{project}.*}}:fence"))
        assert fences
        for name in fences:
            raw.hdel(name, *(set(raw.hkeys(name)) - {EPOCH}))
        raw.delete(f"fs:{{{project}}}:progress:payments")
    begun = list(checkpoints.glob("hot*"))  # one of each epoch
    assert begun
    for each in begun:
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    (checkpoints / "online.json").unlink()


def doubled_without_guard(spark, store, shop, folder, events, monkeypatch):
    """Return which records are there twice once Delta is not told which batch is written: the negative control."""
    append = ArchiveBatch._append

    def anonymous(self, frame, table, query_id, batch_id, **options):
        return append(self, frame, table, uuid.uuid4(), batch_id, **options)

    again = forget_last_commit(folder / "checkpoints")
    with monkeypatch.context() as patched:
        patched.setattr(ArchiveBatch, "_append", anonymous)
        job = InProcess(spark, store, shop, folder, queries=("archive",))
        wait_for("the batch that is run again", again.exists, job=job)
        job.stop()
    places = places_of(store.settings.offline, "events/payments")
    assert places.keys() == once(events).keys()
    places += places_of(store.settings.offline, "quarantine")  # the newest batch may be of none but those
    return [place for place, count in places.items() if count > 1]
