"""Who works on a run: leases taken, renewed, lost, waited for and taken over."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.ledger_runs import make_spec

from scalr_prod.errors import LeaseHeld, LeaseLost, LedgerError


def test_a_lease_keeps_others_out_until_it_is_given_back_or_runs_out(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    with ledger.leases.hold(run_id, owner="a") as held:
        held.check()
        with pytest.raises(LeaseHeld, match="a holds the run's lease") as caught, ledger.leases.hold(run_id, owner="b"):
            pass
        assert caught.value.run_id == run_id
        assert ledger.runs.get(run_id).lease_owner == "a"
    assert ledger.runs.get(run_id).lease_owner is None
    ledger.leases.acquire(run_id, "a", ttl_s=0.05)
    time.sleep(0.1)
    ledger.leases.acquire(run_id, "b")
    with pytest.raises(LedgerError, match="was lost"):
        ledger.leases.renew(run_id, "a")
    assert not ledger.leases.release(run_id, "a")
    assert ledger.leases.release(run_id, "b")


def test_two_machines_do_not_work_at_once_on_a_sqlite_ledger(ledger):
    """Another boot id is another machine; containers of one machine have the same."""
    ours, theirs = (ledger.runs.begin(make_spec(seed=seed)).run_id for seed in (1, 2))
    with ledger.leases.hold(theirs) as held:
        host, process, machine, token = held.owner.rsplit(":", 3)
        ledger.leases.acquire(ours, "a")
    beside = f"{host}:{process}:{machine.partition('-')[0]}-00000000:{token}"
    ledger.leases.acquire(theirs, beside)
    ledger.leases.acquire(ours, "a")
    ledger.leases.release(theirs, beside)
    ledger.leases.acquire(theirs, "elsewhere:7:00000000-00000000:1", ttl_s=0.5)
    with pytest.raises(LeaseHeld, match="machine elsewhere is at work with this SQLite ledger") as caught:
        ledger.leases.acquire(ours, "a")
    assert "PostgreSQL" in caught.value.next_step
    time.sleep(0.6)
    ledger.leases.acquire(ours, "a")


def test_a_lease_is_given_back_when_the_work_fails(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    with pytest.raises(RuntimeError, match="boom"), ledger.leases.hold(run_id):
        raise RuntimeError("boom")
    assert ledger.runs.get(run_id).lease_owner is None


def test_a_lease_is_renewed_in_the_background_and_its_loss_is_noticed(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    with ledger.leases.hold(run_id, owner="a", ttl_s=2) as held:
        time.sleep(3)  # the machine may be busy: a renewal has more than a second to come late
        held.check()
        with pytest.raises(LeaseHeld):
            ledger.leases.acquire(run_id, "b")
        engine = ledger.database.engine
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE runs SET lease_owner = 'thief'"))
        until(lambda: held.is_lost)
        with pytest.raises(LeaseLost, match="was lost"):
            held.check()
    assert ledger.runs.get(run_id).lease_owner == "thief", "what is not ours is not given back"


def broken_for(engine: sa.Engine, *, times: int | None = None) -> list[int]:
    """Let the ledger's next statements fail as those of a database that cannot be reached; counts them."""
    failed: list[int] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def refuse(*_arguments):
        if threading.current_thread().name.startswith("lease ") and (times is None or len(failed) < times):
            failed.append(1)
            raise sa.exc.OperationalError("UPDATE", {}, OSError("connection reset"))

    return failed


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_renewal_that_fails_is_tried_again_while_the_lease_lasts(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    with ledger.leases.hold(run_id, owner="a", ttl_s=3) as held:
        before = ledger.runs.get(run_id).lease_expires_at
        failed = broken_for(ledger.database.engine, times=2)
        until(lambda: len(failed) == 2)
        held.check()
        until(lambda: ledger.runs.get(run_id).lease_expires_at > before)
        held.check()


def test_a_lease_that_could_not_be_renewed_in_time_is_asked_for_before_the_next_step(ledger):
    """Nobody renews it here: what counts is whether somebody else took it."""
    run_id = ledger.runs.begin(make_spec()).run_id
    with ledger.leases.hold(run_id, owner="a", ttl_s=0.5) as held:
        broken_for(ledger.database.engine)
        until(lambda: held.is_expired)
        held.check()  # still free: taken again, in this thread
        assert not held.is_expired
        until(lambda: held.is_expired)
        ledger.leases.acquire(run_id, "b")
        for _ in range(2):
            with pytest.raises(LeaseLost, match="was lost"):
                held.check()
    assert ledger.runs.get(run_id).lease_owner == "b"


def test_a_lease_that_ran_out_while_the_ledger_cannot_be_reached_allows_nothing(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    with ledger.leases.hold(run_id, owner="a", ttl_s=0.5) as held:
        broken_for(ledger.database.engine)
        until(lambda: held.is_expired)
        engine = ledger.database.engine

        def refuse(*_arguments):
            raise sa.exc.OperationalError("UPDATE", {}, OSError("connection reset"))

        sa.event.listen(engine, "before_cursor_execute", refuse)
        with pytest.raises(LedgerError, match="cannot be reached"):
            held.check()
        sa.event.remove(engine, "before_cursor_execute", refuse)
        held.check()


def test_a_driver_can_wait_for_a_lease(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    ledger.leases.acquire(run_id, "a")
    threading.Timer(0.5, ledger.leases.release, (run_id, "a")).start()
    with ledger.leases.hold(run_id, owner="b", wait_s=20):
        assert ledger.runs.get(run_id).lease_owner == "b"
    ledger.leases.acquire(run_id, "a")
    with pytest.raises(LeaseHeld), ledger.leases.hold(run_id, owner="b", wait_s=0.3):
        pass


LEAVE_A_LEASE = """
import os, sys
from scalr_prod.workspace.identity import ProjectIdentity
from scalr_prod.ledger import Ledger
lease = Ledger(sys.argv[1], ProjectIdentity("one", "/lakes/one", "/homes/one")).leases.hold(sys.argv[2])
lease.__enter__()
print("held", flush=True)
if sys.argv[3] == "die":
    os._exit(1)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="only Linux tells one space of process ids from another")
def test_the_lease_of_a_process_that_died_here_is_free_and_that_of_a_living_one_is_not(ledger, url):
    run_id = ledger.runs.begin(make_spec()).run_id
    command = [sys.executable, "-c", LEAVE_A_LEASE, url, run_id]
    with subprocess.Popen([*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeld), ledger.leases.hold(run_id):
            pass
        living.kill()
    with ledger.leases.hold(run_id):
        pass
    subprocess.run([*command, "die"], check=False, capture_output=True)
    assert ledger.runs.get(run_id).lease_owner is not None
    owner = ledger.runs.get(run_id).lease_owner
    host, pid, machine, token = owner.rsplit(":", 3)
    with ledger.leases.hold(run_id):
        pass
    # The same process id on another machine says nothing about that one.
    ledger.leases.acquire(run_id, f"{host}:{pid}:{'0' * len(machine)}:{token}")
    with pytest.raises(LeaseHeld), ledger.leases.hold(run_id):
        pass


def test_a_takeover_says_from_whom_and_why(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    ledger.leases.acquire(run_id, "first", ttl_s=-1)
    ledger.leases.acquire(run_id, "second")
    (change,) = ledger.changes.find(run_id, subject="lease")
    assert (change.from_state, change.to_state) == ("first", "second")
    assert "expired" in change.cause
