"""The cases of row expressions in Spark SQL itself: the same values, but where a deviation is listed with its reason.

Spark runs without ANSI mode and in UTC. ``EPOCH_US`` is spelled ``UNIX_MICROS`` there; nothing else is rewritten.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.errors import AnalysisException

from featurestore.definitions.expression import Expression
from featurestore.events.arrow_types import ARROW_TYPES
from tests.conformance.test_expressions import COLUMNS, TABLE, from_json

pytestmark = pytest.mark.jvm

LISTED = json.loads((Path(__file__).parents[1] / "cases" / "spark_deviations.json").read_text(encoding="utf-8"))
CASES = [case for cases in TABLE["cases"].values() for case in cases]


def agree(ours, theirs):
    """Return whether two values are the same; Java may differ from C in the last place of a logarithm or power."""
    if ours is None or theirs is None or isinstance(ours, (str, bool)):
        return ours == theirs and type(ours) is type(theirs)
    if isinstance(theirs, (str, bool)):
        return False
    if math.isnan(ours) or math.isnan(theirs):
        return math.isnan(ours) and math.isnan(theirs)
    return ours == theirs or (isinstance(ours, float) and abs(ours - theirs) <= 1e-15 * abs(ours))


def shown(value):
    """Return a value as JSON can hold it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def answers(spark):
    """Return Spark's value of every case; a text where it refuses the expression."""
    session = spark.newSession()
    session.conf.set("spark.sql.ansi.enabled", "false")
    session.conf.set("spark.sql.session.timeZone", "UTC")
    rows = [{name: from_json(value, COLUMNS[name]) for name, value in row.items()} for _, row, _ in CASES]
    columns = {name: pa.array([row.get(name) for row in rows], ARROW_TYPES[kind]) for name, kind in COLUMNS.items()}
    frame = session.createDataFrame(pa.table({"row": range(len(rows)), **columns}))
    texts = list(dict.fromkeys(sql for sql, _, _ in CASES))
    refused, asked = {}, {}
    for number, sql in enumerate(texts):
        text = sql.replace("EPOCH_US", "UNIX_MICROS")
        try:
            kind = frame.selectExpr(f"{text} AS value").schema["value"].dataType.simpleString()
        except AnalysisException as error:
            refused[sql] = f"refused: {error.getCondition()}"
            continue
        cast = {"timestamp": "unix_micros({})", "void": "string({})"}.get(
            kind, "double({})" if "decimal" in kind else "{}"
        )
        asked[sql] = (f"c{number}", cast.format(text))
    found = frame.selectExpr("row", *(f"{text} AS {name}" for name, text in asked.values())).orderBy("row").toArrow()
    return [
        refused[sql] if sql in refused else found.column(asked[sql][0])[row].as_py()
        for row, (sql, _, _) in enumerate(CASES)
    ]


def test_spark_gives_the_same_value_or_the_deviation_is_listed(spark):
    deviations = {}
    for (sql, row, expected), theirs in zip(CASES, answers(spark), strict=True):
        ours = from_json(expected, Expression.parse(sql, COLUMNS).type)
        if not agree(ours, theirs):
            deviations[f"{sql} with {json.dumps(row)}"] = shown(theirs)
    listed = {case: value for each in LISTED for case, value in each["cases"].items()}
    assert deviations == listed
    assert all(each["reason"] for each in LISTED)


def test_a_job_has_room_for_machine_code_without_the_optimising_compiler(spark):
    """Java sets a fifth of it aside by itself, which a driver of some minutes can fill."""
    pools = spark._jvm.java.lang.management.ManagementFactory.getMemoryPoolMXBeans()
    code = [pool.getUsage().getMax() for pool in pools if pool.getName().startswith("Code")]
    assert sum(code) >= 230 * 1024 * 1024
