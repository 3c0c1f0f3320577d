"""Texts for contracts with bounds."""

from __future__ import annotations

import re

import pytest

from featurestore.datatypes import DataType
from featurestore.definitions.contract import ContractField
from featurestore.errors import DefinitionError
from featurestore.testing.texts import fitting_texts


def field(**bounds):
    return ContractField("f", DataType.STRING, nullable=False, bounds=bounds)


@pytest.mark.parametrize(
    "pattern",
    [
        "^[A-Z]{2}[0-9]{6}$", r"^\d{4}-\d{2}$", "^(card|acct)_[a-f0-9]+$", "^.+@.+$", "^[^a-y]$", "^a?b*c$",
        r"^\w+\s\w+$", "x", "^(a|b|c)(?:d|e)$",
    ],
)  # fmt: skip
def test_a_pattern_is_matched(pattern):
    texts = fitting_texts(field(pattern=pattern), ["", "a"])
    assert texts
    assert all(re.search(pattern, text) for text in texts)


@pytest.mark.parametrize(("low", "high"), [(1, 5), (3, 3), (20, 30), (0, 1)])
def test_lengths_are_kept(low, high):
    texts = fitting_texts(field(minLength=low, maxLength=high), ["", "a", "abcdefgh"])
    assert texts
    assert all(low <= len(text) <= high for text in texts)


def test_what_cannot_be_matched_is_named():
    with pytest.raises(DefinitionError, match="field f: no text is known"):
        fitting_texts(field(pattern="(?=b)a"), ["a"])
