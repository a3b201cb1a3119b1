"""Logs that would pass and mislead: ids that are words for a missing value, one log in both domains, times of two kinds."""

from __future__ import annotations

import pytest
from support.ingest_project import SOURCE, TARGET, log, project_in, rows_of, triples

from scalr_prod.errors import BadValue
from scalr_prod.ingest import ingest
from scalr_prod.schemas import Table


@pytest.fixture
def make(tmp_path):
    return project_in(tmp_path)


def test_words_for_a_missing_id_are_left_out_of_a_text_file_and_the_others_stay_integers(make, tmp_path):
    rows = [f"{7 + n % 3},{n},2024-05-01T12:00:{n:02d}Z" for n in range(40)]
    rows[3], rows[30] = "NULL,3,2024-05-01T12:00:03Z", ",30,2024-05-01T12:00:30Z"
    (tmp_path / "s.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    target = log((7, 1, 0), (8, 2, 1))
    settings = make('events = "s.csv"', target, source_toml='bad_ids = "drop"')
    report = ingest(settings).domains["source"]
    assert report.left_out == {"no_user_id": 2}
    assert (report.rows, report.user_id) == (38, "int64")
    assert {row["user_id"] for row in rows_of(settings)} == {7, 8, 9}


@pytest.mark.parametrize("as_text", [False, True])
def test_the_same_log_in_both_domains_is_refused(make, as_text):
    """By its content: another path, order or type of the same events changes nothing."""
    source = log(*[(f"u{n % 3}", n, n) for n in range(12)])
    target = source.iloc[::-1]
    settings = make(source, target.assign(item_id=target["item_id"].astype(str)) if as_text else target)
    with pytest.raises(BadValue, match=r"the same 12 events as \[domains.source\]") as caught:
        ingest(settings)
    assert "target.parquet" in str(caught.value.where)
    assert not settings.home.exists() or not list(settings.home.glob("lake/*/_delta_log"))


def test_one_of_several_sources_that_is_the_target_is_refused(make):
    settings = make(SOURCE, log(*[(f"u{n % 3}", f"t{n}", n) for n in range(12)]))
    text = (settings.base / "scalr.toml").read_text().replace('[domains.source]\nname = "source"', "[domains.sources.own]")
    more = '[domains.sources.copy]\nevents = "target.parquet"\n'
    (settings.base / "scalr.toml").write_text(more + text)
    from scalr_prod.config import load_settings

    with pytest.raises(BadValue, match=r"the same 12 events as \[domains.sources.copy\]"):
        ingest(load_settings(settings.base / "scalr.toml"))


def test_logs_with_the_same_users_and_times_are_two_logs_if_their_items_differ(make):
    settings = make(SOURCE, SOURCE.assign(item_id=[f"t{n}" for n in range(len(SOURCE))]))
    assert ingest(settings).domains["target"].rows == len(triples(settings, Table.TARGET_EVENTS)) == 3


def test_times_with_and_without_an_offset_in_one_column_are_told(make, tmp_path, caplog):
    head = "user_id,item_id,timestamp\n"
    (tmp_path / "s.csv").write_text(head + "u1,s1,2024-05-01T12:00:00+02:00\nu2,s2,2024-05-01T12:00:00\nu1,s3,2024-05-02\n")
    settings = make('events = "s.csv"', TARGET, source_toml='timezone = "Europe/Berlin"')
    ingest(settings)
    (told,) = [record.getMessage() for record in caplog.records if "UTC offset" in record.getMessage()]
    assert "s.csv, column 'timestamp', row 2" in told
    assert "1 times with a UTC offset and 2 without" in told
    assert "Europe/Berlin" in told


def test_a_time_zone_that_is_all_the_log_has_is_not_told(make, tmp_path, caplog):
    (tmp_path / "s.csv").write_text("user_id,item_id,timestamp\nu1,s1,2024-05-01T12:00:00\nu2,s2,2024-05-01\n")
    ingest(make('events = "s.csv"', TARGET, source_toml='timezone = "Europe/Berlin"'))
    assert "UTC offset" not in caplog.text
