"""What all tests of the command line use."""

from __future__ import annotations

import pytest

from featurestore.cli import main


@pytest.fixture
def run(capsys):
    """Run a command line; return its exit code, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return code, out, err

    return call
