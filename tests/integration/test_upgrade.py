# SPDX-License-Identifier: Apache-2.0
"""A home that version 0.1 made before the package was laid out anew (commit 14eb49a): it opens, its run is the same, and it goes on.

`tests/data/home_0_1.tar.gz` is such a home, moved here from a folder that no longer exists, with its logs and
settings.
"""

import tarfile
from pathlib import Path

import pandas as pd
import pytest
from support.provenance import published_with_sources

from scalr_prod import Project
from scalr_prod.errors import FeatureStoreError
from scalr_prod.features import open_feature_store
from scalr_prod.schemas import SOURCE_COLUMNS, Table

#: A whole run of the home that was taken over.
long = pytest.mark.long

HOME = Path(__file__).resolve().parents[1] / "data" / "home_0_1.tar.gz"
RUN, ROWS, PAIRS = "run_475d95ec5ccb6679", 2559, 446


@pytest.fixture
def upgraded(tmp_path):
    with tarfile.open(HOME) as archive:
        archive.extractall(tmp_path, filter="data")
    with Project.open(tmp_path / "scalr.toml") as project:
        yield project


def test_what_was_made_is_read(upgraded):
    (run,) = upgraded.runs()
    assert (run.run_id, run.state) == (RUN, "published")
    assert upgraded.rows_in_view() == {RUN: ROWS}
    assert [version.version for version in upgraded.translators()] == [1]
    rows = upgraded.training_set().to_arrow()
    assert len(rows) == 3259
    # The recipe of training and the weights of synthetic rows have changed since, and status says so before a run does it.
    assert [state.stage for state in upgraded.status() if state.stale or not state.done] == ["translator", "dataset"]
    (event, *_) = upgraded.lake.read(Table.SYNTHETIC_TARGET_EVENTS)["event_id"].to_pylist()
    with pytest.raises(FeatureStoreError, match=r"read the lake at /srv/upgrade/home/lake.*\n.*run: scalr histories"):
        upgraded.explain(event)
    upgraded.histories()
    assert upgraded.explain(event).event["event_id"] == event


def test_the_feature_repository_of_before_opens_by_its_former_class_path(upgraded):
    file = upgraded.settings.feast_repo / "feature_store.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("/srv/upgrade/home", str(upgraded.settings.home)), encoding="utf-8")
    assert "scalr_prod.feast_store.offline_store.DeltaOfflineStore" in text
    views = {view.name for view in open_feature_store(upgraded.settings).list_feature_views()}
    assert "synthetic_target_events" in views


@long
def test_a_run_again_trains_by_the_recipe_of_today_and_replaces_the_events(upgraded):
    run_id = upgraded.run().run_id
    assert run_id != RUN
    assert [version.version for version in upgraded.translators()] == [1, 2], "the recipe has changed since"
    rows = upgraded.rows_in_view()
    assert rows[RUN] == 0
    assert rows[run_id] > PAIRS / 2, "version 0.1 published a user's item several times, and it is now published once"
    assert "scalr_prod.features.offline_store" in (upgraded.settings.feast_repo / "feature_store.yaml").read_text(
        encoding="utf-8"
    )


def test_maintain_moves_the_source_columns_out_of_the_view(upgraded):
    upgraded.histories()
    before = upgraded.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas().sort_values("event_id", ignore_index=True)
    assert {*SOURCE_COLUMNS} <= {*before}
    assert ("columns", "synthetic_target_events") in {(one.kind, one.name) for one in upgraded.maintain().removed}
    after = published_with_sources(upgraded.lake).sort_values("event_id", ignore_index=True)
    pd.testing.assert_frame_equal(after[list(before)], before)
    assert not {*SOURCE_COLUMNS} & {*upgraded.lake.schema(Table.SYNTHETIC_TARGET_EVENTS).names}
    assert upgraded.explain(after["event_id"][0]).source["item"] == after["source_item_id"][0]
    assert upgraded.rows_in_view() == {RUN: ROWS}
    upgraded.rollback(RUN)
    assert upgraded.rows_in_view() == {RUN: 0}


def test_a_run_of_before_is_rolled_back(upgraded):
    upgraded.rollback(RUN)
    assert upgraded.rows_in_view() == {RUN: 0}
