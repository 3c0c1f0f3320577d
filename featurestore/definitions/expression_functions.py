"""Which node of the parser is which operation, and the types it takes: the tables behind ``expression_parser``."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from featurestore.datatypes import DataType
from featurestore.definitions.expression_nodes import Op

INT, FLOAT, BOOL = DataType.INT64, DataType.FLOAT64, DataType.BOOL
TEXT, TIME = DataType.STRING, DataType.TIMESTAMP
NUMBERS = (INT, FLOAT)

UNARY: dict[type[Any], tuple[Op, tuple[DataType, ...], DataType | None]] = {
    exp.Neg: (Op.NEGATE, NUMBERS, None),
    exp.Abs: (Op.ABS, NUMBERS, None),
    exp.Floor: (Op.FLOOR, NUMBERS, INT),
    exp.Ceil: (Op.CEIL, NUMBERS, INT),
    exp.Sqrt: (Op.SQRT, (FLOAT,), FLOAT),
    exp.Sign: (Op.SIGN, (FLOAT,), FLOAT),
    exp.Ln: (Op.LN, (FLOAT,), FLOAT),
    exp.Exp: (Op.EXP, (FLOAT,), FLOAT),
    exp.IsNan: (Op.ISNAN, (FLOAT,), BOOL),
    exp.Not: (Op.NOT, (BOOL,), BOOL),
    exp.Upper: (Op.UPPER, (TEXT,), TEXT),
    exp.Lower: (Op.LOWER, (TEXT,), TEXT),
    exp.Length: (Op.LENGTH, (TEXT,), INT),
    exp.Year: (Op.YEAR, (TIME,), INT),
    exp.Quarter: (Op.QUARTER, (TIME,), INT),
    exp.Month: (Op.MONTH, (TIME,), INT),
    exp.Day: (Op.DAY, (TIME,), INT),
    exp.DayOfMonth: (Op.DAY, (TIME,), INT),
    exp.DayOfWeek: (Op.DAYOFWEEK, (TIME,), INT),
    exp.DayOfYear: (Op.DAYOFYEAR, (TIME,), INT),
    exp.Hour: (Op.HOUR, (TIME,), INT),
    exp.Minute: (Op.MINUTE, (TIME,), INT),
    exp.Second: (Op.SECOND, (TIME,), INT),
    exp.UnixMicros: (Op.EPOCH_US, (TIME,), INT),
}
"""Functions of one argument: what they compute, the types they take, the type they give (None: the argument's)."""

PARTS_OF_TIME = {
    name: Op[name] for name in ("YEAR", "QUARTER", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND", "DAYOFWEEK")
}
PARTS_OF_TIME |= {"DOW": Op.DAYOFWEEK, "DOY": Op.DAYOFYEAR}
CASTS = {exp.DType.BIGINT: INT, exp.DType.DOUBLE: FLOAT, exp.DType.TEXT: TEXT, exp.DType.BOOLEAN: BOOL}
UNITS = ("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND")
"""What DATE_TRUNC takes."""
TRIMS = {"": Op.TRIM, "LEADING": Op.LTRIM, "TRAILING": Op.RTRIM}
TEXT_TESTS: dict[type[Any], Op] = {
    exp.StartsWith: Op.STARTSWITH,
    exp.EndsWith: Op.ENDSWITH,
    exp.Contains: Op.CONTAINS,
}
ARITHMETIC: dict[type[Any], Op] = {
    exp.Add: Op.ADD,
    exp.Sub: Op.SUBTRACT,
    exp.Mul: Op.MULTIPLY,
    exp.Div: Op.DIVIDE,
    exp.Mod: Op.MODULO,
    exp.IntDiv: Op.DIV,
    exp.Pow: Op.POWER,
}
COMPARISONS: dict[
    type[Any], tuple[Op, bool, bool]
] = {  # operation, whether its sides are swapped, whether it is negated
    exp.EQ: (Op.EQUAL, False, False),
    exp.NEQ: (Op.EQUAL, False, True),
    exp.LT: (Op.LESS, False, False),
    exp.LTE: (Op.LESS_EQUAL, False, False),
    exp.GT: (Op.LESS, True, False),
    exp.GTE: (Op.LESS_EQUAL, True, False),
    exp.NullSafeEQ: (Op.SAME, False, False),
    exp.NullSafeNEQ: (Op.SAME, False, True),
}
CHOICES: dict[type[Any], Op] = {
    exp.Coalesce: Op.COALESCE,
    exp.Nullif: Op.NULLIF,
    exp.Least: Op.LEAST,
    exp.Greatest: Op.GREATEST,
}
