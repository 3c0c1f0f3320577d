"""Views that explode an array: of objects and of scalars, keyed by the event and by the element."""

from __future__ import annotations

import json

from featurestore.algebra import (
    ApproxDistinct,
    Count,
    Exact,
    First,
    FirstK,
    Hopping,
    Last,
    LastK,
    Max,
    MaxK,
    Sum,
    Tumbling,
)
from featurestore.definitions.contract import Contract
from featurestore.definitions.derived import Ratio
from featurestore.definitions.entity import Entity
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView

CONTRACT = Contract.from_json(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "card_id": {"type": "string"},
                "fx": {"type": ["number", "null"]},
                "event_time": {"type": "string", "format": "date-time"},
                "tags": {"type": ["array", "null"], "items": {"type": ["string", "null"]}},
                "items": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "sku": {"type": "string"},
                            "price": {"type": ["number", "null"]},
                            "count": {"type": "integer", "minimum": 1, "maximum": 5},
                            "due": {"type": "string", "format": "date-time"},
                        },
                        "required": ["sku", "count"],
                    },
                },
            },
            "required": ["card_id", "event_time", "items"],
        }
    ),
    "order",
)
ORDERS = EventSource("orders", topic="orders", schema=CONTRACT, event_time="event_time", allowed_skew="30s")
BY_CARD = FeatureView(
    "by_card",
    Entity("card", {"card_id": "string"}),
    ORDERS,
    {
        "items": Count().over("10m", "1h", Tumbling("10m")),
        "value": Sum("value").over("10m", Hopping("10m", hop="5m")),
        "first": First("sku").over("10m", "lifetime"),
        "last": Last("sku").over("10m", Exact("10m"), Tumbling("10m")),
        "prices": LastK("price", 3).over("10m", Exact("10m")),
        "oldest": FirstK("items.count", 2).over("1h"),
        "kinds": LastK("sku", 3, distinct=True).over("1h"),
        "due": Max("due").over("lifetime"),
        "last_due": Last("epoch_us(items.due)", where="items.count > 2").over("1h"),
        "big": Count(where="items.count > 2").over("10m"),
        "skus": ApproxDistinct("sku").over("1h"),
        "big_share": Ratio("big_10m", "items_10m"),
    },
    where="price IS NULL OR price < 50",
    columns={"value": "items.count * price * coalesce(fx, 1)"},
    explode="items",
)
BY_ITEM = FeatureView(
    "by_item",
    Entity("item", {"sku": "string", "card_id": "string"}),
    ORDERS,
    {"n": Count().over("10m", "1h"), "most": MaxK("count", 2).over("1h"), "last": Last("price").over("10m")},
    explode="items",
)
BY_TAG = FeatureView(
    "by_tag",
    Entity("tag", {"tags": "string"}),
    ORDERS,
    {
        "n": Count().over("10m"),
        "cards": LastK("card_id", 2).over("1h"),
        "long": Count(where="length(tags) > 0").over("1h"),
    },
    explode="tags",
)
WHOLE = FeatureView(
    "whole", Entity("card", {"card_id": "string"}), ORDERS, {"n": Count().over("10m"), "fx": Last("fx").over("1h")}
)
VIEWS = (BY_CARD, BY_ITEM, BY_TAG, WHOLE)
BASKET = FeatureService("basket", [BY_CARD, WHOLE])
