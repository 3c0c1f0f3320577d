"""What the tests of scoring jobs share: a service with a model, a topic of events to score, and what is written about them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa

from featurestore import FeatureStore
from featurestore.algebra import Count as CountOf
from featurestore.algebra import Sum
from featurestore.algebra.aggregate import sequence_of
from featurestore.definitions.contract import Contract
from featurestore.definitions.entity import Entity
from featurestore.definitions.service import FeatureService
from featurestore.definitions.source import EventSource
from featurestore.definitions.view import FeatureView
from featurestore.engines.shape import shape
from featurestore.jobs.score import ScoreSpec
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.scoring.kafka_envelope import Envelope
from featurestore.scoring.manifest import save_model
from featurestore.timeline import SystemClock, to_datetime
from tests.unit.scoring.support import onnx_bytes

FEATURES = ("card.count_lifetime", "card.spend_lifetime")
WEIGHTS = (0.01, 0.2, 0.003)


class Scored:
    """One project: features of payments, of which the cards c0 to c9 have some, and checkouts to score."""

    def __init__(self, name):
        properties = {
            "card_id": {"type": "string"},
            "amount": {"type": "number"},
            "event_time": {"type": "string", "format": "date-time"},
        }
        text = json.dumps({"type": "object", "properties": properties, "required": list(properties)})
        self.name = name
        self.payments = EventSource(
            "payments", topic=f"{name}_payments", schema=Contract.from_json(text, "payment"), event_time="event_time"
        )
        self.checkouts = EventSource(
            "checkouts", topic=f"{name}_checkouts", schema=Contract.from_json(text, "checkout"), event_time="event_time"
        )
        features = {"count": CountOf().over("lifetime"), "spend": Sum("amount").over("lifetime")}
        self.view = FeatureView("card", Entity("card", {"card_id": "string"}), self.payments, features)
        self.service = FeatureService("fraud", [self.view])

    def open(self, folder, broker, url, **overrides):
        """Return the project's store: definitions applied, ten cards filled, the model saved."""
        store = FeatureStore.open(
            root=folder, project=self.name, kafka={"bootstrap.servers": broker}, online={"url": url, "timeout": "5s"},
            **overrides,
        )  # fmt: skip
        store.apply(self.service, self.checkouts, create_topics=broker != "none:1")
        self.fill(url)
        self.save(store)
        return store

    def save(self, store, **changes):
        """Save a version of the model, with these fields of its manifest in place of the right ones."""
        right = {
            "service": "fraud", "service_fingerprint": self.service.fingerprint, "keys": self.service.keys,
            "inputs": ["amount", *FEATURES], "request_inputs": ["amount"], "feature_inputs": FEATURES,
        }  # fmt: skip
        save_model(store.settings.models, "fraud", onnx_bytes(weights=WEIGHTS), **right | changes)

    def spec(self, store, *, topic="out", envelope=Envelope.NONE, **more):
        """Return what a scoring job is told about checkouts."""
        settings = store.settings
        return ScoreSpec(
            project=self.name,
            source=self.checkouts,
            models=str(settings.models),
            model="fraud:1",
            service="fraud",
            topic=topic,
            online_url=settings.online.url,
            offline=str(settings.offline),
            kafka=dict(settings.kafka),
            envelope=envelope,
            **more,
        )

    def fill(self, url):
        """Give card cN the payments 1 to N+1."""
        store = RedisOnlineStore(url, self.name)
        rows = [(f"c{card}", float(amount)) for card in range(10) for amount in range(1, card + 2)]
        times = np.full(len(rows), SystemClock().now() - 60_000_000, np.int64) + np.arange(len(rows))
        events = pa.table(
            {
                "event_time": pa.array(times, pa.timestamp("us", "UTC")),
                "card_id": [card for card, _ in rows],
                "amount": [amount for _, amount in rows],
            }
        )
        sequence = np.array([sequence_of(0, offset) for offset in range(len(rows))], np.int64)
        shaped = shape(self.view, events, times, sequence, times)
        FencedWriter(store, "payments", [self.view]).apply(0, len(rows), int(times[-1]), [shaped])
        store.close()


def features_of(number):
    """Return what card cN has."""
    return {FEATURES[0]: number + 1, FEATURES[1]: float(sum(range(1, number + 2)))}


def score_of(number, amount):
    """Return the score of a payment of a filled card; of a card that nobody knows for None."""
    known = () if number is None else features_of(number).values()
    logit = sum(np.float32(w) * np.float32(v) for w, v in zip(WEIGHTS, (amount, *known), strict=False))
    return float(1 / (1 + np.exp(-logit)))


def checkout(card, amount, **more):
    """Return an event as JSON."""
    now = to_datetime(SystemClock().now()).isoformat()
    return json.dumps({"card_id": card, "amount": amount, "event_time": now, **more}).encode()


def assert_right(records, sent):
    """Compare prediction records, each identity once, with (partition, offset) -> (number of the card or None, amount)."""
    assert Counter(record.prediction_id.split("/", 1)[1] for record in records) == Counter(
        {f"{partition}/{offset}": 1 for partition, offset in sent}
    )
    for record in records:
        _, partition, offset = record.prediction_id.split("/")
        number, amount = sent[int(partition), int(offset)]
        assert abs(record.score - score_of(number, amount)) < 1e-6
        assert record.request == {"amount": amount}
        values = {name: one.value for name, one in record.features.items()}
        statuses = {one.status for one in record.features.values()}
        if number is None:
            assert statuses == {"missing"}
        else:
            assert statuses == {"present"}, "a score of nulls"
            assert values == features_of(number)
            assert all(one.as_of < record.at for one in record.features.values())
        assert record.at <= record.scored_at
