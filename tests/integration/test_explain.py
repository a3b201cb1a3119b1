"""Events of a real run explained: the probability comes out again, and its parts add up to it."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from support.provenance import published_with_sources
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import EventNotFound, TranslatorNotFound
from scalr_prod.features import apply_feature_repo
from scalr_prod.generation import generate, plan_run
from scalr_prod.lake import Lake
from scalr_prod.operations.explanation import explain_events
from scalr_prod.publication.commit import publish
from scalr_prod.quality import validate_run
from scalr_prod.schemas import Table

#: Publishes two runs and explains a thousand events.
pytestmark = [pytest.mark.slow, pytest.mark.long]


def published(trained_home, folder, here, **generation):
    """A project with a published run."""
    shutil.copytree(trained_home.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)
    path = folder / trained_home.name
    told = "".join(f"{name} = {value}\n" for name, value in generation.items())
    text = path.read_text().replace("[generation]\n", f"[generation]\npartitions = 2\n{told}")
    path.write_text(text + '[serving]\nscorer = "local"\n')
    apply_feature_repo(load_settings(path))
    settings = load_settings(path, compute={"workers": 1, "dask": here})
    spec = plan_run(settings, version=2)
    generate(settings, spec)
    validate_run(settings, spec.run_id)
    publish(settings, spec.run_id)
    return path


@pytest.fixture(scope="module")
def config(trained_home, tmp_path_factory, here):
    return published(trained_home, tmp_path_factory.mktemp("explain") / "project", here)


@pytest.fixture
def view(config) -> pd.DataFrame:
    return published_with_sources(Lake.open(load_settings(config))).sort_values("event_id")


def test_the_probabilities_of_1000_events_come_out_again(config, view):
    chosen = view.head(1000)
    assert len(chosen) == 1000
    found = explain_events(load_settings(config), chosen["event_id"].tolist())
    assert [one.event["event_id"] for one in found] == chosen["event_id"].tolist()
    for one, published in zip(found, chosen.itertuples(), strict=True):
        assert one.probability["published"] == published.probability
        assert abs(one.probability["recomputed"] - published.probability) < 1e-6
        again = one.probability["recomputed"] / (one.probability["recomputed"] + one.probability["prior"])
        assert again == pytest.approx(published.weight, abs=1e-5)
    assert {one.translator["parameters"] for one in found} <= {"newcomers", "fold 0 of 2", "fold 1 of 2"}


def test_the_parts_add_up_and_say_what_the_source_event_and_the_history_were(config, view):
    event = view.iloc[7]
    with Project.open(config) as project:
        one = project.explain(event["event_id"])
        source = project.lake.read(Table.SOURCE_EVENTS).to_pandas()
        items = project.lake.read(Table.TARGET_ITEMS).to_pandas().set_index("item_id")["title"]
        length = project.settings.histories.length
    assert (one.event["user"], one.event["item"]) == (event["user_id"], event["item_id"])
    assert one.event["title"] == items[event["item_id"]]
    assert one.source["item"] == event["source_item_id"]
    before = source[(source["user_id"] == event["user_id"]) & (source["event_timestamp"] <= event["source_event_timestamp"])]
    before = before.sort_values("event_timestamp", ascending=False).head(length)
    assert [row["item"] for row in one.history] == before["item_id"].tolist()
    assert [pd.Timestamp(row["time"]) for row in one.history] == before["event_timestamp"].tolist()
    assert {term["kind"] for term in one.terms} == {"estimator", "popularity"}
    assert len({term["name"] for term in one.terms}) == len(one.terms) > 3
    assert event["item_id"] in [row["item"] for row in one.drawn], "the same noise draws the same items"
    assert len(one.drawn_without_history) == 2
    assert one.probability["lift"] == pytest.approx(one.probability["published"] / one.probability["prior"])
    assert (one.run["run_id"], one.translator["version"]) == (event["run_id"], 2)
    assert math.isfinite(sum(term["logit"] for term in one.terms))


def test_terms_and_normaliser_give_the_probability(config, view):
    """On the level below: log P is the sum of the terms less the normaliser, and the terms of another item give its own."""
    from scalr_prod.translator import load_version
    from scalr_prod.translator.attribution import attribute
    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule

    version = load_version(load_settings(config), 2)
    module = TranslatorModule.load(version.path, trusted=True)
    items = np.arange(module.n_target, dtype=np.int32)
    length = module.history_length
    one = Contexts(
        history_items=np.full((1, length), 3, dtype=np.int32),
        history_ages=np.zeros((1, length), dtype=np.float32),
        history_end=np.array([1_720_000_000_000_000]),
        event_time=np.array([1_720_000_000_000_000]),
        fold=np.array([-1], dtype=np.int32),
        noise_key=np.zeros(1, dtype=np.int64),
        exclude=np.array([[5]], dtype=np.int32),
    )
    many = one.take(np.zeros(len(items), dtype=np.int64))
    apart = list(attribute(module, many, items))
    expected, prior = module.score(one, items[None])
    assert np.abs(np.array([part.probability for part in apart]) - expected[0]).max() < 1e-6
    assert np.abs(np.array([part.prior for part in apart]) - prior[0]).max() < 1e-6
    assert apart[5].probability == 0
    for part in (part for part in apart if part.probability):
        total = sum(term.logit for term in part.terms) - part.log_normaliser
        assert math.exp(total) == pytest.approx(part.probability, rel=1e-9)
    weighed = sum(part.prior * term.above for part in apart for term in part.terms)
    assert weighed == pytest.approx(0, abs=1e-6), "above is above the mean by the prior"


def test_an_event_that_was_drawn_from_a_shortlist_is_explained(trained_home, tmp_path, here):
    settings = load_settings(published(trained_home, tmp_path / "project", here, shortlist=40))
    rows = Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas().sort_values("event_id").head(200)
    found = explain_events(settings, rows["event_id"].tolist())
    assert all(row.item_id in [drawn["item"] for drawn in one.drawn] for one, row in zip(found, rows.itertuples(), strict=True))
    told, again = (np.array([one.probability[which] for one in found]) for which in ("published", "recomputed"))
    assert np.abs(told - again).max() > 1e-6, "a shortlist's normaliser is an estimate"
    assert np.corrcoef(np.log(told), np.log(again))[0, 1] > 0.95


def test_the_command_line_explains_and_names_what_is_not_there(config, view):
    shown = CliRunner().invoke(app, ["explain", view.iloc[0]["event_id"], "--config", str(config), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["event"]["event_id"] == view.iloc[0]["event_id"]
    text = CliRunner().invoke(app, ["explain", view.iloc[0]["event_id"], "--config", str(config)])
    assert "recomputed" in text.stdout
    missing = CliRunner().invoke(app, ["explain", "0" * 32, "--config", str(config), "--json"])
    assert missing.exit_code == 1
    assert json.loads(missing.stdout)["error"] == "EventNotFound"
    with pytest.raises(EventNotFound, match="no event"):
        explain_events(load_settings(config), [view.iloc[0]["event_id"], "' OR 1=1"])


def test_a_translator_that_is_gone_is_named(config, view, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(config.parent, folder)
    shutil.rmtree(folder / ".scalr" / "models" / "translator" / "2")
    with pytest.raises(TranslatorNotFound, match="translator version 2 does not exist"):
        explain_events(load_settings(folder / config.name), [view.iloc[0]["event_id"]])
