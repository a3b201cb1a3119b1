"""Target events that a recommendation led to: counted, left out of the translator's training, and still known as had."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import write_toml

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.core.timestamps import to_micros
from scalr_prod.errors import BadValue, SettingsError
from scalr_prod.pipeline import PipelineReport
from scalr_prod.schemas import Table
from scalr_prod.translator.data.domain_events import DomainEvents, EventWeighting
from scalr_prod.translator.data.event_log import EventLog, data_end, read_event_log
from scalr_prod.translator.data.training_pairs import TrainingSlice, consumed_before
from scalr_prod.translator.retraining import retraining_reason

MARKED = '[domains.target.columns]\nrecommended_by = "shown_by"\n'


@pytest.fixture
def config(two_domains):
    """A third of the target events, which a model of variant b has led to."""
    path = two_domains.folder / "t.parquet"
    target = pd.read_parquet(path)
    target["shown_by"] = np.where(np.arange(len(target)) % 3 == 0, "b", np.where(np.arange(len(target)) % 3 == 1, "", None))
    target.to_parquet(path)
    return write_toml(two_domains, MARKED)


def slice_of(project: Project):
    log = read_event_log(project.settings, data_end(project.lake))
    return log, TrainingSlice.from_log(log, to_micros(data_end(project.lake)), project.settings.translator)


def test_the_weight_is_that_of_the_type_and_0_where_a_model_led_to_it():
    events = pa.table({"event_type": ["view", "buy", "view"], "recommended_by": ["b", None, None]})
    assert EventWeighting({"view": 0.5, "buy": 2.0}, drops_recommended=True).weigh(events).tolist() == [0, 2, 0.5]
    assert EventWeighting({"view": 0.5}).weigh(events).tolist() == [0.5, 1, 0.5]
    assert EventWeighting(drops_recommended=True).weigh(events).tolist() == [0, 1, 1]
    assert EventWeighting().columns == ()


def test_a_choice_after_a_recommended_event_is_a_label_at_the_time_when_the_user_did_not_have_the_item_yet():
    """At its own time a run would not propose the item. Popularity knows of the choice when it is made."""
    events = DomainEvents(
        np.zeros(3, np.int32),
        np.array([0, 1, 0], np.int32),
        np.arange(3),
        pa.array(["a", "b"]),
        np.array([0, 0, 1], np.float32),
    )
    nothing = replace(events, user=events.user[:0], item=events.item[:0], time=events.time[:0], weight=None)
    log = EventLog.with_complete_histories(pa.array(["u"]), np.zeros(1, np.int32), nothing, events, length=1)
    assert (log.is_label & (log.label_weights(until=3) > 0)).tolist() == [True, False, False]
    assert not (log.label_weights(until=2) > 0).any(), "training until then does not know of the choice"
    assert log.weight_gains.tolist() == [0, 0, 1]


def test_they_are_counted_and_no_label_and_yet_never_proposed_again(config):
    with Project.open(config) as project:
        report = project.ingest().domains
        marked = project.lake.read(Table.TARGET_EVENTS)["recommended_by"]
        assert report["target"].recommended == len(marked) - marked.null_count == -(-len(marked) // 3)
        assert report["source"].recommended == 0
        project.histories()
        log, pairs = slice_of(project)
        recommended = log.target.weight == 0
        assert recommended.sum() == report["target"].recommended
        rows = pairs.target_rows()
        had_otherwise = {(u, i) for u, i, e in zip(log.target.user, log.target.item, recommended, strict=True) if not e}
        pairs_of_rows = list(zip(log.target.user[rows], log.target.item[rows], strict=True))
        assert len(rows) == len(had_otherwise)
        assert set(pairs_of_rows) == had_otherwise
        assert len(pairs.popularity_events().item) == len(had_otherwise)
        last = np.flatnonzero(np.append(np.diff(log.target.user), 1))  # each user's last event
        consumed = consumed_before(log, last, pairs.target_index)
        kept = read_event_log(load_settings(config, translator={"recommended_events": "keep"}), data_end(project.lake))
        assert kept.target.weight is None
        same = consumed_before(kept, last, pairs.target_index)
        assert (consumed.count == same.count).all() if hasattr(consumed, "count") else (consumed == same).all()


def test_training_and_the_run_tell_it_and_a_change_of_the_setting_trains_anew(config, caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    with Project.open(config) as project:
        project.ingest()
        project.histories()
        target = project.lake.read(Table.TARGET_EVENTS)
        recommended = target.num_rows - target["recommended_by"].null_count
        trained, again = project.train(), project.train()
    assert (trained.recommended_events, again.recommended_events, again.reused) == (recommended, recommended, True)
    assert f"{recommended} of {target.num_rows} target events are left out of training" in caplog.text
    summary = PipelineReport("run_1", {}, {"translator": trained.to_json()}).to_summary()
    assert summary["translator"] == f"version 1, trained, without {recommended} events that a recommendation led to"
    keeping = load_settings(config, translator={"recommended_events": "keep"})
    assert "recommended_events" in retraining_reason(keeping).text


def test_events_from_before_the_column_was_mapped_are_marked_by_a_replacement(two_domains, config):
    with Project.open(write_toml(two_domains)) as project:
        project.ingest()
        project.histories()
        assert "recommended_by" not in project.lake.read(Table.TARGET_EVENTS).column_names
    write_toml(two_domains, MARKED)
    with Project.open(config) as project:
        with pytest.raises(BadValue, match="405 events are in the lake already with another recommended_by") as told:
            project.ingest()
        assert "--replace 2024-" in told.value.next_step
        replaced = project.ingest("target", replace=datetime(2000, 1, 1, tzinfo=UTC)).domains["target"]
        marked = project.lake.read(Table.TARGET_EVENTS)["recommended_by"]
        assert len(marked) - marked.null_count == replaced.recommended > 0


def test_a_source_domain_has_no_such_column(two_domains):
    with pytest.raises(SettingsError, match="only the target domain"):
        load_settings(write_toml(two_domains, '[domains.source.columns]\nrecommended_by = "shown_by"\n'))
