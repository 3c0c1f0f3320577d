"""Whether the topics of a running job are still the ones that it began on: a name can come back with another topic behind it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from featurestore.errors import BrokerUnavailableError, OffsetsGoneError
from featurestore.events.broker import topic_ids
from featurestore.jobs.checkpoint import refuse_other_topics

if TYPE_CHECKING:
    from collections.abc import Mapping

EVERY_S = 10.0


class TopicWatch(threading.Thread):
    """Asks Kafka for the ids of topics until stopped; while it cannot be reached, it is asked again.

    Args:
        kafka: Kafka settings.
        ids: Topic to the id that it should have.
        stop: Ends it.
        every_s: Seconds between two questions.
    """

    def __init__(
        self, kafka: Mapping[str, str], ids: Mapping[str, str], stop: threading.Event, *, every_s: float = EVERY_S
    ) -> None:
        super().__init__(name="topics", daemon=True)
        self._kafka, self._ids, self._stopped, self._every_s = kafka, ids, stop, every_s
        self._found: OffsetsGoneError | None = None

    def run(self) -> None:
        """Look again and again, until a topic is another one."""
        while self._ids and not self._stopped.wait(self._every_s):
            try:
                refuse_other_topics("this job", self._ids, topic_ids(self._kafka, self._ids))
            except BrokerUnavailableError:
                continue
            except OffsetsGoneError as error:
                self._found = error
                return

    def check(self) -> None:
        """Raise when a topic is another one.

        Raises:
            OffsetsGoneError: One was made anew.
        """
        if self._found is not None:
            raise self._found
