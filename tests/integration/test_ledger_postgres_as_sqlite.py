"""The ledger's tests once more, on a real PostgreSQL: the same behaviour as on SQLite."""

from __future__ import annotations

import pytest
from ledger.test_database import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_ledger_of_a_newer_package_is_refused,
)
from ledger.test_leases import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_driver_can_wait_for_a_lease,
    test_a_lease_is_renewed_in_the_background_and_its_loss_is_noticed,
    test_a_lease_keeps_others_out_until_it_is_given_back_or_runs_out,
    test_a_takeover_says_from_whom_and_why,
)
from ledger.test_ledger import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_dataset_version_never_changes,
    test_a_model_on_a_dataset_is_recorded_once,
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
from support.ledger_runs import one

from scalr_prod.ledger import Ledger

#: A database for each of twenty tests; what differs by database is in test_ledger_postgres.py.
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def ledger(url):
    with Ledger(url, one()) as opened:
        yield opened
