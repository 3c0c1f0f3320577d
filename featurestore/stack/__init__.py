"""Local servers for trying things out, for tests and for the demo: Java, jars, Kafka and the online store.

Nothing here is needed where a cluster is at hand: the library only ever sees addresses.
"""

from featurestore.stack.jars import kafka_jars, spark_jars
from featurestore.stack.java import Java, find_java
from featurestore.stack.kafka import KafkaServer
from featurestore.stack.local import LocalStack, RunningStack
from featurestore.stack.valkey import OnlineServer

__all__ = ["Java", "KafkaServer", "LocalStack", "OnlineServer", "RunningStack", "find_java", "kafka_jars", "spark_jars"]
