"""Texts that keep a contract's bounds: lengths and a pattern."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

from featurestore.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.definitions.contract import ContractField

_SPACES = {"CATEGORY_DIGIT": "0", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " "}


def fitting_texts(field: ContractField, wanted: Sequence[str]) -> list[str]:
    """Return those of the wanted texts that a field takes, stretched or cut where only their length is wrong.

    Raises:
        DefinitionError: No text is known that matches the field's pattern.
    """
    bounds: Mapping[str, Any] = field.bounds
    low, high = bounds.get("minLength", 0), bounds.get("maxLength", 1 << 16)
    texts = [(text + "aaaaaaaa" * (low // 8 + 1))[: max(low, len(text))][:high] for text in wanted]
    pattern = bounds.get("pattern")
    if pattern is not None:
        texts += [_example(pattern, more) for more in range(3)]
    fine = [
        text
        for text in dict.fromkeys(texts)
        if low <= len(text) <= high and (pattern is None or re.search(pattern, text))
    ]
    if not fine:
        raise DefinitionError(
            f"field {field.name}: no text is known that matches {pattern!r} in {low} to {high} characters.",
            hint="give the field an enum, or a simpler pattern.",
        )
    return fine


def _example(pattern: str, more: int) -> str:
    """Return a text that may match a pattern; ``more`` repeats what may be repeated, and takes later choices."""
    parser = importlib.import_module("re._parser")
    try:
        return _text(parser.parse(pattern), more)
    except (re.error, KeyError, IndexError, TypeError):
        return ""


def _text(parsed: Any, more: int) -> str:
    made = []
    for kind, value in parsed:
        name = str(kind)
        if name == "LITERAL":
            made.append(chr(value))
        elif name == "NOT_LITERAL":
            made.append("b" if value == ord("a") else "a")
        elif name == "ANY":
            made.append("a")
        elif name == "IN":
            made.append(_one_of(value, more))
        elif name in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            least, most, inner = value
            made.append(_text(inner, more) * min(int(most), least + more))
        elif name == "SUBPATTERN":
            made.append(_text(value[-1], more))
        elif name == "BRANCH":
            choices = value[1]
            made.append(_text(choices[more % len(choices)], more))
    return "".join(made)


def _one_of(choices: Sequence[Any], more: int) -> str:
    if str(choices[0][0]) == "NEGATE":
        return next(chr(code) for code in range(97, 123) if not re.fullmatch(_class(choices[1:]), chr(code)))
    kind, value = choices[more % len(choices)]
    if str(kind) == "RANGE":
        return chr(min(value[0] + more, value[1]))
    return _SPACES[str(value)] if str(kind) == "CATEGORY" else chr(value)


def _class(choices: Sequence[Any]) -> str:
    parts = [
        f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}" if str(kind) == "RANGE" else re.escape(chr(value))
        for kind, value in choices
        if str(kind) in {"RANGE", "LITERAL"}
    ]
    return f"[{''.join(parts)}]"
