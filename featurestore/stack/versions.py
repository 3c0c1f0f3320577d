"""The versions of every part that is not a Python package: the one list in the project.

pyproject.toml pins the Python packages (pyspark, delta-spark) to the same versions, and docker-compose.yml names images
of the same; a test holds the three together.
"""

from __future__ import annotations

JAVA = (17, 21)
"""Java versions that Spark 4 runs on, the preferred one first."""

SPARK = "4.2.0"
DELTA = "4.4.0"
KAFKA = "4.3.1"
SLF4J = "1.7.36"
VALKEY = "9.1"
REDIS_AT_LEAST = (7, 0)
"""Oldest server that has every command the online store uses."""

SPARK_JARS = (
    f"io.delta:delta-spark_4.2_2.13:{DELTA}",
    f"org.apache.spark:spark-sql-kafka-0-10_2.13:{SPARK}",
)
"""Maven coordinates of what Spark needs beyond the jars inside pyspark."""

KAFKA_JARS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA}",
    f"org.slf4j:slf4j-simple:{SLF4J}",
)
"""Maven coordinates of the broker, with the simplest logger there is."""
