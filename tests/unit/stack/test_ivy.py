"""What Ivy is asked for, what its output means, and what is shown meanwhile."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from featurestore.stack.ivy import Progress, explain_failure, ivy_file

DOWNLOADING = (
    ":: resolving dependencies :: a#b;working\n\tconfs: [default]\n"
    "\tfound io.delta#delta-storage;4.4.0 in public\n\tfound org.slf4j#slf4j-api;2.0.13 in public\n"
    "downloading http://registry/delta-storage-4.4.0.jar ...\n........ (2048kB)\n.. (0kB)\n"
    "\t[SUCCESSFUL ] io.delta#delta-storage;4.4.0!delta-storage.jar (148ms)\n"
)

UNREACHABLE = (
    "\t\tUNRESOLVED DEPENDENCIES\n\t:: io.delta#delta-spark_4.2_2.13;4.4.0: not found\n"
    ":::: ERRORS\n\tServer access error at url https://registry/x.pom (java.net.ConnectException: Connection refused)\n"
)
ABSENT = "\t\tUNRESOLVED DEPENDENCIES\n\t:: io.delta#delta-spark_4.2_2.13;9.9.9: not found\n"


def test_the_ivy_file_names_what_is_wanted_and_what_is_there() -> None:
    root = ET.fromstring(ivy_file("jars", ["g:a:1", "h:b:2"], {"there-b", "there-a"}))
    assert [(d.get("org"), d.get("name"), d.get("rev")) for d in root.iter("dependency")] == [
        ("g", "a", "1"),
        ("h", "b", "2"),
    ]
    assert [e.get("module") for e in root.iter("exclude")] == ["there-a", "there-b"]


@pytest.mark.parametrize("cut", [1, 7, 64, 10_000])
def test_progress_is_the_same_however_the_output_is_cut(cut: int) -> None:
    progress = Progress()
    for at in range(0, len(DOWNLOADING), cut):
        progress.read(DOWNLOADING[at : at + cut])
    assert (progress.found, progress.jars, progress.kilobytes) == (2, 1, 2048)
    assert str(progress) == "1 jars, 2 MB"


def test_progress_says_resolving_until_the_first_jar_is_there() -> None:
    progress = Progress()
    progress.read(DOWNLOADING[: DOWNLOADING.index("downloading")])
    assert str(progress) == "resolving, 2 modules"


def test_a_registry_that_does_not_answer_is_not_an_artifact_that_is_absent() -> None:
    unreachable, absent = explain_failure(UNREACHABLE), explain_failure(ABSENT)
    assert "cannot be reached" in unreachable.message
    assert "Connection refused" in unreachable.message
    assert "FEATURESTORE_IVY_SETTINGS" in (unreachable.hint or "")
    assert "does not have io.delta#delta-spark_4.2_2.13;9.9.9" in absent.message


def test_the_settings_file_is_named_when_its_registry_does_not_answer() -> None:
    assert (
        "the registry of /etc/mirror.xml cannot be reached"
        in explain_failure(UNREACHABLE, settings="/etc/mirror.xml").message
    )


def test_another_failure_shows_the_end_of_the_output() -> None:
    assert "no such option | see usage" in explain_failure("no such option\n\nsee usage\n").message
    assert "printed nothing" in explain_failure("").message
