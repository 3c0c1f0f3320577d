"""Readers beside writers on real servers: what every read said is the oracle's, of a prefix, and never goes back."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from featurestore import AsyncFeatureClient, FeatureClient
from featurestore.algebra import Count, Exact, Last, Sum
from featurestore.definitions.view import FeatureView
from featurestore.engines.oracle import values_at
from featurestore.online.lookup import LookupPlan
from featurestore.online.redis_store import RedisOnlineStore
from featurestore.online.writer import FencedWriter
from featurestore.testing.streams import shape_events
from tests.conformance.cases import CARD, SOURCE
from tests.conformance.history import Read, faults
from tests.conformance.support import SECOND, one
from tests.effort import tries
from tests.raw import raw

pytestmark = [pytest.mark.server, pytest.mark.thorough]

TOTALS = FeatureView("totals", CARD, SOURCE, {"n": Count().over("lifetime"), "points": Sum("points").over("lifetime")})
PARTED = FeatureView(
    "parted",
    CARD,
    SOURCE,
    {"n": Count().over("lifetime", Exact("90s")), "last": Last("points").over("lifetime", "1h")},
)
VIEWS = (TOTALS, PARTED)
CARDS = 4
BEGIN = 1


def test_the_views_are_read_from_several_blobs():
    assert [len(view.layout.parts) for view in VIEWS] == [1, 2]


class Scene:
    """A store, batches of one writer per partition, and what its readers saw."""

    def __init__(self, url, *, writers=2, batches=20):
        self.url, self.batches = url, batches
        self.store = RedisOnlineStore(url, "default")
        self.store.publish_plan(LookupPlan("cards", tuple(view.layout for view in VIEWS)))
        with FeatureClient(url, project="default") as client:
            client.service(
                "cards"
            )  # compiles where no machine code is kept yet, which would take a reader's whole time
        self.partitions = range(writers)
        self.begun, self.done = [0] * writers, [0] * writers
        self.reads, self.failures = [], []
        self.publishing, self.complete = threading.Lock(), 0
        self.over = threading.Event()
        self.arrivals = [BEGIN * SECOND - 1, *(self.arrival(number) for number in range(batches))]
        self.t = self.arrival(batches + 5)
        self.store.publish_complete(SOURCE.name, self.arrivals[0])
        self.keys = [f"p{partition}c{card}" for partition in self.partitions for card in range(CARDS)]
        self.expected = {key: [self._oracle(key, count) for count in range(batches + 1)] for key in self.keys}

    def arrival(self, number):
        return (BEGIN + number) * SECOND

    def events(self, partition, number):
        """Every batch has two events of every card."""
        return [
            one(
                self.arrival(number) - place // CARDS,
                card=f"p{partition}c{place % CARDS}",
                points=number * 10 + place,
                partition=partition,
                offset=number * 2 * CARDS + place,
                arrival=self.arrival(number),
            )
            for place in range(2 * CARDS)
        ]

    def _oracle(self, key, count):
        if not count:
            return (0, None, 0, 0, None, None)
        events = [event for number in range(count) for event in self.events(int(key[1]), number)]
        return tuple(value for view in VIEWS for value in values_at(view, events, [key], self.t).values())

    def apply(self, partition, number, writer):
        events = self.events(partition, number)
        self.begun[partition] = number + 1
        writer.apply(
            partition, (number + 1) * 2 * CARDS, self.arrival(number), [shape_events(v, events) for v in VIEWS]
        )
        self.done[partition] = number + 1

    def publish(self):
        with self.publishing:
            complete = self.arrivals[min(self.done)]
            if complete > self.complete:
                self.complete = complete
                self.store.publish_complete(SOURCE.name, complete)

    def wait_for_readers(self):
        """Return once one has looked at every key again: on a busy machine all may be written before the first look.

        A look adds two reads of each key, and there are three who look: of four looks one of them has a whole one.
        """
        enough, give_up = len(self.reads) + 8 * len(self.keys), time.monotonic() + 60
        while len(self.reads) < enough and not self.failures:
            assert time.monotonic() < give_up
            time.sleep(0.001)

    def write(self, partition):
        """Apply all batches of a partition; folds come often."""
        try:
            writer = FencedWriter(self.store, SOURCE.name, VIEWS, tail_cap=2)
            for number in range(self.batches):
                if number % 5 == 0:
                    self.wait_for_readers()
                self.apply(partition, number, writer)
                self.publish()
        except BaseException as error:
            self.failures.append(error)
            raise

    def note(self, reader, keys, done, vectors):
        for key, vector in zip(keys, vectors, strict=True):
            partition = int(key[1])
            newest = max((at for at in vector.as_of.values() if at is not None), default=None)
            said = tuple(vector.to_list())
            self.reads.append(
                Read(
                    reader,
                    key,
                    tuple(keys),
                    done[partition],
                    self.begun[partition],
                    said,
                    newest,
                    vector.complete_through,
                )
            )

    def look(self, client, reader="reader"):
        """Read every key by itself, then all at once."""
        for key in self.keys:
            done = list(self.done)
            self.note(reader, [key], done, [client.get("cards", {"card_id": key}, now=self.t)])
        done = list(self.done)
        self.note(
            reader, self.keys, done, client.get_many("cards", [{"card_id": key} for key in self.keys], now=self.t)
        )

    async def look_async(self, client, reader):
        for key in self.keys:
            done = list(self.done)
            self.note(reader, [key], done, [await client.get("cards", {"card_id": key}, now=self.t)])
        done = list(self.done)
        many = await client.get_many("cards", [{"card_id": key} for key in self.keys], now=self.t)
        self.note(reader, self.keys, done, many)

    def read(self, reader):
        with FeatureClient(self.url, timeout="10s") as client:
            while not self.over.is_set():
                self.look(client, reader)
            self.look(client, reader)

    def read_async(self, reader):
        async def several():
            async with AsyncFeatureClient(self.url, timeout="10s") as client:

                async def poll(number):
                    while not self.over.is_set():
                        await self.look_async(client, f"{reader} {number}")
                    await self.look_async(client, f"{reader} {number}")

                await asyncio.gather(poll(0), poll(1))

        asyncio.run(several())

    def guarded(self, work, *args):
        def run():
            try:
                work(*args)
            except BaseException as error:
                self.failures.append(error)
                raise

        return threading.Thread(target=run)

    def faults(self):
        by_reader = sorted(self.reads, key=lambda read: read.reader)  # stable: each reader's reads stay in order
        return faults(by_reader, self.expected, self.arrivals)


@pytest.fixture(params=["standalone", "cluster"])
def url(request):
    return request.getfixturevalue("online_url" if request.param == "standalone" else "cluster_url")


@pytest.mark.parametrize("seed", range(tries(3)))
def test_readers_beside_writers_see_prefixes_that_only_grow(url, seed):
    scene = Scene(url)
    readers = [scene.guarded(scene.read, "sync"), scene.guarded(scene.read_async, "async")]
    writers = [scene.guarded(scene.write, partition) for partition in scene.partitions]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    scene.over.set()
    for thread in readers:
        thread.join()
    assert scene.failures == []
    assert scene.faults() == []
    for key in scene.keys:  # it was watched while it changed, to its end
        seen = {scene.expected[key].index(read.said) for read in scene.reads if read.key == key}
        assert len(seen) >= 3
        assert max(seen) == scene.batches
    assert scene.complete == scene.arrivals[-1]
    assert {read.complete_through for read in scene.reads[-1:]} == {scene.complete}
    scene.store.close()


# ------------------------------------------------------------------------------------------- negative controls


class Halves(FencedWriter):
    """Writes the two views one after the other; between them, somebody reads."""

    def _send(self, fields, fences, until, buckets, cap):
        for view in range(len(VIEWS)):
            some = [[(index, blobs) for index, blobs in each if self.parts[index][0] == view] for each in buckets]
            super()._send(fields, fences, until, some, cap)
            self.between()
        return {}


def scene_with(url, writer_class, between):
    scene = Scene(url, writers=1, batches=3)
    client = FeatureClient(url, timeout="10s")
    writer = writer_class(scene.store, SOURCE.name, VIEWS)
    writer.between = lambda: scene.look(client)
    for number in range(scene.batches):
        between(scene, number)
        scene.apply(0, number, writer)
        scene.publish()
        scene.look(client)
    client.close()
    return scene


def test_a_writer_that_leaves_half_a_batch_visible_is_found_out(url):
    scene = scene_with(url, Halves, lambda scene, number: None)
    assert any("after no number of batches" in fault for fault in scene.faults())
    scene.store.close()


def test_a_right_writer_passes_the_same_watch(url):
    scene = scene_with(url, FencedWriter, lambda scene, number: None)
    assert scene.faults() == []
    scene.store.close()


def test_a_value_that_goes_back_is_found_out(url):
    scene = scene_with(url, FencedWriter, lambda scene, number: None)
    admin = raw(scene.store)
    names = list(admin.scan_iter("*:v:totals*", 1000))
    before = {name: admin.get(name) for name in names}
    scene.batches, scene.expected = 4, {key: [scene._oracle(key, n) for n in range(5)] for key in scene.keys}
    scene.arrivals.append(scene.arrival(3))
    writer = FencedWriter(scene.store, SOURCE.name, VIEWS)
    with FeatureClient(url, timeout="10s") as client:
        scene.apply(0, 3, writer)
        scene.look(client)
        assert scene.faults() == []
        for name, value in before.items():  # what a fold without its comparison would do
            admin.set(name, value)
        scene.look(client)
    assert scene.faults()
    scene.store.close()


def test_an_instant_published_too_early_or_moved_back_is_found_out(url):
    def early(scene, number):
        scene.store.publish_complete(SOURCE.name, scene.arrival(number))
        with FeatureClient(url, timeout="10s") as client:
            scene.look(client)

    scene = scene_with(url, FencedWriter, early)
    assert any("claims" in fault for fault in scene.faults())
    scene = scene_with(url, FencedWriter, lambda scene, number: None)
    scene.store.publish_complete(SOURCE.name, scene.arrivals[1])
    with FeatureClient(url, timeout="10s") as other:
        scene.look(other)
    assert any("complete_through went back" in fault for fault in scene.faults())
    scene.store.close()
