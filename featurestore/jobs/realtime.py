"""The real-time way of the hot query: a plain Kafka consumer in place of Spark's micro-batches.

    Kafka  --(poll: whatever has come)-->  SourceWorker (decode, shape, fenced append)  -->  online store

Decoding, shaping, writing and the fence are those of the hot query, so a value does not depend on the way, and a job may
change from one to the other at any time. What differs is the wait: nothing plans a batch here, a record is applied as soon as
it can be polled, together with all others that have come meanwhile.

Consumers form a group, so that partitions move by themselves when one of them ends or joins. Its committed offsets only say
where to begin, so it is named after all that they are about: the project, what its views store, the epoch of the store and the
life of the table that counts epochs. What makes it exactly-once are the fences, which a consumer that lost its partition
without noticing runs into too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from kafka.errors import KafkaError, LogTruncationError, NoOffsetForPartitionError, OffsetOutOfRangeError

from featurestore.config import Settings
from featurestore.errors import FenceError, OffsetsGoneError, OnlineError
from featurestore.events.broker import OffsetReader, mapped_errors
from featurestore.failpoints import reach
from featurestore.jobs.checkpoint import losses, refuse_losses
from featurestore.jobs.consumer_process import run_consumer
from featurestore.jobs.hot import HotWorker
from featurestore.jobs.intake import CLIENTS, open_intake
from featurestore.jobs.online_epoch import join_epoch, offsets_of, refuse_older, starting_offsets
from featurestore.jobs.worker import by_topic
from featurestore.offline.epochs import OnlineEpochs
from featurestore.offline.losses import Losses
from featurestore.offline.registry import DeltaRegistry
from featurestore.online.redis_store import RedisOnlineStore

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from kafka import TopicPartition

    from featurestore.definitions.view import FeatureView
    from featurestore.jobs.intake import Intake, Polled

POLL_MS = 250
BATCH_ROWS = 270_000
"""The most records that are applied together. A key's records of a batch are one append: the more wait, the less each costs."""
COMMIT_EVERY_S = 1.0
_FENCE_TRIES = 20
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)


def group_of(project: str, views: Sequence[FeatureView], *, life: str = "", epoch: int = 1) -> str:
    """Return the consumer group of a project's views: another one as soon as what is stored changes, or where.

    Two deployments of a project on one broker would share its partitions otherwise, and one that begins anew, on empty stores,
    would go on where the group had got to: neither would ever see what it missed.

    Args:
        project: The project.
        views: Its views.
        life: Tells these stores from others (``OnlineEpochs.life``).
        epoch: Of the online store; one that was rebuilt begins at what the event log did not hold.
    """
    stored = "\n".join([*sorted(f"{view.name} {view.layout.fingerprint}" for view in views), life])
    group = f"featurestore.{project}.{hashlib.sha256(stored.encode()).hexdigest()[:16]}"
    return f"{group}-{epoch}" if epoch > 1 else group


class RealtimeConsumer:
    """Applies records to the online store as they come; one of a group.

    Args:
        worker: What to do with the records.
        kafka: Kafka settings.
        group: Name of the consumer group.
        batch_rows: The most records taken by one poll; they are applied together.
        instance: A name that stays over restarts: whoever joins under it takes over at once what its predecessor had, even
            where that was killed. None joins as somebody new, who waits until the broker misses the predecessor.
        client: What reads from Kafka (``intake.open_intake``).
        starting: Topic to partition to the offset at which a group that has none begins; elsewhere it is the first there is.
        losses: Where to write down what Kafka no longer has of the records that come next, and go on without it; None refuses.

    Raises:
        BrokerUnavailableError: The broker cannot be reached.
        OnlineStoreUnavailableError: The online store cannot be reached.
    """

    def __init__(
        self,
        worker: HotWorker,
        kafka: Mapping[str, str],
        group: str,
        *,
        batch_rows: int = BATCH_ROWS,
        instance: str | None = None,
        client: str | None = None,
        starting: Mapping[str, Mapping[int, int]] | None = None,
        losses: Losses | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """How many records met which fate since the start (``worker.COUNTS``)."""
        self.lag: int | None = None
        """How many records are still to come, as of the last report; None while that is not known."""
        self.error: str | None = None
        """What keeps the consumer from going on right now, in one line; None when nothing does."""
        self.reached: dict[str, dict[int, int]] = {}
        """Topic to partition to where the group has got to: markers of transactions, which nobody applies, are passed too."""
        self.acknowledged: dict[str, dict[int, int]] = {}
        """Topic to partition to the offset after the last record that the store has said it has."""
        self._worker = worker
        self._kafka = kafka
        self._starting = starting or {}
        self._losses = losses
        # Of the partitions that are this one's, those where it has asked what the store waits for.
        self._begun: set[TopicPartition] = set()
        self._is_applied = True  # everything that was polled: only then are the group's positions what the store has
        worker.prepare()
        with mapped_errors(kafka, "connecting a consumer"):
            self._consumer: Intake = open_intake(
                client, worker.sources, kafka, group, batch_rows=batch_rows, instance=instance
            )
        self.client = self._consumer.name
        """What reads from Kafka (``intake.CLIENTS``)."""

    def run(self, stop: threading.Event) -> None:
        """Apply records until stopped. While the store or the broker is down, it is tried again, and ``error`` says so.

        Raises:
            OffsetsGoneError: Kafka no longer has records that were to come next, or a topic was made anew.
            FenceError: Other consumers kept moving the fences.
            OnlineStoreLostError: The store has less than it acknowledged.
            OnlineError: The store refuses for a reason that waiting does not mend.
        """
        committed = time.monotonic()
        while not stop.is_set():
            for place, polled in self._poll().items():
                self._is_applied = False
                self._apply(place, polled, stop)
                if stop.is_set():
                    break
            else:
                self._is_applied = True
                if time.monotonic() - committed > COMMIT_EVERY_S:
                    committed = time.monotonic()
                    self._commit()
                    self._check_store()
                    self.lag = self._behind()
                    self.reached = self._positions()

    def _poll(self) -> dict[TopicPartition, Polled]:
        try:
            polled = self._next()
        except LogTruncationError as error:
            raise OffsetsGoneError(
                f"a topic lost its end, or was made anew: {error}.",
                hint="fences and event log know the old offsets. Give the new topic, and its source, another name.",
            ) from error
        except KafkaError as error:
            self.error = f"Kafka: {type(error).__name__}: {error}"
            return {}
        except (ConnectionError, TimeoutError) as away:
            self.error = str(away)
            return {}
        self.error = self._consumer.waiting()
        self._begun &= self._consumer.assignment()
        if polled:
            reach("consumer.polled")
        return polled

    def _next(self) -> dict[TopicPartition, Polled]:
        """Return what has come; nothing where it first had to be found out where to begin."""
        try:
            polled = self._consumer.take(POLL_MS)
        except NoOffsetForPartitionError as error:
            for place in _partitions(error):
                self._begin(place)
        except OffsetOutOfRangeError as error:
            self._gone(error)
        else:
            return polled
        return {}

    def _apply(self, place: TopicPartition, polled: Polled, stop: threading.Event) -> None:
        """Apply consecutive records of one partition, again and again until the store has them."""
        offsets, arrival, values = polled.offsets, polled.arrival, polled.values
        refused = tries = 0
        while not stop.is_set():
            try:
                if self._goes_back(place, int(offsets[0])):
                    return
                self.counts.update(self._worker.apply_records(place.topic, place.partition, offsets, arrival, values))
            except FenceError:
                refused += 1
                if refused == _FENCE_TRIES:
                    raise
            except (ConnectionError, TimeoutError) as error:
                self.error = str(error)
                stop.wait(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
                tries += 1
            except OnlineError as error:
                if tries == len(_PAUSES_S):
                    raise
                self.error = str(error)
                stop.wait(_PAUSES_S[tries])
                tries += 1
            else:
                self.acknowledged.setdefault(place.topic, {})[place.partition] = int(offsets[-1]) + 1
                self.error = None
                return

    def _goes_back(self, place: TopicPartition, first: int) -> bool:
        """Go back, where a partition begins, to what the store waits for; return whether these records have to wait for others.

        A store that lost writes has less than the group has got to. Between the two may also lie marks of transactions alone.
        """
        if place in self._begun:
            return False
        applied = self._worker.progress(place.topic).get(place.partition)
        self._begun.add(place)
        if applied is None or applied[0] >= first:
            return False
        self._consumer.seek(place, applied[0])
        return True

    def _check_store(self) -> None:
        """Raise when the store has less than it acknowledged, also while no record comes; one that is away is asked again.

        Raises:
            OnlineStoreLostError: It has.
        """
        for topic, offsets in self.acknowledged.items():
            source = self._worker.sources[topic][0].name
            try:
                progress = self._worker.progress(topic)
            except (ConnectionError, TimeoutError, OnlineError):
                return
            refuse_older({source: offsets}, {source: offsets_of(progress)})

    def _commit(self) -> None:
        """Say where the group has got to. It may fail: after a change of partitions, the next poll finds its place."""
        with contextlib.suppress(KafkaError):
            self._consumer.commit_async(callback=lambda *_: reach("consumer.committed"))

    def _begin(self, place: TopicPartition) -> None:
        """Begin a partition of which the group has no offset: it is new, or its topic is, or the broker forgot."""
        applied = self._worker.progress(place.topic).get(place.partition)
        if applied is not None:
            self._check({place: applied[0]})
        offset = self._starting.get(place.topic, {}).get(place.partition, -1)
        if offset < 0:
            self._consumer.seek_to_beginning(place)
        else:
            self._consumer.seek(place, offset)

    def _gone(self, error: OffsetOutOfRangeError) -> None:
        """Raise with what is gone; or write it down and go on behind it."""
        wanted: dict[TopicPartition, int] = error.args[0]
        for place, first in self._check(wanted).items():
            self._begun.add(place)
            self._consumer.seek(place, first)

    def _check(self, wanted: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return the first offsets that Kafka has where others come next.

        Raises:
            OffsetsGoneError: It no longer has those, and that is not accepted; or a topic was made anew.
        """
        first = self._consumer.beginning_offsets(list(wanted))
        ends = _by_topic(self._consumer.end_offsets(list(wanted)))
        found = losses(_by_topic(wanted), _by_topic(first), ends)
        if self._losses is None:
            refuse_losses("hot", found, ends)
        elif found:
            self._losses.record("hot", [(one.topic, one.partition, one.begin, one.end) for one in found])
        return first

    def _behind(self) -> int | None:
        behind = 0 if self._consumer.has_joined else None
        for place in self._consumer.assignment():
            end = self._consumer.highwater(place)
            if end is None or behind is None:
                return None
            behind += max(0, end - self._consumer.position(place))
        return behind

    def _positions(self) -> dict[str, dict[int, int]]:
        found: dict[str, dict[int, int]] = {}
        for place in self._consumer.assignment():
            if self._consumer.highwater(place) is not None:
                found.setdefault(place.topic, {})[place.partition] = self._consumer.position(place)
        return found

    def close(self) -> None:
        """Commit and leave the group; nothing is committed that was polled and not applied."""
        if self._is_applied:
            with contextlib.suppress(KafkaError):
                self._consumer.commit()
        self._consumer.close()


def _by_topic(offsets: Mapping[TopicPartition, int]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for place, offset in offsets.items():
        found.setdefault(place.topic, {})[place.partition] = offset
    return found


def _partitions(error: NoOffsetForPartitionError) -> list[TopicPartition]:
    found = error.args[0]
    return [found] if isinstance(found, tuple) and hasattr(found, "topic") else list(found)


def connect(
    settings: Settings,
    service: str,
    *,
    instance: str | None = None,
    accept_loss: bool = False,
    client: str | None = None,
) -> RealtimeConsumer:
    """Return a consumer of an applied service, one of the group of its stores.

    Raises:
        FeatureStoreError: A store or the broker cannot be reached, or the online store is not the one it was.
    """
    views = DeltaRegistry(settings.offline).load().service(service).views
    topics = by_topic(views)
    starting = None
    store = RedisOnlineStore(settings.online.url, settings.project)
    epoch = join_epoch(store, settings.offline)
    if epoch > 1:
        reader = OffsetReader(settings.kafka, topics)
        starting = starting_offsets(store, topics, reader.end_offsets())
        reader.close()
    store.close()
    life = OnlineEpochs(settings.offline, settings.project).life() or ""
    group = group_of(settings.project, views, life=life, epoch=epoch)
    worker = HotWorker(settings.online.url, settings.project, topics, epoch)
    return RealtimeConsumer(
        worker, settings.kafka, group, instance=instance, client=client, starting=starting,
        losses=Losses(settings.offline) if accept_loss else None,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run one consumer of a job (``run_consumer``)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config-json", type=Path, required=True, help="the resolved settings")
    parser.add_argument("--service", required=True, help="the feature service whose views to keep")
    parser.add_argument("--instance", help="a name that stays over restarts")
    parser.add_argument("--accept-loss", action="store_true", help="go on without records that Kafka no longer has")
    parser.add_argument("--client", choices=CLIENTS, help="what reads from Kafka; librdkafka where it is installed")
    given = parser.parse_args(argv)
    asked = {"instance": given.instance, "accept_loss": given.accept_loss, "client": given.client}
    return run_consumer(lambda: connect(Settings.from_json(given.config_json), given.service, **asked))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
