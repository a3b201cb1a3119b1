"""What training reads: histories of late events, and tables as they were when the fingerprint was taken."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import LakeError, TranslatorError
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import USER_ID, Table
from scalr_prod.translator import load_version, train, training
from scalr_prod.translator.data import event_log
from scalr_prod.translator.data.event_log import read_event_log

if TYPE_CHECKING:
    from scalr_prod.config.settings import Settings
    from scalr_prod.translator.data.event_log import EventLog

#: Trains on a log with late events; unit/translator and test_late.py have late events by themselves.
pytestmark = [pytest.mark.slow, pytest.mark.long]

#: Whatever is written to it, there is no space left.
FULL = Path("/dev/full")
START = datetime(2024, 1, 1, tzinfo=UTC)
STEPPED = '[histories]\nlate_step_s = 86400\n[domains.source.columns]\ncreated = "created"\n'


def day(number: float) -> datetime:
    return START + timedelta(days=number)


#: (item, happened, became known) of user "late"; the step is a day.
LATE = (
    ("s1", day(10), day(10)),
    ("s2", day(20), day(150.25)),  # enters histories at day 151
    ("s3", day(30), day(30)),
    ("s4", day(150.3), day(150.3)),
    ("s5", day(160), day(160)),
)


@pytest.fixture(scope="module")
def late_project(tmp_path_factory, make_project) -> Settings:
    """A log with late events of one user, and of every third event of all others."""
    settings = make_project(tmp_path_factory.mktemp("late") / "logs", STEPPED)
    source, target = (pd.read_parquet(settings.base / name) for name in ("s.parquet", "t.parquet"))
    source["created"] = source["timestamp"]
    every_third = source.index % 3 == 0
    source.loc[every_third, "created"] += pd.Timedelta(days=60)
    hers = pd.DataFrame([("late", *row) for row in LATE], columns=["user_id", "item_id", "timestamp", "created"])
    more = pd.DataFrame({"user_id": "late", "item_id": ["t1", "t2", "t3"], "timestamp": [day(40), day(150.4), day(170)]})
    for new, others, name in ((hers, source, "s.parquet"), (more, target, "t.parquet")):
        typed = new.astype({column: others[column].dtype for column in new.columns})
        pd.concat([others, typed]).to_parquet(settings.base / name)
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    return settings


def copied(settings: Settings, folder: Path) -> Settings:
    shutil.copytree(settings.base, folder)
    own = load_settings(folder / "scalr.toml", translator={"estimators": ["popularity", "frequency"]})
    apply_feature_repo(own)  # Feast's registry holds the tables' addresses
    return own


def histories(log: EventLog) -> dict[tuple[str, int], list[tuple[str, int]]]:
    """(user, time) of each target event → the (item, time) of its history."""
    users, items = log.users.to_pylist(), log.source.ids.to_pylist()
    return {
        (users[user], time): [(items[log.source.item[at]], int(log.source.time[at])) for at in row if at >= 0]
        for user, time, row in zip(log.target.user, log.target.time.tolist(), log.history, strict=True)
    }


def micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def of_late(settings: Settings, until: datetime) -> dict[float, list[str]]:
    """Day of the user's target events → the items of its history."""
    found = histories(read_event_log(settings, until)).items()
    return {(time - micros(START)) / 86_400_000_000: [item for item, _ in row] for (user, time), row in found if user == "late"}


def test_a_late_event_enters_histories_with_its_step(late_project):
    assert of_late(late_project, day(150.2)) == {40: ["s1", "s3"]}
    # Known, but not entered; a history that begins after it was known holds it at once.
    assert of_late(late_project, day(150.5)) == {40: ["s1", "s3"], 150.4: ["s1", "s2", "s3", "s4"]}
    assert of_late(late_project, day(151)) == {40: ["s1", "s2", "s3"], 150.4: ["s1", "s2", "s3", "s4"]}


def test_histories_are_those_of_the_table_where_steps_end_on_any_day(late_project):
    """Against what the table's rows say, read with pandas: the latest row by event time, then by the time it was known."""
    until = day(120.95)
    rows = Lake.open(late_project).read(Table.SOURCE_USER_HISTORY).to_pandas()
    rows = rows[rows["created_timestamp"] <= until].sort_values(["event_timestamp", "created_timestamp"])
    events = Lake.open(late_project).read(Table.SOURCE_EVENTS).to_pandas()
    events = events[events["created_timestamp"] <= until]
    found = histories(read_event_log(late_project, until))
    fewer = 0
    for (user, time), history in found.items():
        moment = pd.Timestamp(time, unit="us", tz="UTC")
        before = rows[(rows["user_id"] == user) & (rows["event_timestamp"] < moment)]
        assert [item for item, _ in history] == ([] if before.empty else before.iloc[-1]["item_ids"].tolist())
        fewer += len(history) < ((events["user_id"] == user) & (events["event_timestamp"] < moment)).sum()
    assert len(found) > 300
    assert fewer, "some event must be known and not have entered, or this test shows nothing"


def test_training_just_after_a_late_event_ends_with_a_version(late_project, tmp_path):
    settings = copied(late_project, tmp_path / "logs")
    train(settings, trained_until=day(150.5))
    assert load_version(settings).trained_until == day(150.5)


@pytest.mark.parametrize("known", [3, 119])
def test_histories_that_lack_an_event_which_has_entered_are_refused(late_project, tmp_path, known):
    settings = copied(late_project, tmp_path / "logs")
    lake = Lake.open(settings)
    user = lake.read(Table.TARGET_EVENTS, columns=["user_id"])["user_id"][0]
    schema = lake.schema(Table.SOURCE_EVENTS)
    new = {"user_id": user, "item_id": "s1", "event_timestamp": day(-1), "created_timestamp": day(known), "weight": 1.0}
    lake.append(Table.SOURCE_EVENTS, pa.Table.from_pylist([new], schema), key="new")
    with pytest.raises(TranslatorError, match=r"(?s)another state of the event log.*scalr histories"):
        read_event_log(settings, day(200))


def test_a_commit_after_the_fingerprint_was_taken_has_no_part_in_the_version(late_project, tmp_path, monkeypatch):
    """A reader of logs lands between the moment at which training looks at the tables and the one at which it reads them."""
    quiet, busy = copied(late_project, tmp_path / "quiet"), copied(late_project, tmp_path / "busy")
    until = day(230)
    expected = train(quiet, trained_until=until)
    look_up = training.find_by_fingerprint

    def commit_first(settings: Settings, fingerprint: str):
        if settings is busy:
            monkeypatch.setattr(training, "find_by_fingerprint", look_up)
            lake = Lake.open(busy)
            events = lake.read(Table.TARGET_EVENTS).slice(0, 40)
            others = events[USER_ID].combine_chunks()[::-1]  # the same events again would be repeats, and no labels
            place = events.schema.get_field_index(USER_ID)
            lake.append(Table.TARGET_EVENTS, events.set_column(place, USER_ID, others), key="while training")
            lake.append(Table.TARGET_ITEMS, lake.read(Table.TARGET_ITEMS).slice(0, 40), key="while training")
        return look_up(settings, fingerprint)

    monkeypatch.setattr(training, "find_by_fingerprint", commit_first)
    found = train(busy, trained_until=until)
    version = load_version(busy, found.version)
    assert version.sha256 == expected.sha256
    assert version.vocabulary().count.tolist() == load_version(quiet).vocabulary().count.tolist()
    lake = Lake.open(busy)
    assert version.manifest["data_versions"][Table.TARGET_EVENTS.value] == lake.version(Table.TARGET_EVENTS) - 1
    again = train(busy, trained_until=until)
    assert (again.reused, again.version) == (False, found.version + 1), "what was committed meanwhile is trained on next"
    assert again.sha256 != expected.sha256


def test_a_commit_while_the_log_is_read_has_no_part_in_it(late_project, tmp_path, monkeypatch):
    """Evaluations name no version of the tables; ids are read first, then the events."""
    settings = copied(late_project, tmp_path / "logs")
    expected = read_event_log(settings, day(230))
    look_up = event_log.distinct_ids

    def commit_first(reader: pa.RecordBatchReader) -> list[pa.Array]:
        found = look_up(reader)
        lake = Lake.open(settings)
        for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
            events = lake.read(table).slice(0, 40)
            unknown = pa.array([f"new {number}" for number in range(len(events))])
            place = events.schema.get_field_index(USER_ID)
            lake.append(table, events.set_column(place, events.schema.field(place), unknown), key=f"{table} {len(unknown)}")
        return found

    monkeypatch.setattr(event_log, "distinct_ids", commit_first)
    found = read_event_log(settings, day(230))
    assert len(Lake.open(settings).read(Table.SOURCE_EVENTS)) > len(found.source)
    assert found.users == expected.users
    for name in ("user", "item", "time"):
        for domain in ("source", "target"):
            assert (getattr(getattr(found, domain), name) == getattr(getattr(expected, domain), name)).all()


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full")
@pytest.mark.parametrize("part", ["log", "fit"])
def test_a_full_disk_is_told_with_its_folder_and_leaves_no_version(late_project, tmp_path, monkeypatch, part):
    settings = copied(late_project, tmp_path / "logs")
    settings = settings.model_copy(
        update={"translator": settings.translator.model_copy(update={"estimators": ("popularity", "factorisation")})}
    )
    whole = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: FULL.open("w+b") if fills(options) else whole(**options))

    def fills(options: dict[str, Any]) -> bool:
        return options["dir"].name.startswith("translator-") if part == "log" else options["dir"].name == "staging"

    with pytest.raises(LakeError, match=r"(?s)No space left.*free some space") as told:
        train(settings, trained_until=day(200))
    assert str(settings.home) in str(told.value)
    with pytest.raises(TranslatorError, match="scalr translator train"):
        load_version(settings)
    assert not list((settings.home / "staging").iterdir())


def test_a_vocabulary_that_is_cut_is_said_in_log_manifest_and_report(late_project, tmp_path, caplog):
    settings = copied(late_project, tmp_path / "logs")
    few = settings.translator.model_copy(update={"max_target_items": 50})
    cut = settings.model_copy(update={"translator": few})
    events = Lake.open(cut).read(Table.TARGET_EVENTS).to_pandas()["item_id"].value_counts()
    expected = {"items": len(events), "kept": 50, "events": int(events.sum()), "events_kept": int(events.head(50).sum())}
    with caplog.at_level("WARNING"):
        report = train(cut, trained_until=day(230))
    assert report.vocabulary["target"] == expected == load_version(cut).manifest["vocabulary"]["target"]
    assert report.vocabulary["source"]["items"] == report.vocabulary["source"]["kept"]
    (said,) = [record.getMessage() for record in caplog.records if "vocabulary leaves out" in record.getMessage()]
    assert f"{len(events) - 50} of {len(events)}" in said
    assert "max_target_items" in said
    assert train(cut, trained_until=day(230)).to_json()["vocabulary"] == report.vocabulary, (
        "a version that is used again says so too"
    )
    caplog.clear()
    train(settings, trained_until=day(230))
    assert "vocabulary leaves out" not in caplog.text


def test_what_runs_may_propose_is_part_of_the_version(late_project, tmp_path):
    settings = copied(late_project, tmp_path / "logs")
    again = settings.model_copy(update={"generation": settings.generation.model_copy(update={"exclude_consumed": False})})
    first, second = train(settings, trained_until=day(200)), train(again, trained_until=day(200))
    assert (second.reused, second.version) == (False, first.version + 1)
    assert [load_version(settings, one.version).manifest["exclude_consumed"] for one in (first, second)] == [True, False]
    assert train(settings, trained_until=day(200)).version == first.version
    labels, everything = (read_event_log(some, day(200)).is_label for some in (settings, again))
    assert labels.sum() < everything.sum() == len(everything)
