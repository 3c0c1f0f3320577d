"""The documentation agrees with the code: generated pages are current, examples run, links and lists hold."""

from __future__ import annotations

import doctest
import re
import runpy
from pathlib import Path

import pytest

from featurestore import errors
from featurestore.cli.exits import exit_code

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def reference():
    return runpy.run_path(str(ROOT / "scripts/reference"), run_name="reference")


@pytest.mark.parametrize("name", ["api", "cli", "expressions"])
def test_the_reference_is_up_to_date(reference, name):
    written = (ROOT / f"docs/reference/{name}.md").read_text(encoding="utf-8")
    assert written == reference[name]().rstrip() + "\n", "run scripts/reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_examples_of_the_definitions_guide_run():
    outcome = doctest.testfile(str(ROOT / "docs/guide/definitions.md"), module_relative=False)
    assert outcome.attempted > 5
    assert not outcome.failed


def test_the_examples_of_the_checks_guide_run():
    outcome = doctest.testfile(str(ROOT / "docs/guide/checks.md"), module_relative=False)
    assert outcome.attempted > 15
    assert not outcome.failed


def test_the_guide_draws_the_whole_error_tree_with_the_exit_codes_of_the_command_line():
    text = (ROOT / "docs/guide/errors.md").read_text(encoding="utf-8")
    drawn = {name: int(code) for name, code in re.findall(r"─ (\w+)(?: \(\w+\))? +(\d)", text)}
    known = {
        name: exit_code(kind("x"))
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, errors.FeatureStoreError)
        and kind is not errors.FeatureStoreError
    }
    assert drawn == known


def test_the_changelog_and_the_contributing_page_are_what_a_reader_expects():
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").startswith("# Contributing\n\n```\nscripts/test")
