"""Whose event log it is: one query's, however many begin at the same moment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from deltalake import DeltaTable

from featurestore.errors import CheckpointMismatchError, OfflineStoreUnavailableError
from featurestore.offline.owners import own_log


def test_a_log_is_its_first_querys_for_good(tmp_path):
    own_log(str(tmp_path), "payments", "one")
    own_log(str(tmp_path), "payments", "one")
    with pytest.raises(
        CheckpointMismatchError, match=r"source payments: another archive query \(one\) .* this one is two"
    ):
        own_log(str(tmp_path), "payments", "two")
    own_log(f"{tmp_path}/", "visits", "two")
    assert DeltaTable(tmp_path / "owners/payments").version() == 1


@pytest.mark.parametrize("attempt", range(5))
def test_of_many_that_begin_at_once_one_has_it(tmp_path, attempt):
    queries = [f"query-{attempt}-{number}" for number in range(8)]
    together = threading.Barrier(len(queries))

    def own(query):
        together.wait(30)
        try:
            own_log(str(tmp_path), "payments", query)
        except CheckpointMismatchError:
            return None
        return query

    with ThreadPoolExecutor(len(queries)) as pool:
        winners = [query for query in pool.map(own, queries) if query is not None]
    assert len(winners) == 1
    assert DeltaTable(tmp_path / "owners/payments").to_pyarrow_table().to_pylist() == [{"query": winners[0]}]


def test_what_cannot_be_read_is_said(tmp_path):
    own_log(str(tmp_path), "payments", "one")
    (tmp_path / "owners/payments/_delta_log/00000000000000000001.json").write_text("{")
    with pytest.raises(OfflineStoreUnavailableError, match="owners/payments cannot be read"):
        own_log(str(tmp_path), "payments", "one")
