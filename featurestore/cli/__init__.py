"""The command line: ``featurestore VERB``. Arguments, exit codes and printing; the work is done elsewhere."""

from __future__ import annotations

from featurestore.cli.app import main

__all__ = ["main"]
