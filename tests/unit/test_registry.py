"""Definitions as a set, their differences, and the registry that keeps them in a real Delta table."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView, Last, Sum
from featurestore.definitions.contract import Contract
from featurestore.definitions.registry import Definitions, collect, diff
from featurestore.errors import (
    DefinitionError,
    DuplicateNameError,
    OfflineError,
    OfflineStoreUnavailableError,
    UnknownNameError,
)
from featurestore.offline.registry import DeltaRegistry
from featurestore.timeline import VirtualClock

CONTRACT = Contract.from_json(
    '{"type": "object", "required": ["at", "card", "shop", "amount"], "properties": {"at": {"type": "string", "format": '
    '"date-time"}, "card": {"type": "string"}, "shop": {"type": "string"}, "amount": {"type": "number"}}}',
    "payment",
)
CARD = Entity("card", keys={"card": "string"})
SHOP = Entity("shop", keys={"shop": "string"})
PAYMENTS = EventSource("payments", topic="payments", schema=CONTRACT, event_time="at")
SPEND = FeatureView(
    "spend", entity=CARD, source=PAYMENTS, features={"z": Sum("amount").over("1h"), "a": Count().over("1h")}
)
SHOPS = FeatureView("shops", entity=SHOP, source=PAYMENTS, features={"last": Last("amount").over("lifetime")})
FRAUD = FeatureService("fraud", [SPEND, SHOPS])
BOTH = Definitions.of([FRAUD])


def shown(changes):
    return [f"{change.action} {change.kind} {change.name}" for change in changes]


def test_a_service_brings_along_all_it_refers_to():
    assert list(BOTH.entities) == ["card", "shop"]
    assert list(BOTH.sources) == ["payments"]
    assert BOTH.service("fraud") is FRAUD
    assert len(BOTH) == 6


def test_a_module_gives_its_globals_and_an_empty_one_is_refused():
    assert collect(SimpleNamespace(spend=SPEND, x=3, shops=SHOPS)).views.keys() == {"spend", "shops"}
    with pytest.raises(DefinitionError, match="defines no entity"):
        collect(SimpleNamespace(x=3))
    with pytest.raises(DefinitionError, match="is no definition"):
        Definitions.of(["fraud"])


def test_two_different_definitions_of_one_name_are_refused_and_two_equal_ones_are_one():
    assert len(Definitions.of([CARD, Entity("card", keys={"card": "string"})])) == 1
    with pytest.raises(DuplicateNameError, match="two different entities are called 'card'"):
        Definitions.of([CARD, Entity("card", keys={"card": "int64"})])


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(UnknownNameError, match=r"no service 'frod'.*did you mean 'fraud'"):
        BOTH.service("frod")
    with pytest.raises(UnknownNameError, match="no view 'x'"):
        BOTH.view("x")
    with pytest.raises(UnknownNameError, match="run featurestore apply first"):
        Definitions().service("fraud")


def test_definitions_survive_as_data_in_the_users_order():
    again = Definitions.from_dict(BOTH.to_dict())
    assert again == BOTH
    assert again.service("fraud").feature_ids == ("spend.z_1h", "spend.a_1h", "shops.last_lifetime")
    assert diff(BOTH, again) == ()


def test_a_reference_to_nothing_is_refused():
    data = BOTH.to_dict()
    del data["view"]["shops"]
    with pytest.raises(UnknownNameError, match="service fraud refers to view 'shops', which is not defined"):
        Definitions.from_dict(data)


def test_the_difference_names_what_was_added_changed_and_removed():
    changed = replace(SPEND, features={"z": Sum("amount").over("2h")})
    new = Definitions.of([FeatureService("fraud", [changed]), FeatureService("more", [changed])])
    assert shown(diff(BOTH, new)) == [
        "removed entity shop",
        "removed view shops",
        "changed view spend",
        "changed service fraud",
        "added service more",
    ]
    assert all(change.is_meaning_changed for change in diff(BOTH, new))


def test_a_changed_note_is_a_change_without_a_change_of_meaning():
    (change,) = diff(BOTH, BOTH.updated(Definitions.of([replace(CARD, description="plastic")])))
    assert str(change) == "~ entity card (notes only)"
    assert not change.is_meaning_changed


def test_an_update_replaces_by_name_wherever_the_name_is_used():
    changed = replace(SPEND, features={"z": Sum("amount").over("2h")})
    updated = BOTH.updated(Definitions.of([changed]))
    assert updated.service("fraud").views[0] == changed
    assert set(updated.views) == {"spend", "shops"}


def test_what_was_applied_is_read_back_by_another_registry(tmp_path):
    assert len(DeltaRegistry(tmp_path / "not/yet").load()) == 0
    assert len(DeltaRegistry(tmp_path / "not/yet").apply(BOTH)) == 6
    assert DeltaRegistry(tmp_path / "not/yet").load() == BOTH


def test_applying_the_same_again_changes_nothing(tmp_path):
    registry = DeltaRegistry(tmp_path)
    registry.apply(BOTH)
    assert registry.apply(BOTH) == ()
    assert len(registry.history()) == 6


def test_history_keeps_every_state_and_a_removal_is_a_row_of_its_own(tmp_path):
    clock = VirtualClock(1_000)
    registry = DeltaRegistry(tmp_path, clock=clock)
    registry.apply(BOTH)
    clock.advance_to(2_000)
    only = Definitions.of([FeatureService("fraud", [SPEND])])
    assert shown(registry.apply(only)) == ["removed entity shop", "removed view shops", "changed service fraud"]
    assert registry.load() == only
    assert shown(registry.apply(BOTH)) == ["added entity shop", "added view shops", "changed service fraud"]
    assert registry.load() == BOTH
    records = registry.history()
    assert [record.version for record in records] == [1] * 6 + [2] * 3 + [3] * 3
    removed = [record for record in records if record.definition is None]
    assert [(each.kind, each.name, each.applied_at, each.fingerprint) for each in removed] == [
        ("entity", "shop", 2_000, None),
        ("view", "shops", 2_000, None),
    ]
    assert removed[0].to_dict()["applied_at"] == "1970-01-01T00:00:00.002000Z"


class Overtaken(DeltaRegistry):
    """Lets somebody else apply between this one's read and its commit."""

    def __init__(self, root, rival, definitions):
        super().__init__(root)
        self._rival = (rival, definitions)

    def _append(self, table, rows, version):
        rival, definitions = self._rival
        rival.apply(definitions)
        super()._append(table, rows, version)


@pytest.mark.parametrize("before", [Definitions(), Definitions.of([CARD])], ids=["first apply", "later apply"])
def test_of_two_applies_at_once_the_second_fails_and_changes_nothing(tmp_path, before):
    registry = DeltaRegistry(tmp_path)
    registry.apply(before)
    theirs = Definitions.of([SPEND])
    with pytest.raises(OfflineError, match="somebody else applied") as caught:
        Overtaken(tmp_path, registry, theirs).apply(BOTH)
    assert caught.value.hint is not None
    assert registry.load() == theirs
    assert shown(registry.apply(BOTH))[-1] == "added service fraud"


@pytest.mark.parametrize("round_", range(5))
def test_of_many_applies_at_once_no_two_make_one_version(tmp_path, round_):
    won, lost, start = [], [], threading.Barrier(4)

    def apply(number):
        start.wait()
        try:
            won.append(DeltaRegistry(tmp_path).apply(Definitions.of([replace(CARD, description=str(number))])))
        except OfflineError as error:
            lost.append(error)

    threads = [threading.Thread(target=apply, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(lost) == 4
    assert won, "a loser's creation was in the winner's way"
    assert all("somebody else applied" in str(error) for error in lost)
    versions = [record.version for record in DeltaRegistry(tmp_path).history()]
    assert versions == list(range(1, len(won) + 1))


def test_a_table_that_is_something_else_is_named(tmp_path):
    (tmp_path / "registry/_delta_log").mkdir(parents=True)
    (tmp_path / "registry/_delta_log/00000000000000000000.json").write_text("junk\n")
    with pytest.raises(OfflineStoreUnavailableError, match=r"registry .* cannot be read"):
        DeltaRegistry(tmp_path).load()


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OfflineStoreUnavailableError, match=r"registry .*file"):
        DeltaRegistry(tmp_path / "file").apply(BOTH)
