"""Row expressions as a user meets them: what is refused, where, and with which hint; and what counts as the same."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.datatypes import DataType
from featurestore.definitions.expression import Expression
from featurestore.definitions.expression_nodes import FUNCTIONS
from featurestore.errors import ExpressionError
from tests.effort import tries

COLUMNS = {
    "amount": DataType.FLOAT64,
    "count": DataType.INT64,
    "status": DataType.STRING,
    "approved": DataType.BOOL,
    "at": DataType.TIMESTAMP,
    "card_spend.mean_spend_7d": DataType.FLOAT64,
    "date": DataType.STRING,
    "odd `name": DataType.INT64,
}


def parse(text, columns=COLUMNS):
    return Expression.parse(text, columns, where="card_spend.spend")


def test_a_parsed_expression_knows_its_type_columns_and_one_spelling():
    expression = parse("amount*count -- cents")
    assert expression.text == "amount*count -- cents"
    assert expression.type is DataType.FLOAT64
    assert expression.columns == ("amount", "count")
    assert expression.canonical == "(`amount` * CAST(`count` AS DOUBLE))"


def test_dotted_and_quoted_names_are_columns():
    assert parse("amount / nullif(card_spend.mean_spend_7d, 0)").columns == ("amount", "card_spend.mean_spend_7d")
    assert parse("`card_spend.mean_spend_7d` + 1").columns == ("card_spend.mean_spend_7d",)
    assert parse("date = 'x'").columns == ("date",)
    assert parse("`odd ``name`").columns == ("odd `name",)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("amount>15", " ( amount > 15.0 )"),
        ("amount > 1", "1 < amount"),
        ("status <> 'a'", "NOT status = 'a'"),
        ("if(approved, 1, 2)", "CASE WHEN approved THEN 1 ELSE 2 END"),
        ("'O''Hare'", r"'O\'Hare'"),
        ("cast(count as double)", "TRY_CAST(count AS DOUBLE)"),
        ("nvl(count, 0)", "COALESCE(count, 0)"),
        ("status NOT LIKE 'a%'", "not (status like 'a%')"),
    ],
)
def test_spellings_of_one_meaning_share_a_canonical_text(left, right):
    assert parse(left).canonical == parse(right).canonical
    assert parse(left).node == parse(right).node


@pytest.mark.parametrize(
    ("left", "right"), [("count", "count + 0"), ("1", "1.0"), ("amount > 1", "amount >= 1"), ("'1'", "1")]
)
def test_other_meanings_have_other_canonical_texts(left, right):
    assert parse(left).canonical != parse(right).canonical


def test_an_expression_survives_pickle_and_json():
    expression = parse("CASE WHEN status IN ('a', 'b') THEN count ELSE NULL END")
    assert pickle.loads(pickle.dumps(expression)) == expression
    assert Expression.from_dict(json.loads(json.dumps(expression.to_dict()))) == expression


REFUSED = [
    # syntax
    ("", "'' is no expression"),
    ("   ", "is no expression"),
    (5, "5 is no expression"),
    (";", "one expression is wanted, not several at character 1"),
    ("amount; count", "one expression is wanted, not several at character 7"),
    ("amount +", r"something is missing after '\+' at character 8"),
    ("(amount", "expecting \\) at character 2"),
    ("amount)", r"'\)' is not expected here at character 7"),
    ("amount count", "'count' is not expected here at character 8"),
    ("amount AS x", "'AS' is not expected here at character 8"),
    ("status = 'open", r"a quote \('\) is opened and never closed at character 10"),
    ("`amount", r"a quote \(`\) is opened and never closed at character 1"),
    ("amount\n + \n* 2", "'2' is not expected here at character 14"),
    ("SELECT amount", "'SELECT' is not expected here at character 1 .* Hint: write the expression alone"),
    ("(" * 300 + "amount" + ")" * 300, "nested more than 100 levels"),
    ("NOT " * 200 + "approved", "nested more than 100 levels"),
    (" + ".join(["count"] * 150), "nested more than 100 levels"),
    ("count + " * 2000 + "1", "allowed are 10,000"),
    # names and types
    ("amuont * 2", "unknown column 'amuont' at character 1 of 'amuont \\* 2'. Hint: did you mean 'amount'"),
    ("count + card_spend.mean", "unknown column 'card_spend.mean' at character 9"),
    ("Amount", "unknown column 'Amount'.*did you mean 'amount'"),
    ("amount.*", "not allowed"),
    ("status + 1", r"\+ takes int64 or float64, not string, at character 1 .*CAST\(x AS double\)"),
    ("amount > 'x'", "> takes values of one type, not float64 and string, at character 1"),
    ("approved AND count", "AND takes bool, not int64, at character 14"),
    ("UPPER(count)", r"UPPER takes string, not int64, at character 7 .*CAST\(x AS string\)"),
    ("at - at", "- takes int64 or float64, not timestamp, .*EPOCH_US"),
    ("CAST(at AS bigint)", "a timestamp cannot be cast"),
    ("CAST(count AS int)", "int is no type to cast to .*bigint, double, string, boolean"),
    ("CAST(count AS decimal(3, 2))", "is no type to cast to"),
    ("HOUR(count)", "HOUR takes timestamp, not int64, at character 6"),
    ("EXTRACT(WEEK FROM at)", "EXTRACT does not know WEEK"),
    ("CASE WHEN approved THEN 1 ELSE 'x' END", "CASE takes values of one type, not int64 and string"),
    ("COALESCE(amount, 'x')", "COALESCE takes values of one type"),
    ("count IS TRUE", "IS takes NULL, or TRUE and FALSE of a bool"),
    ("NULL", "NULL alone has no type"),
    ("COALESCE(NULL, NULL)", "of nothing but NULL has no type"),
    ("9223372036854775808", "9223372036854775808 is beyond 64 bits at character 1"),
    ("1e999", "1e999 is no float64"),
    ("status = '\ud800'", "half a surrogate pair"),
    # literals where a column would differ per engine
    ("count IN (count)", "IN takes literals only at character 11"),
    ("count IN ()", "IN takes a list of literals"),
    ("status LIKE status", "LIKE takes a pattern in quotes at character 13"),
    (r"status LIKE 'a\\b'", "escapes nothing at character 13"),
    ("SUBSTRING(status, count)", "SUBSTRING takes the first position as a whole literal at character 19"),
    ("ROUND(amount, count)", "ROUND takes the digits as a whole literal"),
    ("ROUND(amount, 16)", "ROUND takes -15 to 15 digits, not 16"),
    # more than one row
    ("(SELECT 1)", "a subquery is not allowed"),
    ("count IN (SELECT 1)", "a subquery is not allowed"),
    ("EXISTS (SELECT 1)", "a subquery is not allowed"),
    ("SUM(amount)", "SUM is an aggregate.*at character 1 .*over\\("),
    ("1 + COUNT(*)", "COUNT is an aggregate.*at character 5"),
    ("MEAN(amount)", "MEAN is an aggregate"),
    ("SUM(amount) OVER (ORDER BY at)", "a window function is not allowed"),
    ("ROW_NUMBER() OVER (ORDER BY at)", "a window function is not allowed"),
    # not of the event
    ("RAND()", "RAND is not a function of the event"),
    ("amount + RAND(1)", "RAND is not a function of the event.*at character 10"),
    ("NOW()", "NOW is not a function of the event"),
    ("CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP is not a function of the event.*at character 1"),
    ("current_date()", "CURRENT_DATE is not a function of the event"),
    ("UUID()", "UUID is not a function of the event"),
    # outside the list
    ("FOO(amount)", "FOO is not allowed at character 1"),
    ("UPER(status)", "UPER is not allowed .*did you mean 'UPPER'"),
    ("amount DIV 2", "DIV takes int64, not float64"),
    ("LOG(2, amount)", "LOG takes one base.*LN"),
    ("DATE_TRUNC('CENTURY', event_time)", "DATE_TRUNC does not know CENTURY.*WEEK"),
    ("DATE_TRUNC('DAY', status)", "DATE_TRUNC takes timestamp, not string"),
    ("REPLACE(status, 'a')", "REPLACE takes three texts"),
    ("STARTSWITH(status, 1)", "STARTSWITH takes string, not int64"),
    ("WEEKDAY()", "WEEKDAY takes one timestamp"),
    ("status RLIKE 'a'", "not allowed"),
    ("status ILIKE 'a'", "not allowed"),
    ("count & 1", "not allowed"),
    ("CEIL(amount, 1)", "CEIL is not understood with 'decimals'"),
    ("TRIM(LEADING 'x' FROM status)", "TRIM is not understood with 'expression'"),
    ("TRIM(BOTH 'x' FROM status)", "TRIM is not understood"),
    ("status LIKE 'x' ESCAPE '!'", "ESCAPE is not allowed"),
    ("DATE '2013-01-01'", "is no type to cast to"),
    ("INTERVAL 1 DAY", "INTERVAL is not allowed"),
    ("x -> x + 1", "not allowed|unknown column"),
    (":amount", "not allowed"),
    ("{{amount}}", "not allowed"),
    ("reflect('java.lang.System', 'exit')", "REFLECT is not allowed"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=lambda value: repr(value)[:50])
def test_what_could_fail_or_differ_later_is_refused_when_it_is_defined(text, said):
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("card_spend.spend: ")
    assert re.search(said, message), message


def test_a_refused_function_lists_what_is_allowed():
    with pytest.raises(ExpressionError) as caught:
        parse("FOO(amount)")
    for name in FUNCTIONS:
        assert name in caught.value.hint


@settings(max_examples=tries(150), deadline=None)
@given(
    st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                "amount",
                "count",
                "status",
                "approved",
                "at",
                "(",
                ")",
                "(",
                ")",
                ",",
                "+",
                "-",
                "*",
                "/",
                "%",
                "=",
                "<",
                ">",
                "<>",
                "AND",
                "OR",
                "NOT",
                "IN",
                "BETWEEN",
                "CASE",
                "WHEN",
                "THEN",
                "ELSE",
                "END",
                "IS",
                "NULL",
                "DISTINCT",
                "FROM",
                "LIKE",
                "CAST",
                "AS",
                "bigint",
                "double",
                "IF",
                "COALESCE",
                "SUBSTRING",
                "ROUND",
                "HOUR",
                "EXTRACT",
                "1",
                "2.5",
                "'a'",
                ";",
                "`",
                "'",
                '"',
                ".",
                "[",
                "]",
                "SELECT",
                "OVER",
                "DATE",
                "INTERVAL",
                "@",
                ":",
                "?",
                "--",
                "/*",
                "*/",
                "\\",
                "{",
                "}",
                "=>",
                "->",
                "::",
                "!",
                "~",
                "^",
                "|",
                "&",
                "TRIM",
                "BOTH",
            ]
        ),
        max_size=12,
    ).map(" ".join)
)
def test_any_text_is_an_expression_or_a_clear_refusal(text):
    refusal, expression = None, None
    try:
        expression = parse(text)
    except ExpressionError as error:
        refusal = str(error)
    if expression is None:
        assert refusal.startswith("card_spend.spend: ")
        assert "\n" not in refusal
    else:
        assert parse(expression.canonical).canonical == expression.canonical
