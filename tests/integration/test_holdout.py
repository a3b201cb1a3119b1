"""Held-out users through retrains and changes of volume: no synthetic event in runs, in the feature view, or in training sets."""

from __future__ import annotations

import shutil

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.generation import generate, plan_run
from scalr_prod.lake import Lake
from scalr_prod.operations.holdout_experiment import analyze_experiment
from scalr_prod.publication.commit import publish
from scalr_prod.quality import validate_run
from scalr_prod.schemas import Table
from scalr_prod.training_set import TrainingSet, build_training_set
from scalr_prod.translator import train
from scalr_prod.workspace.user_assignment import CANARY_COLUMN, HELD_OUT_COLUMN, Canary, Holdout

pytestmark = pytest.mark.slow

SHARE = 0.2


@pytest.fixture(scope="module")
def opened(trained_home, tmp_path_factory, here):
    """Settings of a copy of the trained project, with more sections and the key that decides who is held out."""
    folder = tmp_path_factory.mktemp("holdout") / "project"
    shutil.copytree(trained_home.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)

    def make(*, holdout: float = SHARE, canary: float = 0.0, **sections):
        return load_settings(
            folder / trained_home.name,
            generation={"partitions": 2} | sections.pop("generation", {}),
            compute={"workers": 1, "dask": here},
            serving={"scorer": "local", "threads": 2},
            experiment={"holdout": holdout, "canary": canary, "key": "a key of the company"},
            translator={"threads": 1} | sections.pop("translator", {}),
            **sections,
        )

    apply_feature_repo(make())
    return make


def held_users(settings) -> set[str]:
    users = Lake.open(settings).read(Table.SOURCE_EVENTS, columns=["user_id"])
    with duckdb.connect() as db:
        db.register("users", users)
        return {
            row[0]
            for row in db.sql(
                f"SELECT DISTINCT user_id FROM users WHERE {Holdout.from_settings(settings).membership_sql('user_id')}"
            ).fetchall()
        }


def published(settings, version: int) -> pd.DataFrame:
    """The feature view's rows after a whole run of a translator version."""
    spec = plan_run(settings, version=version)
    generate(settings, spec)
    report = validate_run(settings, spec.run_id)
    assert report.passed
    publish(settings, spec.run_id)
    view = Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    assert set(view["run_id"]) == {spec.run_id}
    return view


@pytest.mark.long
def test_held_out_users_get_no_event_over_three_retrains_and_a_change_of_volume(opened):
    held = held_users(opened())
    assert 40 < len(held) < 80
    everybody = published(opened(holdout=0.0), 1)
    assert len(held & set(everybody["user_id"])) > 30, "they would have events"
    assert analyze_experiment(opened()).synthetic_events_of_held_out > 0, "of before the experiment"
    before = build_training_set(opened())
    rows = TrainingSet.open(before.path).to_pandas()
    assert not rows.loc[rows["is_synthetic"], "user_id"].isin(held).any(), "what they had before is no part of it"

    version = train(opened(translator={"seed": 2})).version
    assert version == 3
    for retrained in (1, 2, version):
        view = published(opened(), retrained)
        assert not held & set(view["user_id"])
        assert len(view) > 1000
    more = published(opened(generation={"events_per_source_event": 4}), version)
    assert not held & set(more["user_id"])
    assert len(more) > 1.2 * len(view)
    assert held_users(opened()) == held
    report = analyze_experiment(opened())
    assert (report.users_held_out, report.synthetic_events_of_held_out, report.runs_of_other_keys) == (len(held), 0, [])


def test_a_training_set_marks_their_rows_and_offers_the_mark_to_no_model(opened):
    held = held_users(opened())
    settings = opened(canary=0.3, training_set={"negatives_per_event": 1})
    report = build_training_set(settings)
    chosen = TrainingSet.open(report.path, check=True)
    rows = chosen.to_pandas()
    assert (rows[HELD_OUT_COLUMN] == rows["user_id"].isin(held)).all()
    assert 0.1 < rows.loc[~rows["is_synthetic"], HELD_OUT_COLUMN].mean() < 0.3
    assert set(rows.loc[rows[HELD_OUT_COLUMN], "label"]) == {0, 1}
    assert not {HELD_OUT_COLUMN, CANARY_COLUMN} & set(chosen.manifest["features"])
    first = dict(
        zip(rows["user_id"], Canary.from_settings(settings).membership_mask(pa.array(rows["user_id"])).to_pylist(), strict=True)
    )
    assert (rows[CANARY_COLUMN] == rows["user_id"].map(first)).all()
    assert 0.15 < np.mean(list(first.values())) < 0.45
    assert not (rows[CANARY_COLUMN] & rows[HELD_OUT_COLUMN]).any()
    plain = TrainingSet.open(build_training_set(opened(holdout=0.0)).path).to_pandas()
    assert not {HELD_OUT_COLUMN, CANARY_COLUMN} & set(plain.columns)
