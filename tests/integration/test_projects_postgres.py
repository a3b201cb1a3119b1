"""Several projects in a ledger on a real PostgreSQL: as on SQLite."""

from __future__ import annotations

import pytest
from ledger.test_tenancy import (  # noqa: F401 - collected here: the same tests, with the fixtures below
    test_a_home_that_is_mounted_elsewhere_is_the_same_and_its_copy_is_not,
    test_a_project_is_renamed_or_moved_when_the_settings_say_so,
    test_a_project_that_only_looks_leaves_no_trace,
    test_a_run_of_another_project_is_refused_by_its_name_and_nothing_changes,
    test_a_version_of_another_project_cannot_be_promoted,
    test_of_two_that_open_at_once_the_first_to_write_has_the_name,
    test_one_name_on_two_lakes_is_refused_with_both_lakes,
    test_the_same_run_of_two_projects_is_two_runs,
    test_two_names_on_one_lake_or_home_are_refused,
    test_versions_promotions_and_data_sets_are_numbered_by_project,
    two,
)

pytestmark = [pytest.mark.slow, pytest.mark.nightly]  # CONTRIBUTING.md
