"""Consent to the use of source events: each user's latest answer, whichever log or file has it."""

from __future__ import annotations

from dataclasses import replace

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from support.ingest_project import DAY, log, project_in, rows_of

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import BadValue, ColumnNotFound, InputError, SettingsError
from scalr_prod.ingest import ingest
from scalr_prod.ingest.input_state import changed_inputs
from scalr_prod.lake import Lake
from scalr_prod.operations import apply_retention, erase_users
from scalr_prod.schemas import Table
from scalr_prod.workspace import ConsentState, superseded_consent_files

COLUMN = 'columns = { consent = "agreed" }'
TARGET = log(("u1", "t1", 0), ("u2", "t2", 1), ("u3", "t2", 2))


@pytest.fixture
def make(tmp_path):
    return project_in(tmp_path)


def without_consent(settings):
    state = ConsentState.from_settings(settings)
    return state.users_without_consent(settings.home).to_pylist()


def test_the_latest_event_decides_and_null_is_no_consent(make):
    rows = [
        ("u1", "s1", 0),
        ("u1", "s2", 1),
        ("u2", "s1", 0),
        ("u2", "s3", 1),
        ("u3", "s1", 0),
        ("u4", "s1", 3),
        ("u4", "s2", 3),
    ]
    source = log(*rows, agreed=pd.array([False, True, True, False, None, True, False], "boolean"))
    settings = make(source, TARGET, source_toml=COLUMN)
    report = ingest(settings)
    assert without_consent(settings) == ["u2", "u3", "u4"], "of two answers at one time, both must be a consent"
    assert report.domains["source"].unused_columns == []
    assert "agreed" not in Lake.open(settings).schema(Table.SOURCE_EVENTS).names
    state = ConsentState.from_settings(settings)
    ingest(settings)
    assert ConsentState.from_settings(settings) == state
    assert superseded_consent_files(settings.home) == []


def test_a_user_without_any_answer_has_not_consented_where_all_domains_ask(make):
    settings = make(log(("u1", "s1", 0), ("u2", "s1", 1), agreed=[True, False]), TARGET, source_toml=COLUMN)
    ingest(settings)
    state = ConsentState.from_settings(settings)
    assert state.all_domains

    def allowed(state):
        condition = state.permits_sql("user_id", state.deciding_users_sql(settings.home))
        return duckdb.sql(f"SELECT user_id FROM (VALUES ('u1'), ('u2'), ('unknown')) v (user_id) WHERE {condition}").fetchall()

    assert allowed(state) == [("u1",)]
    assert sorted(allowed(replace(state, all_domains=False))) == [("u1",), ("unknown",)], (
        "a user of a domain that does not require it"
    )
    assert ConsentState.from_run(state.to_run_settings()) == state


def test_later_logs_change_answers_and_earlier_ones_do_not(make):
    settings = make(log(("u1", "s1", 5), ("u2", "s1", 5), agreed=[True, True]), TARGET, source_toml=COLUMN)
    ingest(settings)
    assert without_consent(settings) == []
    first = ConsentState.from_settings(settings)
    make(log(("u1", "s2", 6), ("u2", "s2", 4), ("u3", "s2", 1), agreed=[0, 0, 1]), TARGET, source_toml=COLUMN)
    ingest(settings)
    assert without_consent(settings) == ["u1"]
    now = ConsentState.from_settings(settings)
    assert first.users_without_consent(settings.home).to_pylist() == [], "a run keeps the answers that it was planned with"
    assert (first.count_withdrawn(settings.home, now), now.count_withdrawn(settings.home, first)) == (1, 0)
    # The same events with another answer, as an export that joins the present answer to all events has them.
    make(log(("u1", "s2", 6), ("u2", "s2", 4), ("u3", "s2", 1), agreed=[1, 0, 0]), TARGET, source_toml=COLUMN)
    ingest(settings)
    assert without_consent(settings) == ["u3"]
    # Maintenance removes former answers, in time; a run that was planned with them says so.
    former = {first.digest, now.digest}
    assert {path.stem for path in superseded_consent_files(settings.home)} == former
    assert not [one for one in apply_retention(settings).removed if one.kind == "consent"]
    removed = apply_retention(settings.with_sections(retention={"days": 0})).removed
    assert {one.name for one in removed if one.kind == "consent"} == former
    with pytest.raises(InputError, match="the users' consent at that time is no longer stored"):
        first.users_without_consent(settings.home)
    assert without_consent(settings) == ["u3"]


def test_a_withdrawal_counts_even_if_its_event_is_left_out(make):
    rows = [
        ("u1", "s1", 0),
        ("u2", "s1", 0),
        ("u3", "s1", 0),
        ("u1", None, 1),
        ("u2", "s2", 1),
        ("u3", "s2", -9e4),
        (None, "s1", 2),
    ]
    kinds = ["buy", "buy", "buy", "buy", "ad", "buy", "buy"]
    source = log(*rows, agreed=[True, True, True, False, False, False, False], kind=kinds)
    toml = 'columns = { consent = "agreed", event_type = "kind" }\ntypes = { buy = 1.0 }\nunknown_types = "drop"\n'
    settings = make(
        source,
        TARGET,
        source_toml=toml + 'bad_ids = "drop"\nbad_times = "drop"\nearliest = 2000-01-01T00:00:00Z\nmax_left_out = 1.0',
    )
    assert ingest(settings).domains["source"].left_out == {
        "before_earliest": 1,
        "no_item_id": 1,
        "no_user_id": 1,
        "unknown_type": 1,
    }
    assert without_consent(settings) == ["u1", "u2"], "an impossible time does not say which answer is the latest"


def test_an_answer_of_a_replaced_event_no_longer_counts(make):
    """A consent of a wrong row in the future would outrank every withdrawal before it."""
    future = log(("u1", "s1", 0), ("u1", "s2", 4), ("u2", "s1", 1), agreed=[True, True, True])
    ingest(make(future, TARGET, source_toml=COLUMN))
    withdrawn = log(("u1", "s1", 0), ("u1", "s3", 3), ("u2", "s1", 1), agreed=[True, False, True])
    settings = make(withdrawn, TARGET, source_toml=COLUMN + "\nmax_removed_share = 1.0")
    ingest(settings)
    assert without_consent(settings) == [], "the answer of the later event"
    ingest(settings, replace=(DAY + pd.Timedelta(days=1)).to_pydatetime(), domain="source")
    assert without_consent(settings) == ["u1"]


def test_training_leaves_out_whoever_a_run_leaves_out(make):
    """Users of the source domain of whom no ingest recorded an answer; users of the target domain alone are not asked."""
    settings = make(log(("u1", "s1", 0), ("u2", "s1", 1), agreed=[True, False]), TARGET, source_toml=COLUMN)
    ingest(settings)
    state, source_users = ConsentState.from_settings(settings), pa.array(["u1", "u2", "new"])
    assert state.users_without_consent(settings.home, source_users).to_pylist() == ["new", "u2"]
    some = replace(state, all_domains=False)
    assert some.users_without_consent(settings.home, source_users).to_pylist() == ["u2"]


def test_a_file_of_consents_decides_and_users_without_a_row_have_not_consented(make, tmp_path):
    (tmp_path / "consent.csv").write_text("user_id,consent\n1,yes\n2,no\n9,true\n2,true\n")
    source, target = log((1, "s1", 0), (2, "s1", 1), (3, "s1", 2)), log((1, "t1", 0))
    settings = make(source, target, source_toml='consent = "consent.csv"')
    ingest(settings)
    assert without_consent(settings) == [2, 3]
    assert changed_inputs(settings) == {}
    (tmp_path / "consent.csv").write_text("user_id,consent\n2,1\n3,TRUE\n")
    assert changed_inputs(settings) == {"source": "consent.csv changed"}
    ingest(settings)
    assert without_consent(settings) == [1]


def test_users_of_the_lake_without_an_answer_have_not_consented(make):
    ingest(make(log(("u1", "s1", 0), ("u2", "s1", 0)), TARGET))
    settings = make(log(("u1", "s2", 1), agreed=[True]), TARGET, source_toml=COLUMN)
    with pytest.raises(InputError, match="the consent of the users of source is not known yet"):
        ConsentState.from_settings(settings)
    ingest(settings)
    assert without_consent(settings) == ["u2"]


def test_users_are_mapped_as_those_of_the_log_are(make, tmp_path):
    pd.DataFrame({"source": ["a", "b"], "target": ["u1", "u2"]}).to_csv(tmp_path / "map.csv", index=False)
    source = log(("a", "s1", 0), ("b", "s1", 0), ("c", "s1", 0), agreed=[True, False, False])
    settings = make(source, TARGET, source_toml=COLUMN, extra='[users]\nmap = "map.csv"')
    ingest(settings)
    assert without_consent(settings) == ["source:c", "u2"]


def test_consent_is_asked_by_domain(tmp_path):
    for name, users, agreed in (("music", ["u1", "u2"], [True, False]), ("games", ["u1", "u3"], [False, True])):
        log(*((user, "s1", 0) for user in users), agreed=agreed).to_parquet(tmp_path / f"{name}.parquet")
    TARGET.to_parquet(tmp_path / "t.parquet")
    toml = '[domains.sources.music]\nevents = "music.parquet"\ncolumns = { consent = "agreed" }\n'
    toml += '[domains.sources.games]\nevents = "games.parquet"\nGAMES\n[domains.target]\nname = "films"\nevents = "t.parquet"\n'
    (tmp_path / "scalr.toml").write_text(toml.replace("GAMES", ""))
    settings = load_settings(tmp_path / "scalr.toml")
    ingest(settings)
    assert without_consent(settings) == ["u2"]
    (tmp_path / "scalr.toml").write_text(toml.replace("GAMES", COLUMN))
    settings = load_settings(tmp_path / "scalr.toml")
    with pytest.raises(InputError, match="the consent of the users of games is not known yet"):
        ConsentState.from_settings(settings)
    ingest(settings, domain="sources.games")
    assert without_consent(settings) == ["u1", "u2"]


def test_an_erased_user_is_in_no_file_of_answers(make):
    settings = make(log(("u1", "s1", 0), ("u2", "s1", 0), agreed=[False, True]), TARGET, source_toml=COLUMN)
    ingest(settings)
    state = ConsentState.from_settings(settings)
    erase_users(settings, ["u1"])
    assert without_consent(settings) == []
    ingest(settings)  # the log still holds the user
    assert without_consent(settings) == []
    paths = list((settings.home / "consent").glob("*.parquet"))
    assert state.digest in {path.stem for path in paths}
    assert all("u1" not in set(pd.read_parquet(path)["user_id"]) for path in paths)


def test_without_consent_nothing_is_kept(make):
    settings = make(log(("u1", "s1", 0), agreed=[True]), TARGET)
    assert ingest(settings).domains["source"].unused_columns == ["agreed"]
    assert ConsentState.from_settings(settings) is None
    assert not (settings.home / "consent").exists()
    assert len(rows_of(settings)) == 1


@pytest.mark.parametrize(("value", "says"), [("maybe", "'maybe' is neither true nor false"), (0.5, "contains double")])
def test_an_answer_that_is_none_is_refused(make, value, says):
    settings = make(log(("u1", "s1", 0), agreed=[value]), TARGET, source_toml=COLUMN)
    with pytest.raises(BadValue, match=says):
        ingest(settings)


def test_a_column_or_a_file_that_is_not_there_is_refused(make, tmp_path):
    with pytest.raises(ColumnNotFound, match="no column 'agreed'"):
        ingest(make(log(("u1", "s1", 0)), TARGET, source_toml=COLUMN))
    (tmp_path / "consent.csv").write_text("user_id,agreed\nu1,true\n")
    with pytest.raises(ColumnNotFound, match="no column 'consent'"):
        ingest(make(log(("u1", "s1", 0)), TARGET, source_toml='consent = "consent.csv"'))


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ({"source_toml": f'consent = "c.csv"\n{COLUMN}'}, "has both 'consent' and 'columns.consent'"),
        ({"target_toml": COLUMN}, r"\[domains.target\] requires consent"),
        ({"extra": '[translator]\ntrain_on = "consenting_users"'}, "no source domain requires consent"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, toml, says):
    with pytest.raises(SettingsError, match=says):
        make(log(("u1", "s1", 0)), TARGET, **toml)
