"""Weights of event types from the log to what is published: the draws follow purchases where views of another taste weigh little."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.small import LOCAL, lean

from scalr_prod import Project
from scalr_prod.schemas import Table
from scalr_prod.translator.data.event_log import read_event_log

#: Two translators and a run; what a weight counts in each estimator is in units.
pytestmark = [pytest.mark.slow, pytest.mark.long]

TASTES = 4
TYPED = 'event_type = "kind"\n'


def weighed(settings, types: str) -> Path:
    """A folder of the same log, purchases with three views of the next taste's items before each; ``types`` as settings have them."""
    config = lean(settings.base / "scalr.toml")
    target = pd.read_parquet(settings.base / "t.parquet")
    rng = np.random.default_rng(0)
    views = target.loc[target.index.repeat(3)].copy()
    number = views["item_id"].str[1:].astype(int)
    views["item_id"] = "t" + (rng.integers(0, 10, len(views)) * TASTES + (number + 1) % TASTES).astype(str)
    views["timestamp"] -= pd.to_timedelta(rng.integers(1, 60, len(views)), unit="m")
    both = pd.concat([target.assign(kind="purchase"), views.assign(kind="view")]).sort_values("timestamp", ignore_index=True)
    both.to_parquet(settings.base / "t.parquet")
    return with_types(config, types)


def with_types(config: Path, types: str) -> Path:
    text = config.read_text().split("[domains.target.columns]")[0]
    text = "\n".join(line for line in text.splitlines() if not line.startswith("types"))
    text = text.replace('events = "t.parquet"', f'events = "t.parquet"\n{types}')
    config.write_text(f"{text}\n[domains.target.columns]\n{TYPED}")
    return config


def taste(items: pd.Series) -> pd.Series:
    return items.str[1:].astype(int) % TASTES


def test_draws_follow_purchases_and_weights_of_one_change_nothing(make_project, tmp_path):
    settings = make_project(tmp_path / "logs", LOCAL, users=80)
    config = weighed(settings, "")
    with Project.open(config) as project:
        project.ingest()
        project.histories()
        plain = project.train()
    with Project.open(with_types(config, "types = { view = 1.0, purchase = 1 }")) as project:
        same = project.train()
        assert (same.version, same.reused) == (plain.version, True), "the same version to the byte"
    other = shutil.copytree(config.parent, tmp_path / "weighed", ignore=shutil.ignore_patterns(".scalr")) / config.name
    unsharpened = {"temperature": 1.0, "min_lift": 1.0}
    with Project.open(with_types(other, "types = { view = 0.02, purchase = 1.0 }"), generation=unsharpened) as project:
        project.run()
        source = project.lake.read(Table.SOURCE_EVENTS).to_pandas()
        main = taste(source["item_id"]).groupby(source["user_id"]).agg(lambda some: some.mode()[0])
        view = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
        drawn, own = taste(view["item_id"]), view["user_id"].map(main)
        follows, contradicts = (drawn == own).mean(), (drawn == (own + 1) % TASTES).mean()
        assert follows > 0.35, "a quarter by chance; each item once for a user"
        assert follows > 2 * contradicts
        weight = read_event_log(project.settings, source["event_timestamp"].max().to_pydatetime()).target.weight
        assert set(np.unique(weight)) == {np.float32(0.02), np.float32(1.0)}
