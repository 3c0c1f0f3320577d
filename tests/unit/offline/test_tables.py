"""How tables come to be: however many begin at once, a table is created once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from featurestore.offline.epochs import OnlineEpochs
from featurestore.offline.losses import Losses
from featurestore.offline.tables import ensure_table

SCHEMA = pa.schema([("number", pa.int64())])
WRITERS = 4


def _ensure(path):
    ensure_table(str(path), SCHEMA)


def _create(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    DeltaTable.create(str(path), SCHEMA, mode="ignore")


def _together(begin):
    """Let several begin at the same moment; return what they raised."""
    start = threading.Barrier(WRITERS)

    def run(number):
        start.wait(30)
        try:
            begin(number)
        except CommitFailedError as error:
            return error
        return None

    with ThreadPoolExecutor(WRITERS) as pool:
        return [error for error in pool.map(run, range(WRITERS)) if error is not None]


def test_of_many_that_begin_at_once_one_creates_the_table_and_the_others_read_it(tmp_path):
    for number in range(25):
        path = tmp_path / f"new/{number}"
        assert _together(lambda _, path=path: _ensure(path)) == []
        assert DeltaTable(path).version() == 0

    # Negative control: without its guard a creation is made again behind the first, and others meet it.
    for number in range(200):
        path = tmp_path / f"control/{number}"
        if _together(lambda _, path=path: _create(path)) or DeltaTable(path).version():
            break
    else:
        pytest.fail("none of them came between another's look and its commit")


def test_first_rows_written_at_once_are_all_kept_in_one_life_of_the_table(tmp_path):
    for number in range(10):
        root = str(tmp_path / str(number))
        lives = []

        def begin(writer, root=root, lives=lives):
            epochs = OnlineEpochs(root, f"project-{writer}")
            epochs.record(1, "the first job")
            lives.append(epochs.life())
            Losses(root).record("hot", [("topic", writer, 0, 1)])

        assert _together(begin) == []
        assert {row["partition"] for row in Losses(root).rows()} == set(range(WRITERS))
        assert {OnlineEpochs(root, f"project-{writer}").newest() for writer in range(WRITERS)} == {1}
        assert len(set(lives)) == 1


def test_a_table_has_another_life_once_it_is_made_anew(tmp_path):
    one, two = OnlineEpochs(str(tmp_path / "one"), "shop"), OnlineEpochs(str(tmp_path / "two"), "shop")
    assert one.life() is None
    one.record(1, "the first job")
    two.record(1, "the first job")
    before = one.life()
    one.record(2, "rebuilt")
    assert one.life() == before != two.life()
