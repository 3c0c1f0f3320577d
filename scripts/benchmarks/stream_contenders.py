"""The contenders of scripts/bench stream, each in a process of its own: python -m scripts.benchmarks.stream_contenders NAME JSON.

Each starts everything it needs and works off a small topic before the clock runs, then works off the measured one, and prints
what it took as one line of JSON. Those that cannot end in time are stopped and say how far they got.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.engines.session import JOB_CONF, build_session
from featurestore.jobs.consumers import Consumers, consumer_command
from featurestore.jobs.hot import HotWorker, start_hot, warm_up
from featurestore.jobs.worker import by_topic
from featurestore.online.redis_store import RedisOnlineStore
from scripts.benchmarks.measure import Meter
from scripts.benchmarks.stream_cluster import EXECUTOR_CONF, cluster
from scripts.benchmarks.stream_data import SPARK_SCHEMA, definitions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TICK = threading.Event()


def ours(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The hot query, from Kafka to the online store, with the settings that ``jobs submit`` gives a local job."""
    kafka = {"bootstrap.servers": order["broker"]}
    session: Any = None

    def work(topic: str, events: int) -> None:
        service = definitions(folder, topic)
        worker = HotWorker(order["redis"], topic, by_topic(service.views))
        warm_up(session, worker)
        query = start_hot(session, worker, kafka, checkpoint=str(folder / f"checkpoint-{topic}"))
        _until_applied(order["redis"], topic, events, lambda: query.isActive)
        query.stop()

    with cluster(folder, order["workers"]) if order["workers"] else nullcontext() as master:
        session = _session(order, settings={**JOB_CONF, **EXECUTOR_CONF}, master=master)
        try:
            return _measured(order, work)
        finally:
            session.stop()


def realtime(order: dict[str, Any], folder: Path, client: str = "librdkafka") -> dict[str, Any]:
    """Real-time consumers, one per partition, from Kafka to the online store."""
    from featurestore import FeatureStore

    def store_of(topic: str) -> tuple[Any, Path]:
        store = FeatureStore.open(
            root=folder / topic,
            project=topic,
            kafka={"bootstrap.servers": order["broker"]},
            online={"url": order["redis"]},
        )
        store.apply(definitions(folder, topic))
        config = folder / f"{topic}.json"
        store.settings.to_json(config)
        return store, config

    started = {topic: store_of(topic)[1] for topic in (order["warm"], order["topic"])}

    def work(topic: str, events: int) -> None:
        consumers = Consumers(consumer_command(started[topic], "cards", client=client), order["partitions"])
        _until_applied(order["redis"], topic, events, lambda: consumers.check() is None)
        consumers.stop()

    return _measured(order, work)


def archive(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The archive query, from Kafka to Delta: event log and tiles."""
    from featurestore.jobs.archive import ArchiveBatch, start_archive

    session = _session(order, settings=JOB_CONF)
    kafka = {"bootstrap.servers": order["broker"]}

    def work(topic: str, _events: int) -> None:
        batch = ArchiveBatch(str(folder / f"offline-{topic}"), by_topic(definitions(folder, topic).views))
        query = start_archive(session, batch, kafka, checkpoint=str(folder / f"checkpoint-{topic}"), every="0 seconds")
        query.processAllAvailable()
        query.stop()

    return _measured(order, work)


def floor(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Spark from Kafka through from_json to nowhere."""
    session = _session(order)

    def work(topic: str, _events: int) -> None:
        query = (
            _parsed(session, order, topic)
            .writeStream.format("noop")
            .option("checkpointLocation", str(folder / f"checkpoint-{topic}"))
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()

    return _measured(order, work)


def spark_1h(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Spark's own sliding window of one hour by one minute."""
    return _windows(order, folder, "1 hour")


def spark_5m(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Spark's own sliding window of five minutes by one minute."""
    return _windows(order, folder, "5 minutes")


def _windows(order: dict[str, Any], folder: Path, length: str) -> dict[str, Any]:
    from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

    session = _session(order, stateful=True)

    def start(topic: str) -> Any:
        rows = _parsed(session, order, topic, batch=order["stateful_batch"]).withWatermark("event_time", "1 hour")
        grouped = rows.groupBy(F.window("event_time", length, "1 minute"), "card_id")
        return _start(grouped.agg(F.count("*"), F.sum("amount"), F.max("amount")), folder, topic)

    return _as_far_as(order, start)


def transform_with_state(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Spark's transformWithState in Python: minutes of one card as map state, summed up for every event's window of an hour."""
    from scripts.benchmarks.stream_state import OUTPUT, Minutes

    session = _session(order, stateful=True)

    def start(topic: str) -> Any:
        # A tenth of the batch that Spark's own windows are given: more would not end within the time.
        rows = _parsed(session, order, topic, batch=max(1, order["stateful_batch"] // 10))
        made = rows.groupBy("card_id").transformWithState(
            statefulProcessor=Minutes(), outputStructType=OUTPUT, outputMode="Update", timeMode="None"
        )
        return _start(made, folder, topic)

    return _as_far_as(order, start)


def _session(
    order: dict[str, Any],
    *,
    stateful: bool = False,
    settings: Mapping[str, str] | None = None,
    master: str | None = None,
) -> Any:
    conf = {**(settings or {}), "spark.driver.memory": order["memory"], "spark.ui.enabled": "false"}
    if stateful:
        conf["spark.sql.streaming.stateStore.providerClass"] = (
            "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
        )
        conf["spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled"] = "true"
    return build_session("bench", master=master or f"local[{order['cores']}]", conf=conf)


def _parsed(session: Any, order: dict[str, Any], topic: str, *, batch: int | None = None) -> Any:
    from pyspark.sql import functions as F  # noqa: N812

    reader = (
        session.readStream.format("kafka")
        .option("kafka.bootstrap.servers", order["broker"])
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
    )
    if batch:
        reader = reader.option("maxOffsetsPerTrigger", batch)
    return reader.load().select(F.from_json(F.col("value").cast("string"), SPARK_SCHEMA).alias("e")).select("e.*")


def _start(frame: Any, folder: Path, topic: str) -> Any:
    return (
        frame.writeStream.format("noop")
        .outputMode("update")
        .option("checkpointLocation", str(folder / f"checkpoint-{topic}"))
        .trigger(processingTime="0 seconds")
        .start()
    )


def _as_far_as(order: dict[str, Any], start: Callable[[str], Any]) -> dict[str, Any]:
    """Run a query that may be too slow for the whole topic: stopped after a time, between two batches."""
    done = {"events": 0}

    def work(topic: str, events: int) -> None:
        query = start(topic)
        give_up = time.monotonic() + order["limit_s"]
        rows: dict[int, int] = {}
        while query.isActive and sum(rows.values()) < events and time.monotonic() < give_up:
            _TICK.wait(0.2)
            rows |= {each["batchId"]: each["numInputRows"] for each in query.recentProgress}
        if query.exception() is not None:
            raise SystemExit(str(query.exception())[:600])
        done["events"] = sum(rows.values())
        query.stop()

    return {**_measured(order, work), "events": done["events"]}


def _until_applied(url: str, project: str, events: int, alive: Callable[[], bool]) -> None:
    store = RedisOnlineStore(url, project)
    while sum(offset for offset, _ in store.progress("payments").values()) < events:
        if not alive():
            raise SystemExit("it ended before everything was applied")
        _TICK.wait(0.05)
    store.close()


def _measured(order: dict[str, Any], work: Callable[[str, int], None]) -> dict[str, Any]:
    import redis

    work(order["warm"], order["warm_events"])
    admin = redis.Redis.from_url(order["redis"], protocol=2)
    before = admin.info("cpu")
    with Meter() as meter:
        work(order["topic"], order["events"])
    after = admin.info("cpu")
    store = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    admin.close()
    return {"events": order["events"], **meter.cost.to_dict(), "store_cpu_s": round(store, 2)}


CONTENDERS = {
    "ours": ours,
    "realtime": realtime,
    "realtime-kafka-python": partial(realtime, client="kafka-python"),
    "archive": archive,
    "floor": floor,
    "spark-1h": spark_1h,
    "spark-5m": spark_5m,
    "transform-with-state": transform_with_state,
}


def main() -> None:
    """Run one contender."""
    name, order = sys.argv[1], json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(CONTENDERS[name](order, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
