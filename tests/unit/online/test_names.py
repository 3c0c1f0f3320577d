"""The names that compiled code writes as a command are those that Python makes, one entity at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import FeatureService
from featurestore.errors import DefinitionError
from featurestore.online.keys import KeySpace
from featurestore.online.loading import LOADING
from featurestore.online.names import StoreNames
from featurestore.online.packed import PackedNames
from featurestore.online.plan import LookupPlan
from featurestore.online.redis_socket import pack, pack_read
from tests.conformance.cases import EXACT, MANY
from tests.effort import tries

TEXTS = st.text("abc0}\x01:\x7f", max_size=12) | st.sampled_from(["", "x" * 300, "\0", "a\0b", "é", "\ud800"])


def names_of(*views):
    plan = LookupPlan.of(FeatureService("s", list(views)))
    return StoreNames(KeySpace("p"), plan, ["one", "two"])


SERVICES = [names_of(MANY), names_of(MANY, EXACT)]


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    LOADING.begin()
    LOADING.wait()
    assert LOADING.code is not None


def outcome(names, texts):
    try:
        return list(names.of([{"card_id": text} for text in texts]))
    except DefinitionError as error:
        return error.message


@settings(max_examples=tries(200), deadline=None)
@given(st.sampled_from(SERVICES), st.lists(TEXTS, min_size=8, max_size=20))
def test_many_names_are_those_of_each_entity(names, texts):
    alone = [outcome(names, [text]) for text in texts]
    refusals = [each for each in alone if isinstance(each, str)]
    expected = refusals[0] if refusals else [name for each in alone for name in each[:-2]] + alone[0][-2:]
    assert outcome(names, texts) == expected


@settings(max_examples=tries(200), deadline=None)
@given(st.text("abc0}\x01:\x7f\0", max_size=300))
def test_one_name_is_sent_as_any_command_is(text):
    found = SERVICES[0].of([{"card_id": text}])
    assert isinstance(found, PackedNames)
    assert pack_read(found) == pack((b"MGET", *found))
    (name, *_), among = found, list(SERVICES[0].of([{"card_id": each} for each in (text, "é")]))  # not as they are sent
    assert list(found) == [name, *among[2:]]
    assert among[0] == name
    assert len(found) == 3


@settings(max_examples=tries(200), deadline=None)
@given(st.sampled_from(SERVICES), st.lists(st.text("abc0}\x01:\x7f", max_size=200), min_size=8, max_size=120))
def test_they_are_sent_as_any_command_is(names, texts):
    found = names.of([{"card_id": text} for text in texts])
    assert isinstance(found, PackedNames)
    assert pack_read(found) == pack((b"MGET", *found))
    assert len(found) == len(list(found))


@pytest.mark.parametrize("key", [1, None, b"c", 1.5])
def test_another_type_is_refused_among_many(key):
    entities = [{"card_id": "c"} for _ in range(20)] + [{"card_id": key}]
    if key is None:  # null is a key
        assert list(SERVICES[0].of(entities))[20] == next(iter(SERVICES[0].of(entities[20:])))
        return
    with pytest.raises(DefinitionError, match="expected string"):
        SERVICES[0].of(entities)
