"""Features of read time, as definitions: what is refused, what a fingerprint says, and that they are data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from featurestore.algebra import Count, LastK, Sum
from featurestore.datatypes import DataType
from featurestore.definitions.derived import Derived, Ratio, RequestFeature, node_from_data, node_to_data
from featurestore.definitions.expression import Expression
from featurestore.definitions.layout import ViewLayout
from featurestore.definitions.registry import Definitions, diff
from featurestore.definitions.service import FeatureService
from featurestore.errors import DefinitionError, DuplicateNameError, ExpressionError, UnknownNameError
from featurestore.online.lookup import LookupPlan
from tests.unit.definitions.test_definitions import source, view

FEATURES = {
    "n": Count().over("1h", "24h"),
    "declined": Count(where="status = 'declined'").over("1h"),
    "spend": Sum("amount").over("1h"),
    "amounts": LastK("amount", 3).over("1h"),
}


def derived(where=None, **features):
    return view(where=where, features={**FEATURES, **features})


def service(*features, views=None):
    return FeatureService("fraud", [*(views or [derived()]), *features])


def test_derived_features_keep_their_names_and_come_after_the_windowed_ones():
    made = derived(rate=Ratio("declined_1h", "n_1h"), late=Derived("n_24h - n_1h"), twice=Derived("late * 2.0"))
    assert made.layout.feature_ids[-3:] == ("card_spend.rate", "card_spend.late", "card_spend.twice")
    assert [made.layout.types[f"card_spend.{name}"] for name in ("rate", "late", "twice")] == [
        "float64",
        "int64",
        "float64",
    ]
    assert len(made.layout.features) == 5


@pytest.mark.parametrize(
    ("feature", "error", "message"),
    [
        (
            Ratio("declined", "n_1h"),
            UnknownNameError,
            r"card_spend.rate: .*'declined', which is no feature .*'declined_1h'",
        ),
        (Ratio("declined_1h", "nn"), UnknownNameError, "names 'nn', which is no feature of view card_spend"),
        (
            Derived("n_1h / amount"),
            ExpressionError,
            r"card_spend.rate: unknown column 'amount' at character 8.*windows",
        ),
        (Derived("n_1h || 'a'"), ExpressionError, r"\|\| takes string, not int64, at character 1"),
        (
            Derived("amounts_1h"),
            ExpressionError,
            "'amounts_1h' is list<float64>, and an expression takes single values",
        ),
        (Derived("amounts_1h = amounts_1h"), ExpressionError, "is list<float64>"),
        (Derived("rate + 1"), ExpressionError, "unknown column 'rate'"),
        (Derived("later + 1"), ExpressionError, "unknown column 'later'"),
        (Derived(""), ExpressionError, "is no expression"),
        (Derived("sum(n_1h)"), ExpressionError, "SUM is an aggregate"),
        ("n_1h / 2", DefinitionError, "is not an aggregate over windows"),
    ],
)
def test_what_a_derived_feature_cannot_be(feature, error, message):
    with pytest.raises(error, match=message):
        derived(rate=feature, later=Derived("n_1h"))


def test_a_name_means_one_feature_and_a_view_has_a_windowed_one():
    with pytest.raises(DuplicateNameError, match=r"two features would be called card_spend\.n_1h"):
        derived(n_1h=Derived("spend_1h"))
    with pytest.raises(DefinitionError, match="defines no feature over a window"):
        view(features={"rate": Derived("1")})


def test_what_is_stored_does_not_depend_on_what_is_derived():
    plain, one, other = derived(), derived(rate=Derived("n_1h / 2")), derived(rate=Derived("n_1h / 3"))
    assert len({each.layout.fingerprint for each in (plain, one, other)}) == 1
    assert len({each.fingerprint for each in (plain, one, other)}) == 3
    assert plain.fingerprint == plain.layout.fingerprint
    assert derived(rate=Derived("n_1h/2")).fingerprint == one.fingerprint
    assert derived(other=Derived("n_1h / 2")).fingerprint != one.fingerprint
    assert len({service(views=[each]).fingerprint for each in (plain, one, other)}) == 3
    (change,) = diff(Definitions.of([one]), Definitions.of([other]))
    assert change.action == "changed"
    assert change.is_meaning_changed


RATIO = RequestFeature("ratio", "amount / nullif(card_spend.spend_1h, 0)", request={"amount": "float64"})


def test_a_request_feature_names_features_keys_and_request_values():
    made = service(RATIO, RequestFeature("odd", "ratio > 3 and card_id like 'a%' and shop = 'x'", {"shop": "string"}))
    assert made.feature_ids[-2:] == ("ratio", "odd")
    assert made.request_values == {"amount": DataType.FLOAT64, "shop": DataType.STRING}
    assert [each.type for each in made.request_layouts] == ["float64", "bool"]
    assert [each.name for each in made.views] == ["card_spend"]
    assert replace(made, description="x").fingerprint == made.fingerprint


def test_an_undeclared_request_value_has_the_type_of_the_contracts_field():
    made = service(RequestFeature("ratio", "amount / nullif(card_spend.spend_1h, 0)"))
    assert made.request_values == {"amount": DataType.FLOAT64}
    assert made.fingerprint == service(RATIO).fingerprint
    other = view(
        name="other",
        source=source(name="others", schema=json_contract(amount={"type": "string"})),
        features={"n": Count().over("1h")},
        where=None,
    )
    with pytest.raises(ExpressionError, match=r"unknown column 'amount'.*a request value is declared: request="):
        service(RequestFeature("ratio", "amount / 2"), views=[derived(), other])
    assert service(RATIO, views=[derived(), other]).request_values == {"amount": DataType.FLOAT64}


def json_contract(**fields):
    from tests.unit.definitions.test_definitions import contract

    return contract(**fields)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (
            [RequestFeature("r", "amoun / 2")],
            ExpressionError,
            r"request feature r: unknown column 'amoun' at character 1.*'amount'",
        ),
        ([RequestFeature("r", "card_spend.spent_1h")], ExpressionError, "did you mean 'card_spend.spend_1h'"),
        ([RequestFeature("r", "card_spend.amounts_1h")], ExpressionError, "is list<float64>"),
        ([RequestFeature("r", "status + 1")], ExpressionError, r"\+ takes int64 or float64, not string"),
        ([RATIO, RATIO], DuplicateNameError, "another request feature is called that"),
        ([RequestFeature("card_id", "1")], DuplicateNameError, "a key, a request value or another"),
        ([RequestFeature("amount", "amount * 2")], DuplicateNameError, "a request value is called that"),
        ([RATIO, RequestFeature("amount", "1")], DuplicateNameError, "a key, a request value"),
        (
            [RequestFeature("a", "status"), RequestFeature("status", "'x'")],
            DuplicateNameError,
            "a request value is called",
        ),
        (
            [RATIO, RequestFeature("b", "amount", {"amount": "int64"})],
            DefinitionError,
            "'amount' is both float64 and int64",
        ),
        ([RequestFeature("r", "1", {"x": "int64"})], DefinitionError, "'x' is declared, and its expression lacks it"),
        ([RequestFeature("r", "card_id", {"card_id": "string"})], DuplicateNameError, "is a key column"),
    ],
)
def test_what_a_service_refuses_of_its_request_features(features, error, message):
    with pytest.raises(error, match=message):
        service(*features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Big", "1"), "name 'Big' is not usable"),
        (("r", "x", {"x": "float"}), r"request value 'x' has type 'float'.*int64"),
        (("r", "x", {"x": "list<int64>"}), "has type 'list<int64>'"),
        (("r", "x", {"a.b": "int64"}), "'a.b' is no name"),
        (("r", "x", ["x"]), r"request is \['x'\]"),
    ],
)
def test_what_a_request_feature_cannot_be(arguments, message):
    with pytest.raises(DefinitionError, match=message):
        RequestFeature(*arguments)


def test_definitions_and_plans_are_data():
    made = service(
        RATIO, RequestFeature("odd", "case when ratio > 3 then 'a' else null end"),
        views=[derived(rate=Ratio("declined_1h", "n_1h"), gap=Derived("coalesce(n_24h, 0) - 1"))],
    )  # fmt: skip
    again = Definitions.from_dict(json.loads(json.dumps(Definitions.of([made]).to_dict()))).service("fraud")
    assert again == made
    assert again.fingerprint == made.fingerprint
    layout = made.views[0].layout
    assert ViewLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    plan = LookupPlan.from_json(LookupPlan.of(made).to_json())
    assert plan == LookupPlan.of(made)
    assert plan.fingerprint == made.fingerprint
    assert plan.request_values == made.request_values
    assert json.loads(LookupPlan.of(made).to_json())["format"] == 2
    assert json.loads(LookupPlan.of(service()).to_json())["format"] == 1


def test_every_kind_of_node_is_data():
    columns = {"i": DataType.INT64, "s": DataType.STRING, "t": DataType.TIMESTAMP}
    for text in ("CASE s WHEN 'a' THEN 1 ELSE i END", "IF(i > 1.5, -0.0, 1e300)", "s IN ('a', NULL)", "epoch_us(t)"):
        node = Expression.parse(text, columns).node
        assert node_from_data(json.loads(json.dumps(node_to_data(node)))) == node
    with pytest.raises(ValueError, match="no kind of node"):
        node_from_data(["other", "int64", 1])


def test_columns_derived_from_a_row_stand_for_what_they_mean():
    features = {"usd": Sum("usd", where="is_big").over("1h")}
    columns = {"usd": "amount * coalesce(fx_rate, 1)", "is_big": "usd > 100"}
    made = view(columns=columns, where="usd > 0", features=features)
    spelled = view(
        where="amount * coalesce(fx_rate, 1) > 0",
        features={"usd": Sum("amount*coalesce(fx_rate,1)", where="amount * coalesce(fx_rate, 1) > 100").over("1h")},
    )
    assert made.fingerprint == spelled.fingerprint
    assert made.condition.columns == ("amount", "fx_rate")
    again = Definitions.from_dict(Definitions.of([made]).to_dict()).view("card_spend")
    assert again == made


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"usd": "amont * 2"},
            ExpressionError,
            r"card_spend: column usd: unknown column 'amont' at character 1.*'amount'",
        ),
        ({"amount": "1"}, DuplicateNameError, "column 'amount' is a field of contract transaction already"),
        ({"a": "b", "b": "amount"}, ExpressionError, "unknown column 'b'"),
        ({"Usd": "amount"}, DefinitionError, "name 'Usd' is not usable"),
        ({"usd": ""}, ExpressionError, "is no expression"),
        (["usd"], DefinitionError, r"columns is \['usd'\]"),
        (
            {f"c{i}": f"c{i - 1} + 1" if i else "amount" for i in range(200)},
            ExpressionError,
            "nested more than 100 levels",
        ),
    ],
)
def test_what_a_column_cannot_be(columns, error, message):
    with pytest.raises(error, match=message):
        view(columns=columns)
