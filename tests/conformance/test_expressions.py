"""One meaning per function: a table of cases, and random expressions, in both evaluators."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from featurestore.datatypes import DataType
from featurestore.definitions.expression import Expression
from featurestore.definitions.expression_functions import UNITS
from featurestore.definitions.expression_nodes import FUNCTIONS, Op
from featurestore.engines.arrow import evaluate
from featurestore.engines.scalar import evaluate_row
from featurestore.events.arrow_types import ARROW_TYPES
from featurestore.timeline import to_instant
from tests.effort import tries

TABLE = json.loads((Path(__file__).parents[1] / "cases" / "expressions.json").read_text(encoding="utf-8"))
COLUMNS = {name: DataType(kind) for name, kind in TABLE["columns"].items()}
CASES = [
    pytest.param(sql, row, expected, id=f"{sql} with {json.dumps(row)}")
    for cases in TABLE["cases"].values()
    for sql, row, expected in cases
]
LOWEST, HIGHEST = -(2**63), 2**63 - 1


def from_json(value, kind):
    """Return a value of the table: JSON has no NaN, no infinity and no time."""
    if value is None:
        return None
    if kind == DataType.TIMESTAMP:
        return to_instant(value)
    return float(value) if kind == DataType.FLOAT64 else value


def arrow_values(expression, rows, *, chunks=1):
    """Return what the vectorised evaluator gives for some rows."""
    columns = {}
    for name in expression.columns:
        kind = ARROW_TYPES[COLUMNS[name]]
        values = [row.get(name) for row in rows]
        size = max(1, len(rows) // chunks)
        parts = [pa.array(values[start : start + size], kind) for start in range(0, len(values), size)]
        columns[name] = parts[0] if chunks == 1 and parts else pa.chunked_array(parts, kind)
    result = evaluate(expression, columns, len(rows))
    assert isinstance(result, pa.Array)
    assert result.type == ARROW_TYPES[expression.type]
    assert len(result) == len(rows)
    result.validate(full=True)
    return (result.cast(pa.int64()) if expression.type == DataType.TIMESTAMP else result).to_pylist()


def same(left, right, *, relative=0.0):
    """Return whether two values are the same value: of one type, NaN like NaN, floats within a relative distance."""
    if left is None or right is None:
        return left is right
    if type(left) is not type(right):
        return False
    if isinstance(left, float) and not (math.isnan(left) or math.isnan(right)):
        return left == right or abs(left - right) <= relative * abs(right)
    return left == right or (left != left and right != right)


@pytest.mark.parametrize(("sql", "row", "expected"), CASES)
def test_a_case_has_its_stated_value_in_both_evaluators(sql, row, expected):
    expression = Expression.parse(sql, COLUMNS)
    row = {name: from_json(value, COLUMNS[name]) for name, value in row.items()}
    expected = from_json(expected, expression.type)
    for found in (evaluate_row(expression, row), *arrow_values(expression, [row, row, row])):
        assert same(found, expected, relative=1e-15)
        if expected == 0 and isinstance(expected, float):
            assert struct.pack("d", found) == struct.pack("d", expected)


def test_every_function_has_cases_and_every_operation_is_reached():
    assert {name for name, cases in TABLE["cases"].items() if len(cases) < 2} == set()
    assert FUNCTIONS.keys() <= TABLE["cases"].keys()
    reached = set()
    for sql, _, _ in (case.values for case in CASES):
        stack = [Expression.parse(sql, COLUMNS).node]
        while stack:
            node = stack.pop()
            reached.add(getattr(node, "op", None))
            stack.extend(getattr(node, "args", ()))
    assert set(Op) <= reached


@pytest.mark.parametrize(
    "sql", ["1", "NULL + 1", "'a'", "true AND NULL", "COALESCE(NULL, 'x')", "1 IN (1)", "-0.0", "IF(true, 1, 2)"]
)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_literals_alone_fill_every_row(sql, rows):
    expression = Expression.parse(sql, {})
    assert arrow_values(expression, [{}] * rows) == [evaluate_row(expression, {})] * rows


def test_kindred_arrow_types_and_chunks_are_taken():
    expression = Expression.parse("i + CAST(LENGTH(s) AS bigint)", COLUMNS)
    columns = {
        "i": pa.chunked_array([pa.array([1, None], pa.int32()), pa.array([3], pa.int32())]),
        "s": pa.array(["a", "b", "ccc"], pa.large_string()).dictionary_encode(),
    }
    assert evaluate(expression, columns, 3).to_pylist() == [2, None, 6]


def test_a_slice_of_a_column_is_read_where_it_starts():
    expression = Expression.parse("IF(p, i, j) + i", COLUMNS)
    columns = {
        "p": pa.array([None, True, False, True])[1:3],
        "i": pa.array([9, 1, None, 4])[1:3],
        "j": pa.array([9, 9, 5, 9])[1:3],
    }
    assert evaluate(expression, columns, 2).to_pylist() == [2, None]


INTS = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([LOWEST, LOWEST + 1, HIGHEST, HIGHEST - 1, 2**53 + 1, 2**62, 3_037_000_500, -(2**32), 25, 150]),
    st.integers(LOWEST, HIGHEST),
)
FLOATS = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 0.5, -2.5, 2.675, 1.005, math.nan, math.inf, -math.inf, 1e300, 5e-324, 2.0**63, -(2.0**63)]
    ),
    st.floats(),
    st.decimals(-1000, 1000, places=3).map(float),
)
TEXTS = st.one_of(
    st.sampled_from(["", " a ", "ab", "A%b", "ß", "é\U0001f600x", "12", "-1.5", "NaN", "yes", "a\nb", "İ", "\\", "'"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
TIMES = st.one_of(
    st.sampled_from([0, -1, 951_782_400_000_000]), st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
)
VALUES = {
    DataType.INT64: INTS,
    DataType.FLOAT64: FLOATS,
    DataType.STRING: TEXTS,
    DataType.BOOL: st.booleans(),
    DataType.TIMESTAMP: TIMES,
}
ROWS = st.fixed_dictionaries({name: st.none() | VALUES[kind] for name, kind in COLUMNS.items()})
I, F, S, B, T = (DataType(name) for name in ("int64", "float64", "string", "bool", "timestamp"))  # noqa: E741 - short names keep the table below readable
SHAPES = {
    I: [
        ("({} + {})", I, I), ("({} - {})", I, I), ("({} * {})", I, I), ("({} % {})", I, I), ("(- {})", I), ("ABS({})", I),
        ("FLOOR({})", F), ("CEIL({})", F), ("FLOOR({})", I), ("ROUND({}, -1)", I), ("ROUND({}, -15)", I), ("LENGTH({})", S),
        ("CAST({} AS bigint)", F), ("CAST({} AS bigint)", S), ("CAST({} AS bigint)", B), ("YEAR({})", T), ("MONTH({})", T),
        ("DAY({})", T), ("HOUR({})", T), ("MINUTE({})", T), ("DAYOFWEEK({})", T), ("EPOCH_US({})", T),
        ("({} DIV {})", I, I), ("SECOND({})", T), ("QUARTER({})", T), ("DAYOFYEAR({})", T), ("WEEKDAY({})", T),
    ],
    F: [
        ("({} + {})", F, F), ("({} - {})", F, I), ("({} * {})", I, F), ("({} / {})", F, F), ("({} / {})", I, I), ("({} % {})", F, F),
        ("(- {})", F), ("ABS({})", F), ("ROUND({})", F), ("ROUND({}, 2)", F), ("ROUND({}, -3)", F), ("ROUND({}, 15)", F), ("SQRT({})", F),
        ("CAST({} AS double)", S), ("CAST({} AS double)", I), ("CAST({} AS double)", B), ("LEAST({}, {})", F, I),
        ("LN({})", F), ("EXP({})", F), ("POWER({}, {})", F, F), ("POWER({}, {})", F, I), ("LOG10({})", F), ("SIGN({})", F), ("SIGN({})", I),
    ],
    S: [
        ("UPPER({})", S), ("LOWER({})", S), ("CONCAT({}, {})", S, S), ("({} || {} || {})", S, S, S), ("TRIM({})", S),
        ("SUBSTRING({}, 2)", S), ("SUBSTRING({}, -2, 3)", S), ("SUBSTRING({}, -4, 3)", S), ("SUBSTRING({}, 0, 1)", S),
        ("CAST({} AS string)", I), ("CAST({} AS string)", F), ("CAST({} AS string)", B),
        ("LTRIM({})", S), ("RTRIM({})", S), ("REPLACE({}, {}, {})", S, S, S), ("REPLACE({}, 'a', 'bb')", S), ("REPLACE({}, '', {})", S, S),
    ],
    B: [
        ("({} AND {})", B, B), ("({} OR {})", B, B), ("(NOT {})", B), ("({} IS NULL)", I), ("({} IS NOT NULL)", S), ("({} IS TRUE)", B),
        ("ISNAN({})", F), ("({} LIKE 'a%')", S), ("({} NOT LIKE '_\\\\%%')", S), ("({} LIKE '%a_')", S),
        ("CAST({} AS boolean)", I), ("CAST({} AS boolean)", F), ("CAST({} AS boolean)", S),
        ("({} IN (1, 2.5, -0.0))", F), ("({} NOT IN ('ab', '', NULL))", S), ("({} IN (1, NULL))", I), ("({} = {})", I, F),
        ("({} < {})", F, I), ("({} IN (true))", B),
        ("STARTSWITH({}, {})", S, S), ("ENDSWITH({}, 'b')", S), ("CONTAINS({}, {})", S, S), ("CONTAINS({}, 'a')", S), ("ENDSWITH({}, {})", S, S),
    ],
    T: [(f"DATE_TRUNC('{unit}', {{}})", T) for unit in UNITS],
}  # fmt: skip
for kind, shapes in SHAPES.items():
    shapes += [
        ("CASE WHEN {} THEN {} WHEN {} THEN {} ELSE {} END", B, kind, B, kind, kind), ("IF({}, {}, {})", B, kind, kind),
        ("IF({}, {})", B, kind), ("COALESCE({}, {})", kind, kind), ("NULLIF({}, {})", kind, kind),
        ("LEAST({}, {}, {})", kind, kind, kind), ("GREATEST({}, {})", kind, kind),
    ]  # fmt: skip
    for other in (I, F, S, B, T):
        shapes.append(
            (
                f"CASE {{}} WHEN {{}} THEN {{}} {'ELSE {} ' if kind == B else ''}END",
                other,
                other,
                kind,
                *[B] * (kind == B),
            )
        )
    SHAPES[B] += [
        (f"({{}} {op} {{}})", kind, kind) for op in ("=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "<=>")
    ]
    SHAPES[B] += [("({} BETWEEN {} AND {})", kind, kind, kind), ("({} NOT BETWEEN {} AND {})", kind, kind, kind)]


def written(value):
    """Return a value as a SQL literal."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return repr(value)


LITERALS = {
    I: INTS.map(written),
    F: FLOATS.filter(math.isfinite).map(written),
    S: TEXTS.map(written),
    B: st.sampled_from(["TRUE", "FALSE"]),
    T: st.just("t"),
}


@st.composite
def sql_of(draw, kind, depth):
    """Draw the text of a well-typed expression."""
    if depth == 0 or draw(st.integers(0, 9)) == 0:
        names = [name for name, one in COLUMNS.items() if one == kind]
        return draw(LITERALS[kind]) if draw(st.integers(0, 3)) == 0 else draw(st.sampled_from(names))
    form, *kinds = draw(st.sampled_from(SHAPES[kind]))
    return form.format(*(draw(sql_of(one, depth - 1)) for one in kinds))


@settings(
    max_examples=tries(400), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    sql=st.sampled_from([I, F, S, B, T]).flatmap(lambda kind: sql_of(kind, 3)),
    rows=st.lists(ROWS, min_size=1, max_size=6),
    chunks=st.integers(1, 2),
)
@example(sql="POWER(x, y)", rows=[{"x": -0.0, "y": -3.0}], chunks=1)
@example(sql="SUBSTRING(s, -2, 3)", rows=[{"s": "a"}], chunks=1)
def test_the_vectorised_evaluator_agrees_with_plain_python_on_any_expression(sql, rows, chunks):
    expression = Expression.parse(sql, COLUMNS)
    again = Expression.parse(expression.canonical, COLUMNS)
    assert again.canonical == expression.canonical
    assert Expression.from_dict(json.loads(json.dumps(expression.to_dict()))).canonical == expression.canonical
    for row, found in zip(rows, arrow_values(expression, rows, chunks=chunks), strict=True):
        expected = evaluate_row(expression, row)
        # Bit for bit, since lookups of few rows use one evaluator and training sets the other.
        assert same(found, expected), (expression.canonical, row, found, expected)
        if isinstance(found, float) and not math.isnan(found):
            assert math.copysign(1, found) == math.copysign(1, expected), (expression.canonical, row)
        assert same(evaluate_row(again, row), expected)
