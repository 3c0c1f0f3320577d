"""What ``init`` writes."""

from __future__ import annotations

import re

_TOML = """\
# Settings of this project. FEATURESTORE_* variables win over this file: FEATURESTORE_ONLINE__URL, for example.
project = "{project}"
definitions = "features.py"
# home = ".featurestore"                  # jobs, models and the local stack
# offline = ".featurestore/offline"       # Delta tables: a folder, or a URI such as s3a://bucket/features

# Without these two, the servers of `featurestore up` are used.
# [online]
# url = "redis://localhost:6379/0"
# timeout = "50ms"

# [kafka]                                 # Kafka's own settings, verbatim
# "bootstrap.servers" = "localhost:9092"
# "security.protocol" = "PLAINTEXT"

[spark]
master = "local[4]"                       # whatever spark-submit takes

# [spark.conf]                            # Spark's own settings, verbatim
# "spark.sql.shuffle.partitions" = "8"
"""

_FEATURES = '''\
"""What this project knows about its customers. `featurestore plan` shows what a change means."""

from pathlib import Path

from featurestore import Count, Entity, EventSource, FeatureService, FeatureView, Last, Max, Mean, Sum

customer = Entity("customer", keys={"customer_id": "string"}, description="Somebody who buys")

purchases = EventSource(
    "purchases",
    topic="purchases",
    schema=Path(__file__).parent / "schemas/purchase/v1.json",
    event_time="event_time",
    event_id="purchase_id",
)

customer_purchases = FeatureView(
    "customer_purchases",
    entity=customer,
    source=purchases,
    features={
        "purchases": Count().over("1h", "24h"),  # -> customer_purchases.purchases_1h, ..._24h
        "spend": Sum("price * quantity").over("24h", "7d"),
        "mean_price": Mean("price").over("7d"),
        "highest_price": Max("price").over("7d"),
        "last_price": Last("price").over("lifetime"),
    },
    owner="me",
    description="Spending rhythm of one customer",
)

shop_v1 = FeatureService("shop_v1", [customer_purchases])
'''

_SCHEMA = """\
{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Purchase",
  "type": "object",
  "required": ["purchase_id", "event_time", "customer_id", "price", "quantity"],
  "properties": {
    "purchase_id": {"type": "string", "minLength": 1},
    "event_time": {"type": "string", "format": "date-time"},
    "customer_id": {"type": "string", "minLength": 1},
    "price": {"type": "number", "minimum": 0},
    "quantity": {"type": "integer", "minimum": 1}
  }
}
"""


def project_name(folder: str) -> str:
    """Return a usable project name out of a folder's.

    >>> project_name("My Shop-2"), project_name("2024")
    ('my_shop_2', 'project_2024')
    """
    name = re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_")[:50]
    return name if name[:1].isalpha() else f"project_{name}".rstrip("_")


def project_files(project: str) -> dict[str, str]:
    """Return path -> content of a new project."""
    return {
        "featurestore.toml": _TOML.format(project=project),
        "features.py": _FEATURES,
        "schemas/purchase/v1.json": _SCHEMA,
    }
