"""The ledger on a real PostgreSQL: drivers on one database that race, lost connections, migrations."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from ledger.test_database import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_ledger_of_the_first_schema_gets_the_later_tables,
    test_a_table_of_somebody_else_is_not_taken_for_the_ledgers,
    test_processes_that_open_and_write_a_new_ledger_at_once_lose_nothing,
    test_the_schema_is_the_models,
)
from support.ledger_runs import make_spec, one, validated

from scalr_prod.errors import LeaseHeld, LedgerError
from scalr_prod.ledger import Ledger, RunState

pytestmark = pytest.mark.slow


@pytest.fixture
def ledger(url):
    with Ledger(url, one()) as opened:
        yield opened


def test_of_drivers_that_want_one_run_exactly_one_gets_it(ledger, url):
    run_id = ledger.runs.begin(make_spec()).run_id
    got, refused, start = [], [], threading.Barrier(8)

    def driver(name: str) -> None:
        with Ledger(url, one()) as own:
            start.wait()
            try:
                own.leases.acquire(run_id, name)
                got.append(name)
            except LeaseHeld:
                refused.append(name)

    threads = [threading.Thread(target=driver, args=(f"d{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == 7
    assert ledger.runs.get(run_id).lease_owner == got[0]


def test_of_two_moves_to_different_states_one_is_refused(ledger, url):
    run_id = validated(ledger)
    outcomes, start = [], threading.Barrier(2)

    def move(state: str) -> None:
        with Ledger(url, one()) as own:
            start.wait()
            try:
                outcomes.append(own.runs.set_state(run_id, state, cause=state).state)
            except LedgerError:
                outcomes.append(None)

    threads = [threading.Thread(target=move, args=(state,)) for state in ("published", "rejected")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None in outcomes
    assert ledger.runs.get(run_id).state in {RunState.PUBLISHED, RunState.REJECTED}
    assert len(ledger.changes.find(run_id, subject="run")) == 5


def test_a_connection_that_the_server_dropped_is_opened_again(ledger, url):
    run_id = ledger.runs.begin(make_spec()).run_id
    killer = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with killer.connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    killer.dispose()
    assert ledger.runs.get(run_id).state is RunState.PLANNED


def test_the_password_is_in_no_message(url):
    secret = sa.make_url(url).set(username="nobody", password="hunter2", database="nowhere")  # noqa: S106 - made up
    with pytest.raises(LedgerError, match="cannot be reached") as caught:
        Ledger(secret.render_as_string(hide_password=False), one())
    assert "hunter2" not in str(caught.value)
