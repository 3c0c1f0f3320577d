"""A job's Prometheus endpoint over real HTTP, and what it writes into its status file."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from featurestore.errors import JobError
from featurestore.jobs.metrics import JobCollector, serve_metrics
from featurestore.jobs.report import Reporter
from featurestore.jobs.worker import COUNTS
from featurestore.timeline import SECOND, VirtualClock

NOW = 1_750_000_000 * SECOND


@pytest.fixture
def reporter(tmp_path):
    made = Reporter(tmp_path / "status.json", state="running")
    made.totals = {name: number for number, name in enumerate(COUNTS)}
    made.sources = {
        "payments": {"lag": 12, "complete_through": NOW - 3 * SECOND},
        "shops": {"lag": 0, "complete_through": None},
    }
    made.queries = {
        "hot": {"realtime": True, "pids": [1], "lag": 12, "error": None},
        "archive": {"batch": 3, "rows": 40, "duration_ms": {"addBatch": 250}, "at": "2026-01-01T00:00:00.000Z"},
    }
    return made


def samples(families):
    return {(each.name, *sorted(each.labels.values())): each.value for family in families for each in family.samples}


def test_what_a_job_reports_can_be_scraped(reporter):
    with serve_metrics(reporter, 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        with pytest.raises(JobError, match=f"metrics port {port} on 127.0.0.1"), serve_metrics(reporter, port):
            pass
    found = samples(text_string_to_metric_families(text))
    assert found["featurestore_job_records_total", "quarantined"] == COUNTS.index("quarantined")
    assert found["featurestore_job_lag_records", "payments"] == 12
    assert found["featurestore_job_batch_rows", "archive"] == 40
    assert found["featurestore_job_batch_seconds", "addBatch", "archive"] == 0.25
    assert found["featurestore_job_state", "running"] == 1
    assert ("featurestore_job_complete_age_seconds", "shops") not in found
    with socket.socket() as again:
        assert again.connect_ex(("127.0.0.1", port)), "the port is still served"


def test_the_age_of_complete_through_follows_the_clock(reporter):
    found = samples(JobCollector(reporter, VirtualClock(NOW)).collect())
    assert found["featurestore_job_complete_age_seconds", "payments"] == 3.0


def test_the_status_file_says_how_far_behind_a_source_is(reporter):
    reporter.write()
    content = json.loads(reporter.path.read_text())
    assert content["sources"] == {
        "payments": {"lag": 12, "complete_through": "2025-06-15T15:06:37Z"},
        "shops": {"lag": 0, "complete_through": None},
    }
