"""verify --engines spark: generated cases through training sets on a real session; equal, and a planted bug is found."""

from __future__ import annotations

import pytest

from featurestore.checks.spark import spark_batches
from featurestore.checks.verify import verify
from featurestore.offline import log as event_log
from tests.conformance.cases import COMPOSITE, WINDOWS

pytestmark = pytest.mark.jvm


def test_cases_of_every_kind_are_equal_on_spark(spark):
    with spark_batches() as run:
        result = verify([WINDOWS, COMPOSITE], seconds=0, seed=21, stores={}, batches={"spark": run})
    assert result.equal, str(result)
    assert result.engines == ("spark",)
    assert result.cases == {"windows": 20, "composite": 20}
    assert result.probes > 300


def test_a_bug_that_only_spark_has_is_found(spark, monkeypatch):
    needs = event_log._needs

    def too_short(views):
        columns, reach = needs(views)
        assert reach is not None
        return columns, -reach

    monkeypatch.setattr(event_log, "_needs", too_short)
    with spark_batches() as run:
        result = verify([COMPOSITE], seconds=0, seed=21, stores={}, batches={"spark": run}, shrink_seconds=0)
    assert result.failure is not None
    assert result.failure.engine == "spark"
    assert "training set on Spark" in str(result.failure.differences[0])
    assert "on spark" in result.failure.test
