"""A real-time consumer in the process of a test."""

from __future__ import annotations

import threading

from featurestore.jobs.hot import HotWorker
from featurestore.jobs.realtime import RealtimeConsumer, group_of
from featurestore.jobs.worker import by_topic
from tests.streaming.support import wait_for


class Consuming:
    """A real-time consumer on a thread of this process."""

    def __init__(self, shop, url, broker, *, group="", **options):
        worker = HotWorker(url, shop.name, by_topic(shop.views))
        group = group_of(shop.name, shop.views) + group
        self.consumer = RealtimeConsumer(worker, {"bootstrap.servers": broker}, group, **options)
        self._stop, self.failed = threading.Event(), []
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            self.consumer.run(self._stop)
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.failed.append(error)

    def __enter__(self):
        self._thread.start()
        return self

    def wait(self, what, condition):
        wait_for(what, lambda: self.failed or condition())
        if self.failed:
            raise self.failed[0]

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)
        self.consumer.close()
