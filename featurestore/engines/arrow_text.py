"""Row expressions over Arrow columns: the kernels over text, and between text and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.datatypes import DataType
from featurestore.definitions.expression_nodes import Call, Literal, like_parts
from featurestore.events.arrow_types import ARROW_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_SPACES = " \t\n\r\f\v"


def change_case(
    ascii_kernel: Callable[..., pa.Array], method: Callable[[str], str]
) -> Callable[[Call, list[Any]], pa.Array]:
    """Change case: by Arrow where a text is ASCII, else by Python, whose mappings are the full ones of Unicode."""

    def run(_: Call, args: list[Any]) -> pa.Array:
        (text,) = args
        if pc.all(pc.string_is_ascii(text), min_count=0).as_py() is not False:
            return ascii_kernel(text)
        return pa.array([None if one is None else method(one) for one in text.to_pylist()], pa.string())

    return run


def substring(node: Call, args: list[Any]) -> pa.Array:
    """Return the part of every text from a literal position on; Arrow slices as Python does, clipped at both ends."""
    start, *length = (arg.value for arg in node.args[1:] if isinstance(arg, Literal))
    first = int(start or 0)
    first = first - 1 if first > 0 else first
    if not length:
        return pc.utf8_slice_codeunits(args[0], first)
    count = min(int(length[0] or 0), _HIGHEST // 2)
    end = first + count
    if count <= 0:
        return pc.utf8_slice_codeunits(args[0], 0, 0)
    if first < 0 <= end:
        return pc.utf8_slice_codeunits(args[0], first)
    return pc.utf8_slice_codeunits(args[0], first, end)


def text_test(
    kernel: Callable[..., pa.Array], method: Callable[[str, str], bool]
) -> Callable[[Call, list[Any]], pa.Array]:
    """Ask about a part of a text: by Arrow where the part is a literal, else row by row."""

    def run(_: Call, args: list[Any]) -> pa.Array:
        text, part = args
        if isinstance(part, pa.Scalar) and part.is_valid and isinstance(text, pa.Array):
            return kernel(text, part.as_py())
        return pa.array([None if None in row else method(*row) for row in _by_row(args)], pa.bool_())

    return run


def replace(_: Call, args: list[Any]) -> pa.Array:
    """Replace every occurrence of a part of a text."""
    text, old, new = args
    literals = isinstance(text, pa.Array) and all(isinstance(one, pa.Scalar) and one.is_valid for one in (old, new))
    if literals and old.as_py():
        return pc.replace_substring(text, old.as_py(), new.as_py())
    made = [None if None in row else row[0].replace(row[1], row[2]) if row[1] else row[0] for row in _by_row(args)]
    return pa.array(made, pa.string())


def _by_row(args: list[Any]) -> Iterator[tuple[Any, ...]]:
    rows = next(len(arg) for arg in args if not isinstance(arg, pa.Scalar))
    return zip(*([arg.as_py()] * rows if isinstance(arg, pa.Scalar) else arg.to_pylist() for arg in args), strict=True)


def like(node: Call, args: list[Any]) -> pa.Array:
    """Return whether every text matches the literal pattern, as a regular expression of the whole text."""
    turned = {
        "text": lambda text: "".join(f"\\x{{{ord(one):x}}}" for one in text),
        "one": lambda _: ".",
        "run": lambda _: ".*",
    }
    pattern = node.args[1].value if isinstance(node.args[1], Literal) else ""
    wanted = "".join(turned[kind](content) for kind, content in like_parts(str(pattern)))
    return pc.match_substring_regex(args[0], rf"(?s)\A{wanted}\z")


_WORDS = {"t": True, "true": True, "y": True, "yes": True, "1": True}
_WORDS |= {"f": False, "false": False, "n": False, "no": False, "0": False}
_WHOLE = r"\A[+-]?[0-9]+(\.[0-9]*)?\z"
_NUMBER = r"(?i)\A[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)\z"


def from_text(text: pa.Array, new: DataType) -> pa.Array:
    """Return texts read as numbers or bools; null where one is neither."""
    text = pc.utf8_trim(text, _SPACES)
    convert: Callable[[str], Any]
    if new == DataType.BOOL:
        convert = lambda one: _WORDS.get(one.lower()) if one.isascii() else None  # noqa: E731
    elif new == DataType.INT64:
        text = pc.if_else(pc.match_substring_regex(text, _WHOLE), text, pa.scalar(None, pa.string()))
        convert = _whole_of
    else:
        text = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, pa.scalar(None, pa.string()))
        convert = float
    return pa.array([None if one is None else convert(one) for one in text.to_pylist()], ARROW_TYPES[new])


def _whole_of(text: str) -> int | None:
    digits = text.partition(".")[0]
    if len(digits) > 4000:
        return None
    number = int(digits)
    return number if _LOWEST <= number <= _HIGHEST else None


def float_text(value: float) -> str:
    """Return the number as Java writes it, from Python's shortest digits in scientific form."""
    if value != value or value in (np.inf, -np.inf):  # noqa: PLR0124 - NaN
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return np.format_float_positional(value, unique=True, trim="0")
    mantissa, _, exponent = np.format_float_scientific(value, unique=True, trim="0").partition("e")
    return f"{mantissa}E{int(exponent)}"
