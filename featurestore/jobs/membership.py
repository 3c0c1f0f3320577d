"""A consumer's part in its group: what the group waits for, what the consumer waits for, and who sees that partitions were added.

While a group hands out its partitions anew, it waits for members that it knows and that have not come back: for those that are
gone until their session ends (``session_timeout_ms``), for those that are busy with records until ``RETURN_WITHIN_MS``. Nobody
who joins meanwhile gets a partition, and polling says nothing of it, nor of a broker that is away. So both are short, and
``Membership.waiting`` says so once it takes longer than usual.

A member with a name that stays (``group.instance.id``) gets what its predecessor had, without a new distribution. If that one
was the leader, the broker says so to nobody: no member would notice partitions that are added, or that the old distribution was
made before they were known. So such a member asks for one new distribution, which the broker makes if it is the leader.

An answer of the group that comes between two polls is lost by kafka-python 3.0: the next poll joins anew, which, if the member
leads the group, lets all others join anew too, so that a group whose members poll briefly may never be done. Or, if partitions
have changed, nothing wants to join any more: the member has its old partitions or none, and no heartbeats, for ever. So one that
has not joined says with every poll that it wants to, and an answer that has come counts as one that is waited for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kafka.errors import FencedInstanceIdError

from featurestore.events.kafka_options import client_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import KafkaConsumer

SESSION_MS, HEARTBEAT_MS = 10_000, 2_000
RETURN_WITHIN_MS = 60_000
"""For so long a member may be busy with the records of one poll, or wait for a store, before others get its partitions."""
PATIENCE_S = 5.0
"""Joining takes less than a second as a rule."""
_JOINED = "<stable>"


def member_options(kafka: Mapping[str, str], group: str, instance: str | None) -> dict[str, Any]:
    """Return the options of a consumer that is a member of a group; what the settings say comes first.

    Args:
        kafka: Kafka settings.
        group: Name of the group.
        instance: The member's name, if it has one that stays.
    """
    return {
        "session_timeout_ms": SESSION_MS,
        "heartbeat_interval_ms": HEARTBEAT_MS,
        "max_poll_interval_ms": RETURN_WITHIN_MS,
        "reconnect_backoff_max_ms": 1_000,  # a broker that is back after a while is not waited for any longer
        **client_options(kafka),
        "group_id": group,
        "group_instance_id": instance,
    }


class Patience:
    """Says what a consumer waits for, once it has waited longer than usual."""

    def __init__(self) -> None:
        self._since: float | None = None

    def told(self, what: str | None) -> str | None:
        """Return, in one line, what has been waited for too long; None when nothing has.

        Args:
            what: What is waited for now; None when nothing is.
        """
        now = time.monotonic()
        self._since = None if what is None else self._since or now
        if self._since is None or now - self._since < PATIENCE_S:
            return None
        return f"Kafka: nothing for {now - self._since:.0f} s: {what}"


def no_broker(group: str, servers: object) -> str:
    """Return what a consumer waits for whose brokers are away."""
    return f"no broker answers for group {group}; is one running at {servers}?"


def another_member(group: str, gone_ms: int, busy_ms: int) -> str:
    """Return what a group waits for that has not handed out its partitions."""
    return (
        f"group {group} waits for another member, for one that is gone up to {gone_ms / 1000:g} s, for one that is "
        f"busy up to {busy_ms / 1000:g} s"
    )


class _Answered:
    """A join with its answer, for kafka-python to wait for: one that is done it does not look at, but joins anew.

    Args:
        join: The join, which is done.
    """

    is_done = False

    def __init__(self, join: Any) -> None:
        self.add_callback, self.add_errback = join.add_callback, join.add_errback


class Membership:
    """What a consumer of kafka-python has to do with its group besides polling.

    Args:
        consumer: The consumer, made with ``member_options``.
    """

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._patience = Patience()
        self._has_name = consumer.config["group_instance_id"] is not None
        self._member: str | None = None  # the id that the broker gave it, a new one for whoever takes over by name

    @property
    def has_joined(self) -> bool:
        """Whether the consumer knows which partitions are its own."""
        return bool(self._consumer.group_metadata().state == _JOINED)

    def asks_again(self) -> bool:
        """Ask for a new distribution, once after each time it has taken over by name; return whether it was asked for.

        Whatever was polled before is then polled again.
        """
        told = self._consumer.group_metadata()
        if not self._has_name or told.state != _JOINED or told.member_id == self._member:
            return False
        self._member = told.member_id
        coordinator = self._consumer._coordinator  # noqa: SLF001 - kafka-python has no public word for it
        if coordinator._is_leader:  # noqa: SLF001 - it has just made the distribution itself
            return False
        coordinator.request_rejoin()
        return True

    def check(self) -> None:
        """Want to join if the consumer has not, with the answer if it is there; raise if another has joined under its name.

        kafka-python stops its heartbeats then, and fetches on. Whoever polls again joins anew, and takes the name back.

        Raises:
            FencedInstanceIdError: The consumer has no part in the group any more.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001 - as above
        if not self.has_joined:
            join = coordinator._join_task  # noqa: SLF001
            if join is not None and join.is_done:
                coordinator._join_task = _Answered(join)  # noqa: SLF001
            coordinator.request_rejoin()
        elif not coordinator._heartbeat_enabled:  # noqa: SLF001
            coordinator.reset_generation()
            raise FencedInstanceIdError(f"another has joined as {self._consumer.config['group_instance_id']}")

    def waiting(self) -> str | None:
        """Return, in one line, for whom the consumer has waited longer than usual; None when it has not."""
        return self._patience.told(self._whom())

    def _whom(self) -> str | None:
        config = self._consumer.config
        if self._consumer._coordinator.coordinator_unknown():  # noqa: SLF001 - no public word either
            return no_broker(config["group_id"], config["bootstrap_servers"])
        if self.has_joined:
            return None
        return another_member(config["group_id"], config["session_timeout_ms"], config["max_poll_interval_ms"])
