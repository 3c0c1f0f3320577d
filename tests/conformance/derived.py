"""A view with derived columns and derived features of every type, and a service with request features over it."""

from __future__ import annotations

from featurestore.algebra import Count, First, Last, Lifetime, Max, Mean, SecondsSinceLast, Sum, Tumbling
from featurestore.definitions.derived import Derived, Ratio, RequestFeature
from featurestore.definitions.service import FeatureService
from featurestore.definitions.view import FeatureView
from tests.conformance.cases import CARD, SHORT, SOURCE

DERIVED = FeatureView(
    "derived",
    CARD,
    SOURCE,
    {
        "n": Count().over("10m", "1h", Tumbling("10m")),
        "big": Count(where="is_big").over("10m"),
        "spend": Sum("total").over("10m", "1h"),
        "mean": Mean("amount", where="total > 0").over("1h"),
        "most": Max("total").over("10m"),
        "first": First("shipped").over("1h"),
        "last": Last("status").over("1h", "lifetime"),
        "online": Last("online").over("lifetime"),
        "since": SecondsSinceLast().over(Lifetime()),
        "big_share": Ratio("big_10m", "n_10m"),
        "points_left": Derived("n_1h - n_10m"),
        "trend": Derived("spend_10m / nullif(spend_1h, 0)"),
        "rising": Derived("trend > 0.5 OR big_share = 1"),
        "when": Derived("coalesce(first_1h, NULL)"),
        "label": Derived("upper(coalesce(last_1h, last_lifetime, 'none'))"),
        "steps": Derived("CASE WHEN online_lifetime THEN floor(most_10m) ELSE -n_1h END"),
        "log_since": Derived("round(ln(1 + since_lifetime), 3)"),
    },
    where="total IS NULL OR total > -50",
    columns={"total": "amount * coalesce(shop, 1)", "is_big": "total >= 2 AND status IS NOT NULL"},
)
SERVICE = FeatureService(
    "asked",
    [
        DERIVED,
        RequestFeature("ratio", "price / derived.mean_1h", request={"price": "float64"}),
        SHORT,
        RequestFeature("odd", "ratio > 3 AND NOT coalesce(derived.rising, false)"),
        RequestFeature(
            "same_card", "card_id = lower(other) OR count > derived.n_1h", {"other": "string", "count": "int64"}
        ),
        RequestFeature("away", "epoch_us(seen) - epoch_us(derived.when)", {"seen": "timestamp"}),
        RequestFeature("both", "coalesce(derived.n_1h, 0) + coalesce(count, 0)"),
        RequestFeature("alone", "IF(flag, price, NULL)", {"flag": "bool"}),
    ],
)
