"""Every example in a docstring runs, and every aggregate and window that users write has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re

import pytest

import featurestore
from featurestore.algebra import AGGREGATES

WINDOWS = ("Exact", "Hopping", "Lifetime", "Sawtooth", "Series", "Tumbling")
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(featurestore.__path__, "featurestore.")
    if not name.endswith("__main__") and not name.startswith("featurestore._")
)


def examples(module):
    """Return the examples of a module, docstring by docstring."""
    return [
        found for found in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__) if found.examples
    ]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    runner = doctest.DocTestRunner(verbose=False)
    said = []
    for example in examples(importlib.import_module(name)):
        runner.run(example, out=said.append)
    assert not runner.summarize(verbose=False).failed, "".join(said)


@pytest.mark.parametrize("name", [*AGGREGATES, *WINDOWS])
def test_an_aggregate_or_window_shows_a_value(name):
    """An example of its own docstring, that makes the thing itself and states what comes out."""
    found = getattr(featurestore, name)
    shown = doctest.DocTestParser().get_examples(found.__doc__ or "")
    assert any(re.search(rf"\b{name}\(", example.source) for example in shown), f"{name} has no example"
    assert any(example.want for example in shown), f"the example of {name} states no result"


def test_an_example_that_is_wrong_is_found():
    spoilt = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "spoilt", None, 0)
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(spoilt, out=said.append).failed == 1
    assert said
