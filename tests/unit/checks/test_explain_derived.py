"""explain of features of read time: their inputs explained, their value on both sides, the causes of the inputs handed on."""

from __future__ import annotations

import json

import pytest

from featurestore import Count, Derived, Entity, FeatureService, FeatureView, Ratio, RequestFeature, Sum
from featurestore.checks.explain_derived import NamedDerived, explain_derived, find
from featurestore.checks.names import Named
from featurestore.cli.explain_text import print_derived
from featurestore.definitions.registry import Definitions
from featurestore.errors import UnknownNameError
from featurestore.testing.replay import replay
from featurestore.timeline import MINUTE
from tests.unit.checks.test_explain import NOON, PAYMENTS, archived, send

VIEW = FeatureView(
    "card_spend",
    Entity("card", keys={"card_id": "string"}),
    PAYMENTS,
    {
        "n": Count("amount").over("1h"),
        "spend": Sum("amount").over("1h"),
        "mean": Ratio("spend_1h", "n_1h"),
        "double": Derived("mean * 2"),
    },
)
TIMES = RequestFeature("times_double", "price / nullif(card_spend.double, 0) + card_spend.n_1h", {"price": "float64"})
SERVICE = FeatureService("fraud_v1", [VIEW, TIMES])
APPLIED = Definitions.of([SERVICE])
AT = NOON + 30 * MINUTE
KEY = {"card_id": "c1"}


@pytest.fixture
def run():
    with replay(SERVICE, start=NOON - MINUTE) as made:
        for minute, amount in enumerate((1.0, 2.0, 6.0)):
            send(made, minute, amount)
        made.advance("1m")
        yield made


def ask(run, offline, name, **options):
    return explain_derived(find(APPLIED, name), KEY, AT, offline=offline, store=run.store, **options)


def test_a_chain_of_derived_features_is_evaluated_on_both_sides(run, tmp_path):
    offline = archived(run, tmp_path)
    found = ask(run, offline, "card_spend.double")
    assert (found.value, found.expected, found.online, found.verdict) == (6.0, 6.0, 6.0, "equal")
    assert found.expression == "mean * 2"
    assert found.steps == {"card_spend.mean": (3.0, 3.0)}
    assert {each.feature: each.value for each in found.inputs} == {"card_spend.spend_1h": 9.0, "card_spend.n_1h": 3}
    assert all(each.is_equal and each.events for each in found.inputs)
    assert find(APPLIED, "fraud_v1.card_spend.double").service == "fraud_v1"


def test_a_request_feature_takes_its_request_values(run, tmp_path, capsys):
    offline = archived(run, tmp_path)
    found = ask(run, offline, "fraud_v1.times_double", request={"price": 12.0})
    assert (found.value, found.online, found.verdict) == (5.0, 5.0, "equal")
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["request"] == {"price": 12.0}
    assert [each["feature"] for each in data["inputs"]] == ["card_spend.n_1h", "card_spend.spend_1h"]
    print_derived(found)
    out = capsys.readouterr().out
    for part in ("price / nullif(card_spend.double, 0)", "price=12.0", "card_spend.mean", "event by event", "equal"):
        assert part in out
    with pytest.raises(UnknownNameError, match="takes request value 'price'"):
        ask(run, offline, "fraud_v1.times_double")
    assert ask(run, offline, "fraud_v1.times_double", request={"price": None}).value is None


def test_what_an_input_lacks_is_the_cause(run, tmp_path):
    offline = archived(run, tmp_path)
    send(run, 20, 91.0)  # neither in the log that was written nor before the job's next step
    offline = archived(run, tmp_path / "later")
    found = ask(run, offline, "card_spend.mean")
    assert (found.expected, found.online) == (25.0, 3.0)
    assert (found.verdict, found.cause) == ("different", "behind")


def test_names():
    assert isinstance(find(APPLIED, "card_spend.mean"), NamedDerived)
    assert isinstance(find(APPLIED, "card_spend.n_1h"), Named)
    for name in ("times_double", "fraud_v1.nothing", "card_spend.means"):
        with pytest.raises(UnknownNameError):
            find(APPLIED, name)
