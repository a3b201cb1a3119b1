"""`scalr forget --items`: an item is in everything that a project keeps, then in nothing of it, and nothing brings it back."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.byte_search import short_traces, traces
from support.erasure_project import ITEM, LONG, SHORT, START, TEXT, by_night, cut_off, gone, make, where

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.ledger import run_folder
from scalr_prod.schemas import Table
from scalr_prod.training_set.manifest import read_manifest, verify_files
from scalr_prod.training_set.vocabulary import IdVocabulary
from scalr_prod.workspace.suppression_list import SuppressionList

#: Erases items as test_forgetting.py erases users, in the same project.
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def settings(filled, tmp_path):
    shutil.copytree(filled[0].parent, tmp_path / "logs")
    return load_settings(tmp_path / "logs" / "scalr.toml")


@pytest.mark.parametrize(
    "at", [by_night(None), "orchestrate._rebuild_histories", by_night("orchestrate._refresh_online_store")]
)
def test_a_forgotten_item_is_nowhere_and_does_not_come_back(settings, filled, tmp_path, monkeypatch, at):
    run_id, folder = filled[1], run_folder(settings.home, filled[1])
    held = {"lake", "runs", "datasets", "evaluations", "reports", "feast_online.db"}
    assert where(traces(settings.home, ITEM)) >= held
    shutil.copytree(folder / "accepted", tmp_path / "backup")
    with Project(settings) as project:
        before = {table: project.lake.read(table).to_pandas() for table in (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)}
        former = project.training_set()
        names, rows = former.vocabulary(), former.to_pandas()
        theirs = before[Table.TARGET_EVENTS]["item_id"] == ITEM
        published = before[Table.SYNTHETIC_TARGET_EVENTS]["item_id"] == ITEM
        if at is not None:
            with monkeypatch.context() as patched:
                patched.setattr(f"scalr_prod.operations.erasure.{at}", cut_off)
                with pytest.raises(KeyboardInterrupt):
                    project.forget_items([ITEM])
            assert project.ingest().domains["target"].rows_added == 0
        report = project.forget_items([ITEM])
        gone(settings, ITEM)
        assert (report.users, report.items, report.known, report.translators) == (0, 1, 0, [])
        if at is None:
            assert report.removed["target_events"] == theirs.sum() > 0
            assert report.removed["synthetic_target_events"] == published.sum() > 0
            assert report.removed["target_items"] == 1
        (proof,) = project.ledger.changes.find(subject="forgotten")
        assert proof.key == SuppressionList.open(settings).digest(ITEM, "item")
        left = project.lake.read(Table.TARGET_EVENTS).to_pandas()
        assert len(left) == len(before[Table.TARGET_EVENTS]) - theirs.sum()
        # Histories are those of the events that are left.
        history = project.lake.read(Table.TARGET_USER_HISTORY).to_pandas()
        assert history.groupby("user_id")["event_count"].max().to_dict() == left.groupby("user_id").size().to_dict()
        # The training set keeps its other rows, their places and numbers; the item's place in histories is nobody's.
        version = project.training_set()
        verify_files(version.path, read_manifest(version.path))
        kept = version.to_pandas()
        assert len(kept) == version.manifest["rows"] == (rows["item_id"] != ITEM).sum() < len(rows)
        wanted = rows[rows["item_id"] != ITEM]["target_user_history__item_ids"]
        expected = [None if one is None else [None if item == ITEM else item for item in one] for one in wanted]
        assert any(one is not None and None in one for one in expected)
        assert [None if one is None else list(one) for one in kept["target_user_history__item_ids"]] == expected
        numbers = IdVocabulary.read(version.path)
        assert list(numbers.encode("target_items", ["t3", ITEM])) == [next(iter(names.encode("target_items", ["t3"]))), 0]
        assert len(version.torch(history_length=5)) == len(kept)
        # What was made from its events is stale, and the logs do not bring it back.
        assert {"dataset", "publish"} <= {state.stage for state in project.status() if state.stale}
        domains = project.ingest().domains
        assert [one.rows_forgotten for one in domains.values()] == [0, theirs.sum()]
        assert [one.rows_added for one in domains.values()] == [0, 0]
        for work in (
            project.histories,
            project.build_training_set,
            lambda: project.ingest(replace=START),
            lambda: project.rollback(run_id),
            lambda: project.forget_items([ITEM]),
        ):
            work()
            gone(settings, ITEM)
        assert ITEM not in set(project.lake.read(Table.TARGET_ITEMS)["item_id"].to_pylist())
        assert (settings.home / "reports" / "y.html").read_text() == "before\n<td>[forgotten]</td>\nafter\n"
        assert traces(settings.home, TEXT)  # nobody else goes with it


def test_items_whose_ids_are_numbers_leave_too(tmp_path):
    """A long one is searched for as bytes; a short one in all that holds ids of target items."""
    config, run_id = make(tmp_path / "logs", TEXT, "", numbers=True)
    settings = load_settings(config)
    of_items = r"^(target_user_history__|target_item_stats__)?item_ids?$|^target_items?$|partial_unexpected"

    def left(one):
        # Histories of the source domain hold other items under the same names.
        return short_traces(settings.home, one, of_items)

    with Project(settings) as project:
        assert where(left(SHORT)) >= {"lake", "runs", "datasets", "evaluations", "feast_online.db"}
        assert where(traces(settings.home, LONG)) >= {"lake", "runs", "datasets", "feast_online.db"}
        theirs = {
            table: pc.sum(pc.is_in(project.lake.read(table)["item_id"], pa.array([SHORT, LONG]))).as_py()
            for table in (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)
        }
        report = project.forget_items([str(SHORT), str(LONG)])
        assert (report.items, report.removed["target_items"]) == (2, 2)
        for table, rows in theirs.items():
            assert report.removed[table.value] == rows > 0
        assert left(SHORT) == []
        gone(settings, LONG)
        for work in (project.ingest, project.histories, project.build_training_set, lambda: project.rollback(run_id)):
            work()
            assert left(SHORT) == []
            gone(settings, LONG)
        assert left(3), "other items stay"
