from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import pytest

from featurestore import errors
from featurestore.errors import FeatureStoreError, did_you_mean

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FeatureStoreError)]


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Return class -> (parent, builtin it also is) from the tree in the module's docstring."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)(?: \((\w+)\))?", line)
        if found:
            depth = len(found[1]) // 4
            del path[depth:]
            tree[found[2]] = (path[-1] if path else None, found[3])
            path.append(found[2])
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    real = {}
    for kind in CLASSES:
        ours = [base.__name__ for base in kind.__bases__ if issubclass(base, FeatureStoreError)]
        foreign = [base.__name__ for base in kind.__bases__ if base.__name__ in dir(builtins) and base is not Exception]
        real[kind.__name__] = (ours[0] if ours else None, foreign[0] if foreign else None)
    assert drawn() == real


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_whole(kind, protocol):
    error = kind("what happened.", hint="do this.", topic="t", offset=7)
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(twin) is kind
        assert (twin.message, twin.hint, twin.context) == ("what happened.", "do this.", {"topic": "t", "offset": 7})
        assert str(twin) == str(error) == "what happened. Hint: do this."


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_is_what_its_builtin_bases_promise(kind):
    error = kind("bare.")
    assert str(error) == "bare."
    assert error.hint is None
    assert error.context == {}
    for base in (ValueError, LookupError, ConnectionError, TimeoutError):
        if issubclass(kind, base):
            assert isinstance(error, base)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_says_what_it_is_in_one_sentence(kind):
    assert kind.__doc__
    assert kind.__doc__.strip().splitlines()[0].endswith(".")


def test_hints_name_the_closest_name_or_what_exists():
    assert did_you_mean("spent", ["spend", "merchant"]) == "did you mean 'spend'?"
    assert did_you_mean("zzz", ["b", "a"], what="views") == "known views: a, b."
    assert did_you_mean("zzz", [], what="views") == "there are no views yet."
    assert did_you_mean("zzz", [f"n{i:02}" for i in range(20)]).endswith("n11, ....")
