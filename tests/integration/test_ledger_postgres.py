"""The ledger on a real PostgreSQL: the same behaviour as on SQLite, and drivers on one database that race."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from ledger.test_database import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_ledger_of_a_newer_package_is_refused,
    test_a_ledger_of_the_first_schema_is_carried_over_whole,
    test_processes_that_open_and_write_a_new_ledger_at_once_lose_nothing,
    test_the_schema_is_the_models,
)
from ledger.test_leases import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_driver_can_wait_for_a_lease,
    test_a_lease_is_renewed_in_the_background_and_its_loss_is_noticed,
    test_a_lease_keeps_others_out_until_it_is_given_back_or_runs_out,
    test_a_takeover_says_from_whom_and_why,
)
from ledger.test_ledger import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_dataset_version_never_changes,
    test_a_model_version_never_changes,
    test_a_publication_is_intended_then_confirmed_and_can_be_taken_back,
    test_a_repeated_partition_replaces_its_manifest,
    test_a_run_begins_once,
    test_a_run_that_was_not_validated_cannot_be_confirmed_and_nothing_of_it_stays,
    test_all_that_has_a_state_has_a_history,
    test_an_id_taken_by_another_spec_is_refused,
    test_an_unknown_run_is_told,
    test_from_each_state_only_those_that_follow,
    test_later_publications_over_a_window_are_found,
    test_partitions_land_together_or_not_at_all,
    test_promotions_are_kept_in_order,
    test_runs_are_listed_newest_first_by_state_and_up_to_a_number,
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
    assert len(ledger.runs.transitions(run_id)) == 5


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
