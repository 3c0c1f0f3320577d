from __future__ import annotations

import json
from dataclasses import replace

import pytest

from featurestore.algebra import ApproxQuantile, Count, Last, Lifetime, Mean, Min, Sawtooth, Sum, Windowed
from featurestore.datatypes import DataType
from featurestore.definitions.contract import Contract
from featurestore.definitions.entity import Entity, check_name
from featurestore.definitions.layout import ViewLayout
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.errors import (
    ContractError,
    DefinitionError,
    DuplicateNameError,
    ExpressionError,
    FeatureStoreError,
    UnknownNameError,
    WindowError,
)
from featurestore.timeline import DAY, HOUR, MINUTE

FIELDS = {
    "transaction_id": {"type": "string"},
    "card_id": {"type": "string"},
    "account": {"type": "integer"},
    "amount": {"type": "number"},
    "fx_rate": {"type": ["number", "null"]},
    "status": {"type": "string"},
    "fraud": {"type": "boolean"},
    "event_time": {"type": "string", "format": "date-time"},
}


def contract(**changes):
    fields = {**FIELDS, **changes}
    return Contract.from_json(
        json.dumps({"type": "object", "properties": fields, "required": list(fields)}), "transaction"
    )


def source(**options):
    given = {"name": "transactions", "topic": "transactions", "schema": contract(), "event_time": "event_time"}
    return EventSource(**{**given, **options})


CARD = Entity("card", keys={"card_id": "string"})


def view(**options):
    given = {
        "name": "card_spend",
        "entity": CARD,
        "source": source(),
        "where": "status = 'approved'",
        "features": {
            "n": Count().over("5m", "1h", "24h"),
            "spend": Sum("amount * fx_rate", where="amount > 0").over("1h", "7d"),
            "mean": Mean("amount").over("7d", "lifetime"),
            "last": Last("event_time").over("lifetime"),
        },
    }
    return FeatureView(**{**given, **options})


# ------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a", "card_id", "x" * 63, "a1_"])
def test_a_usable_name_is_returned(name):
    assert check_name(name, "view") == name


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "_a", "a-b", "a.b", "a b", "a\n", "ä", "x" * 64, None, 5, "a:b", "a{b}", "a@b", "a/b"]
)
def test_a_name_that_cannot_stand_in_a_key_or_path_is_refused(name):
    with pytest.raises(DefinitionError, match="view name"):
        check_name(name, "view")


@pytest.mark.parametrize(
    "define",
    [
        lambda: Entity("Card", keys={"card_id": "string"}),
        lambda: Entity("card", keys={"Card": "string"}),
        lambda: source(name="a b"),
        lambda: view(name="a.b"),
        lambda: view(features={"Spend": Count().over("1h")}),
        lambda: FeatureService("v1!", [view()]),
    ],
)
def test_every_definition_checks_its_name(define):
    with pytest.raises(DefinitionError, match="name"):
        define()


# ------------------------------------------------------------------------------------------------------ entity


@pytest.mark.parametrize("keys", [{}, None, ["card_id"], "card_id"])
def test_an_entity_needs_key_columns(keys):
    with pytest.raises(DefinitionError, match="names no key column"):
        Entity("card", keys=keys)


@pytest.mark.parametrize("kind", ["float64", "text", None, "STRING"])
def test_a_key_has_a_type_that_can_be_a_key(kind):
    with pytest.raises(DefinitionError, match="allowed are string, int64, bool, timestamp"):
        Entity("card", keys={"card_id": kind})


# ------------------------------------------------------------------------------------------------------ source


@pytest.mark.parametrize("topic", ["", "a b", "ä", "a/b", "x" * 250])
def test_a_topic_is_a_kafka_topic_name(topic):
    with pytest.raises(DefinitionError, match="topic"):
        source(topic=topic)


def test_an_event_time_is_a_field_and_a_time():
    with pytest.raises(UnknownNameError, match="did you mean 'event_time'"):
        source(event_time="event_tim")
    with pytest.raises(UnknownNameError, match="did you mean 'transaction_id'"):
        source(event_id="transaction")
    with pytest.raises(DefinitionError, match="amount' is float64"):
        source(event_time="amount")
    assert source(event_time="account").event_time == "account"


@pytest.mark.parametrize("option", ["allowed_skew", "late_after"])
def test_durations_of_a_source_are_checked(option):
    with pytest.raises(DefinitionError, match="duration"):
        source(**{option: "soon"})


def test_a_schema_that_cannot_be_read_is_a_contract_error(tmp_path):
    with pytest.raises(ContractError, match="cannot be read"):
        source(schema=tmp_path / "none" / "v1.json")


def test_a_schema_is_loaded_from_its_path(tmp_path):
    path = tmp_path / "transaction" / "v2.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"type": "object", "properties": FIELDS, "required": list(FIELDS)}))
    assert source(schema=path).contract == replace(contract(), version=2)
    assert source(schema=str(path)).contract.columns["amount"] == DataType.FLOAT64


# -------------------------------------------------------------------------------------------------------- view


def test_a_key_column_that_the_source_lacks_is_named_with_the_closest():
    with pytest.raises(UnknownNameError, match=r"'card_ids'.*did you mean 'card_id'"):
        view(entity=Entity("card", keys={"card_ids": "string"}))


def test_a_key_column_of_another_type_is_refused():
    with pytest.raises(DefinitionError, match="'account' is string in entity card but int64 in contract transaction"):
        view(entity=Entity("card", keys={"account": "string"}))


def test_an_unknown_column_is_refused_with_the_closest():
    for wrong in (
        {"features": {"n": Sum("amuont").over("1h")}},
        {"features": {"n": Count(where="amuont > 0").over("1h")}},
        {"where": "amuont > 0"},
    ):
        with pytest.raises((UnknownNameError, ExpressionError), match=r"amuont.*did you mean 'amount'"):
            view(**wrong)


@pytest.mark.parametrize("features", [{}, None, [], [Count().over("1h")]])
def test_a_view_needs_features(features):
    with pytest.raises(DefinitionError, match="defines no feature"):
        view(features=features)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Count(), "has no window"),
        ("count", "is not an aggregate over windows"),
        (Sum("status").over("1h"), "status' is string"),
        (Mean("event_time").over("1h"), "event_time' is timestamp"),
        (ApproxQuantile("card_id").over("1h"), "card_id' is string"),
        (Sum("amount", where="amount").over("1h"), "must be bool"),
    ],
)
def test_a_feature_that_means_nothing_is_refused_by_name(feature, message):
    with pytest.raises(DefinitionError, match=message) as caught:
        view(features={"wrong": feature})
    assert "card_spend.wrong" in str(caught.value)


def test_a_condition_that_is_not_a_condition_is_refused():
    with pytest.raises(DefinitionError, match="must be bool"):
        view(where="amount + 1")


def test_two_features_of_one_full_name_are_refused():
    with pytest.raises(DuplicateNameError, match=r"card_spend\.n_1h_1h"):
        view(
            features={
                "n": Windowed(Count(), (Sawtooth("1h"), replace(Sawtooth("1h"), label="1h_1h"))),
                "n_1h": Count().over("1h"),
            }
        )


def test_a_window_in_two_units_makes_two_names_of_one_value():
    twice = view(features={"n": Count().over("1h", "60m")})
    assert twice.layout.feature_ids == ("card_spend.n_1h", "card_spend.n_60m")
    assert len(twice.layout.measures) == len(twice.layout.parts[0].ladders) == 1


def test_wrong_windows_are_refused_while_defining():
    with pytest.raises(WindowError):
        Count().over(Sawtooth("1h", hop="7m"))


# ------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_ignores_what_has_no_meaning():
    plain = view()
    same = [
        view(owner="fraud-team", description="of one card"),
        view(where="status   =  'approved'"),
        view(features={**plain.features, "spend": Sum("amount*fx_rate", where="amount>0").over("1h", "7d")}),
        view(source=source(description="all of them", late_after="9m")),
        view(entity=Entity("card", keys={"card_id": "string"}, description="plastic")),
        view(source=source(schema=contract(more={"type": "string"}))),
    ]
    assert {each.fingerprint for each in same} == {plain.fingerprint}
    assert len(plain.fingerprint) == 16
    int(plain.fingerprint, 16)


def test_the_fingerprint_follows_every_change_of_meaning():
    plain = view()
    features = dict(plain.features)
    changed = [
        view(where=None),
        view(where="status = 'declined'"),
        view(where="status = 'Approved'"),
        view(entity=Entity("card", keys={"account": "int64"})),
        view(entity=Entity("card", keys={"card_id": "string", "account": "int64"})),
        view(entity=Entity("card", keys={"account": "int64", "card_id": "string"})),
        view(source=source(topic="other")),
        view(source=source(event_time="account")),
        view(source=source(schema=contract(amount={"type": "integer"}))),
        view(features={**features, "n": Count().over("5m", "1h", "48h")}),
        view(features={**features, "n": Count().over("5m", "1h", Sawtooth("24h", hop="1h"))}),
        view(features={**features, "n": Count("fx_rate").over("5m", "1h", "24h")}),
        view(features={**features, "n": Count(where="fraud").over("5m", "1h", "24h")}),
        view(features={**features, "mean": Min("amount").over("7d", "lifetime")}),
        view(features={**features, "mean": Mean("amount + 1").over("7d", "lifetime")}),
        view(features={**features, "more": Count().over("1h")}),
        view(features=dict(reversed(features.items()))),
    ]
    fingerprints = [plain.fingerprint, *(each.fingerprint for each in changed)]
    assert len(set(fingerprints)) == len(fingerprints)


def test_white_space_changes_neither_the_fingerprint_nor_what_is_stored():
    """Views of one fingerprint read each other's bytes, so their layouts must be one."""
    tidy = view(features={"a": Sum("amount * fx_rate").over("1h"), "b": Mean("amount * fx_rate").over("1h")})
    wild = view(features={"a": Sum("amount*fx_rate").over("1h"), "b": Mean(" amount  * fx_rate").over("1h")})
    assert tidy.fingerprint == wild.fingerprint
    assert len(tidy.layout.measures) == len(wild.layout.measures) == 1
    assert tidy.layout.slots == wild.layout.slots
    assert [part.to_dict() for part in tidy.layout.parts] == [part.to_dict() for part in wild.layout.parts]


def test_a_changed_input_type_changes_the_fingerprint_because_the_stored_bytes_change():
    floats = view(features={"s": Sum("amount").over("1h")})
    integers = view(
        features={"s": Sum("amount").over("1h")}, source=source(schema=contract(amount={"type": "integer"}))
    )
    assert floats.layout.slots != integers.layout.slots
    assert floats.fingerprint != integers.fingerprint


# ------------------------------------------------------------------------------------------------------ layout


def test_a_layout_shares_measures_and_sorts_ladders():
    layout = view().layout
    assert [type(m).__name__ for m in layout.measures] == ["Count", "Sum", "Mean", "Last"]
    assert [(ladder.hop, ladder.reach, ladder.measures) for ladder in layout.parts[0].ladders] == [
        (15_000_000, 5 * MINUTE, (0,)),
        (5 * MINUTE, HOUR, (0, 1)),
        (2 * HOUR, 24 * HOUR, (0,)),
        (12 * HOUR, 7 * DAY, (1, 2)),
        (None, None, (2, 3)),
    ]
    assert layout.parts[0].tile == 15_000_000
    assert layout.parts[0].reach is None
    assert layout.feature_ids == (
        "card_spend.n_5m", "card_spend.n_1h", "card_spend.n_24h", "card_spend.spend_1h", "card_spend.spend_7d",
        "card_spend.mean_7d", "card_spend.mean_lifetime", "card_spend.last_lifetime",
    )  # fmt: skip


def test_sum_and_mean_of_one_input_share_a_partial():
    layout = view(features={"s": Sum("amount").over("1h"), "m": Mean("amount").over("24h")}).layout
    assert len(layout.measures) == 1
    assert [feature.aggregate.result_type for feature in layout.features] == [DataType.FLOAT64, DataType.FLOAT64]
    assert [type(feature.aggregate).__name__ for feature in layout.features] == ["Sum", "Mean"]


def test_the_tile_divides_every_hop():
    layout = view(features={"n": Count().over(Sawtooth("40s", hop="10s"), Sawtooth("1m", hop="4s"), "lifetime")}).layout
    assert layout.parts[0].tile == 2_000_000


def test_a_lifetime_only_view_has_tiles_of_a_day():
    layout = view(features={"n": Windowed(Count(), (Lifetime(),))}).layout
    assert (layout.parts[0].tile, layout.parts[0].reach) == (DAY, None)


def test_the_reach_is_the_longest_look_back_with_its_hop():
    assert view(features={"n": Count().over("1h", "5m")}).layout.parts[0].reach == HOUR + 5 * MINUTE


# -------------------------------------------------------------------------------------------------- round trips


def through_json(data):
    return json.loads(json.dumps(data))


def test_an_entity_survives_being_data():
    both = Entity("trip", keys={"b": "int64", "a": "string"}, description="composite")
    twin = Entity.from_dict(through_json(both.to_dict()))
    assert twin == both
    assert list(twin.keys) == ["b", "a"]


def test_a_source_survives_being_data():
    full = source(event_id="transaction_id", allowed_skew="90s", late_after="2m", description="d")
    twin = EventSource.from_dict(through_json(full.to_dict()))
    assert twin.to_dict() == full.to_dict()
    assert (twin.allowed_skew_us, twin.late_after_us) == (90_000_000, 120_000_000)
    assert twin == EventSource.from_dict(through_json(twin.to_dict()))


def test_a_view_survives_being_data():
    full = view(owner="o", description="d")
    twin = FeatureView.from_dict(through_json(full.to_dict()), {"card": CARD}, {"transactions": full.source})
    assert twin == full
    assert twin.fingerprint == full.fingerprint
    assert twin.layout == full.layout
    assert twin.layout.feature_ids == full.layout.feature_ids


def test_a_layout_survives_being_data():
    layout = view().layout
    twin = ViewLayout.from_dict(through_json(layout.to_dict()))
    assert twin == layout
    assert twin.feature_ids == layout.feature_ids
    assert [feature.window.label for feature in twin.features] == [feature.window.label for feature in layout.features]


def test_a_service_survives_being_data():
    one = view()
    service = FeatureService("fraud_v1", [one], description="d")
    twin = FeatureService.from_dict(through_json(service.to_dict()), {one.name: one})
    assert twin == service
    assert twin.fingerprint == service.fingerprint


# ----------------------------------------------------------------------------------------------------- service


def other(**options):
    return view(**{"name": "account_spend", "entity": Entity("account", keys={"account": "int64"}), **options})


def test_a_service_is_its_views_in_order():
    both = FeatureService("fraud_v1", [view(), other()])
    assert both.feature_ids == view().layout.feature_ids + other().layout.feature_ids
    assert both.keys == {"card_id": DataType.STRING, "account": DataType.INT64}
    assert [each.name for each in both.sources] == ["transactions"]
    turned = FeatureService("fraud_v1", [other(), view()])
    assert turned.fingerprint != both.fingerprint


@pytest.mark.parametrize("views", [[], None, [CARD], [None]])
def test_a_service_needs_views(views):
    with pytest.raises(DefinitionError, match="is not a list of feature views"):
        FeatureService("s", views)


def test_a_service_refuses_a_view_instead_of_a_list():
    with pytest.raises(FeatureStoreError):
        FeatureService("s", view())


def test_a_service_refuses_one_name_for_two_things():
    with pytest.raises(DuplicateNameError, match="view card_spend twice"):
        FeatureService("s", [view(), view()])
    with pytest.raises(DuplicateNameError, match="two different entity definitions called card"):
        FeatureService("s", [view(), other(entity=Entity("card", keys={"account": "int64"}))])
    with pytest.raises(DuplicateNameError, match="two different source definitions called transactions"):
        FeatureService("s", [view(), other(source=source(topic="others"))])


def test_a_service_refuses_one_key_column_of_two_types():
    twisted = source(name="twisted", schema=contract(card_id={"type": "integer"}))
    numbered = other(entity=Entity("number", keys={"card_id": "int64"}), source=twisted)
    with pytest.raises(DefinitionError, match="key 'card_id' is both string and int64"):
        FeatureService("s", [view(), numbered])
