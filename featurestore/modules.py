"""Loading the module of definitions that a project's settings name; whatever goes wrong in it is told with file and line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import DefinitionError, FeatureStoreError

if TYPE_CHECKING:
    from types import CodeType, ModuleType

    from featurestore.config import Settings


def load_module(settings: Settings) -> ModuleType:
    """Return the module that ``settings.definitions`` names, imported afresh from its file or by its name.

    Raises:
        DefinitionError: It does not exist or fails; the message names file and line.
    """
    named = settings.definitions
    if named.endswith(".py") or "/" in named:
        path = settings.root / Path(named).expanduser()
        if not path.is_file():
            raise DefinitionError(
                f"definitions {path} does not exist.", hint="write one with featurestore init, or correct definitions."
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
    else:
        path = None
        with _importable(settings.root):
            try:
                spec = importlib.util.find_spec(named)
            except (ImportError, ValueError):
                spec = None
    if spec is None or spec.loader is None:
        raise DefinitionError(
            f"definitions module {named!r} cannot be found from {settings.root}.",
            hint='name a file, definitions = "features.py", or an importable module.',
        )
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _FromSource(spec.loader.name, spec.loader.path)
    module = importlib.util.module_from_spec(spec)
    with _importable(path.parent if path else settings.root):
        try:
            spec.loader.exec_module(module)
        except FeatureStoreError as error:
            place = _place(error, spec.origin)
            raise type(error)(f"{place}: {error.message}", hint=error.hint, **error.context) from error
        except Exception as error:  # whatever the user's own code raises
            what = " ".join(str(error).split())[:300]
            raise DefinitionError(f"{_place(error, spec.origin)}: {type(error).__name__}: {what}.") from error
    return module


class _FromSource(SourceFileLoader):
    """Compiles the file as it is now: a bytecode cache takes an edit of equal size within one second for no edit."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


class _importable:  # noqa: N801 - reads as a statement
    """Puts a folder first on the import path for the duration of a ``with`` block."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __enter__(self) -> None:
        sys.path.insert(0, self._folder)

    def __exit__(self, *_: object) -> None:
        sys.path.remove(self._folder)


def _place(error: Exception, file: str | None) -> str:
    """Return "features.py, line 12": the last line of the user's file that led to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines else str(file)
