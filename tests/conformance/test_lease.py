"""Who writes a view: the lease of a job, on a real server and on a cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from featurestore.errors import LeaseError, OnlineError
from featurestore.jobs.lease import Lease, LeaseKeeper, is_gone, job_id, stored_names, this_process
from featurestore.online.redis_store import RedisOnlineStore
from tests.frozen import freeze
from tests.raw import raw
from tests.streaming.support import Shop, wait_for

pytestmark = pytest.mark.server

VISIT, CARD = stored_names(Shop("lease").views)


@pytest.fixture(params=["server", "cluster"])
def url(request):
    return request.getfixturevalue("online_url" if request.param == "server" else "cluster_url")


@pytest.fixture
def lease(url):
    """Make leases of one store; it is closed at the end."""
    stores = []

    def make(job, *views, **options):
        stores.append(RedisOnlineStore(url, "lease", timeout_s=0.5))
        return Lease(stores[-1], views or (VISIT, CARD), job, f"{job} (pid 1 on here)", **options)

    yield make
    for each in stores:
        each.close()


def test_another_job_is_refused_with_who_holds_it_until_it_lets_go(lease):
    one, two = lease("one"), lease("two")
    one.take()
    with pytest.raises(LeaseError, match=r"lease, view visit: another job writes it, one \(pid 1 on here\), since 20"):
        two.take()
    one.renew()
    two.release()  # of what it does not have
    with pytest.raises(LeaseError):
        two.take()
    one.release()
    two.take()
    with pytest.raises(LeaseError, match="another job has taken it over, two"):
        one.renew()


def test_the_refusal_says_until_when_and_how_not_to_wait(lease):
    lease("one").take()
    with pytest.raises(LeaseError) as refused:
        lease("two").take()
    said = re.search(r"its lease ends by (\S+Z?); --take-over takes it now", refused.value.hint)
    assert 20 < (datetime.fromisoformat(said.group(1)) - datetime.now(UTC)).total_seconds() <= 30


def test_a_lease_of_a_process_of_this_machine_that_was_killed_is_taken_at_once(lease):
    code = "import sys; from featurestore.jobs.lease import this_process; print(this_process(), flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        place = holder.stdout.readline().strip()
        lease("one", place=place).take()
        with pytest.raises(LeaseError):  # it lives
            lease("two").take()
        assert not is_gone(place)
        holder.kill()
    assert is_gone(place)
    two = lease("two")
    two.take()
    two.renew()
    with pytest.raises(LeaseError, match="writes it, two"):
        lease("three").take()


@pytest.mark.parametrize("place", ["-", "pid", "another-boot/pid:[1]/1/2", "a/b/c/d/e"])
def test_nothing_is_known_of_a_process_elsewhere(lease, place):
    assert not is_gone(place)
    lease("one", place=place).take()
    with pytest.raises(LeaseError):
        lease("two").take()


def test_the_same_pid_in_another_boot_or_container_is_another_process():
    boot, namespace, pid, born = this_process().split("/")
    assert not is_gone(f"{boot}/{namespace}/{pid}/{born}")
    assert is_gone(f"{boot}/{namespace}/{pid}/{born}0")
    assert not is_gone(f"{boot}/{namespace}/{2**70}/{born}")
    assert not is_gone(f"{boot}/{namespace}/0/{born}")
    assert not is_gone(f"x{boot}/{namespace}/{pid}/{born}0")
    assert not is_gone(f"{boot}/x{namespace}/{pid}/{born}0")


def test_the_views_of_a_job_are_taken_together_or_not_at_all(lease):
    lease("card", CARD).take()
    with pytest.raises(LeaseError, match="view card: another job writes it, card"):
        lease("both").take()
    lease("visit", VISIT).take()


def test_a_job_that_is_started_again_takes_its_own_and_the_run_before_ends(lease, tmp_path):
    job = job_id(tmp_path / "checkpoints")
    assert job == job_id(tmp_path / "checkpoints") != job_id(tmp_path / "other")
    killed, again = lease(job), lease(job)
    killed.take()
    again.take()
    with pytest.raises(LeaseError):
        killed.renew()


def test_a_lease_that_is_not_renewed_ends(lease):
    one, two = lease("one", keep_ms=300), lease("two")
    one.take()

    def is_taken():
        try:
            two.take()
        except LeaseError:
            return False
        return True

    assert not is_taken()
    wait_for("its end", is_taken, 10.0)
    with pytest.raises(LeaseError):
        one.renew()


def test_force_takes_it_and_the_one_before_is_told(lease):
    first = LeaseKeeper(lease("one"), every_s=0.02)
    first.start()
    second = None
    try:
        with pytest.raises(LeaseError):
            LeaseKeeper(lease("two"))
        first.check()
        second = LeaseKeeper(lease("two"), over=True, every_s=0.02)
        second.start()
        wait_for("the word", lambda: not first.is_alive(), 10.0)
        with pytest.raises(LeaseError, match="taken it over, two"):
            first.check()
    finally:
        for each in (first, second):
            if each is not None:
                each.stop()
    lease("three").take()


@pytest.mark.parametrize("url", ["server"], indirect=True)
def test_a_lease_outlives_an_outage_of_the_store(lease, online_server):
    held = lease("one")
    keeper = LeaseKeeper(held, every_s=0.02)
    store = held.store
    renewals = []
    ask = store.lease

    def watched(*arguments):
        try:
            renewals.append(ask(*arguments))
        except OnlineError as error:
            renewals.append(error)
            raise
        return renewals[-1]

    store.lease = watched
    keeper.start()
    try:
        wait_for("a renewal", lambda: renewals, 10.0)
        freeze(online_server.pid)
        try:
            wait_for("the outage", lambda: isinstance(renewals[-1], OnlineError), 20.0)
        finally:
            os.kill(online_server.pid, signal.SIGCONT)
        wait_for("a renewal after it", lambda: renewals[-1] == [], 20.0)
        keeper.check()
        with pytest.raises(LeaseError):
            lease("two").take()
    finally:
        keeper.stop()
    assert not raw(store).exists(store.space.lease(VISIT))
