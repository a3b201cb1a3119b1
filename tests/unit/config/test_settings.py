"""scalr.toml and the environment: what is accepted, and how it is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ScalrError, SettingsError

DOMAINS = """
[domains.source]
name = "a"
events = "s.parquet"
[domains.target]
name = "b"
events = "t.parquet"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "scalr.toml"
    path.write_text(text)
    return path


def test_two_domains_are_enough(tmp_path):
    settings = load_settings(write(tmp_path, DOMAINS))
    assert settings.generation.mode == "backfill"
    assert settings.home == tmp_path / ".scalr"
    assert settings.lake_url == str(tmp_path / ".scalr" / "lake")
    assert settings.ledger_url == f"sqlite:///{tmp_path / '.scalr' / 'ledger.db'}"


def test_environment_wins_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALR_LEDGER__URL", "postgresql+psycopg://u:secret@db/x")
    monkeypatch.setenv("SCALR_GENERATION__SEED", "5")
    settings = load_settings(write(tmp_path, DOMAINS + '[ledger]\nurl = "sqlite:///x.db"\n[generation]\nmode = "causal"\n'))
    assert settings.ledger_url.endswith("@db/x")
    assert (settings.generation.seed, settings.generation.mode) == (5, "causal")
    assert "secret" not in repr(settings)


def test_the_task_of_a_training_set_decides_whether_there_are_negatives(tmp_path, monkeypatch):
    (tmp_path / "scalr.toml").write_text(DOMAINS)
    assert load_settings(tmp_path / "scalr.toml").training_set.negatives_per_event == 0
    monkeypatch.setenv("SCALR_TRAINING_SET__TASK", "classification")
    assert load_settings(tmp_path / "scalr.toml").training_set.negatives_per_event == 4
    (tmp_path / "scalr.toml").write_text(DOMAINS + "[training_set]\nnegatives_per_event = 2\n")
    assert load_settings(tmp_path / "scalr.toml").training_set.negatives_per_event == 2


@pytest.mark.parametrize(
    ("lines", "contexts", "volume"),
    [
        ("", "users", 20),
        ('contexts = "users"', "users", 20),
        ('contexts = "events"', "events", 2),
        ("events_per_source_event = 3", "users", 3),
        ('contexts = "events"\nevents_per_source_event = 7', "events", 7),
    ],
)
def test_how_many_events_are_drawn_depends_on_what_a_context_is(tmp_path, lines, contexts, volume):
    generation = load_settings(write(tmp_path, DOMAINS + f"[generation]\n{lines}\n")).generation
    assert (generation.contexts, generation.events_per_source_event) == (contexts, volume)


def test_the_environment_decides_what_a_context_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALR_GENERATION__CONTEXTS", "events")
    settings = load_settings(write(tmp_path, DOMAINS))
    assert settings.generation.events_per_source_event == 2
    assert settings.with_sections(generation={"seed": 1}).generation.events_per_source_event == 2
    monkeypatch.delenv("SCALR_GENERATION__CONTEXTS")
    changed = load_settings(write(tmp_path, DOMAINS)).with_sections(generation={"contexts": "events"})
    assert changed.generation.events_per_source_event == 2


@pytest.mark.parametrize(
    ("named", "weights"),
    [
        ("", (0.1, 0.1, 0.1)),
        ("synthetic_weight = 0", (0.0, 0.0, 0.0)),
        ("segment_weights = [0.5, 0.0, 0.25]", (0.5, 0.0, 0.25)),
        ("synthetic_weight = 2\nsegment_weights = [0.5, 0.0, 0.25]", (1.0, 0.0, 0.5)),
    ],
)
def test_a_synthetic_row_counts_little_until_somebody_says_otherwise(tmp_path, named, weights):
    (tmp_path / "scalr.toml").write_text(DOMAINS + f"[training_set]\n{named}\n")
    assert load_settings(tmp_path / "scalr.toml").training_set.resolved_segment_weights == weights


def test_settings_are_frozen(tmp_path):
    settings = load_settings(write(tmp_path, DOMAINS))
    with pytest.raises(ValueError, match="frozen"):
        settings.generation.seed = 3


@pytest.mark.parametrize(
    ("addition", "where", "next_step"),
    [
        ("[generation]\nsed = 1", "[generation] sed", "did you mean 'seed'?"),
        ("[genration]\nseed = 1", "[genration]", "did you mean 'generation'?"),
        ('[generation]\nmode = "cusal"', "[generation] mode", "[generation] mode"),
        ("[generation]\nseed = -1", "[generation] seed", "[generation] seed"),
        ("[generation]\nshortlist = 0", "[generation] shortlist", "[generation] shortlist"),
        ("[generation]\ntemperature = 0", "[generation] temperature", "temperature"),
        ("[generation]\nstart = 2024-01-01T00:00:00", "[generation] start", "start"),
        ("[generation]\nstart = 2024-02-01T00:00:00Z\nend = 2024-01-01T00:00:00Z", "is not before end", "generation"),
        ("[generation]\nend = 2024-02-01T00:00:00Z\nas_of = 2024-01-01T00:00:00Z", "before the window's end", "generation"),
        ('[compute]\ndask = "somewhere"', "[compute] dask", "dask"),
        ('[training_set]\nname = "../../etc"', "[training_set] name", "name"),
        ('[training_set]\ntask = "regression"', "[training_set] task", "task"),
        ('[training_set]\ntask = "classification"\nnegatives_per_event = 0', "rows of label 0", "[training_set]"),
        ('[feast.export]\nkey = "customer id"', "[feast.export] key", "key"),
        ('[serving]\nmodel_name = "../x"', "[serving] model_name", "model_name"),
        ('[translator]\nestimators = ["linear", "linear"]', "each once", "estimators"),
        ('[ui]\ndask = "http://me:pass@host/status"', "everybody who opens the page would see", "[ui] dask"),
        ('[ui]\nairflow = "javascript:alert(1)"', "[ui] airflow", "airflow"),
        ('[project]\ntimezone = "Mars/Olympus"', "not an IANA time zone", "timezone"),
        ('base = "/"', "unknown key 'base'", "remove it"),
        ("[domains.source.columns]\nusr = 'u'", "unknown key [domains.source.columns] usr", "did you mean 'user'?"),
    ],
)
def test_bad_settings_name_the_key_and_the_next_step(tmp_path, addition, where, next_step):
    text = addition + "\n" + DOMAINS if addition.startswith("base") else DOMAINS + addition
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text))
    assert where in str(caught.value)
    assert next_step in str(caught.value.next_step)
    assert str(tmp_path / "scalr.toml") == caught.value.where


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('name = "a"', "needs either 'events'"),
        ('name = "a"\nevents = "x"\nquery = "SELECT 1"\nurl = "sqlite://"', "needs either 'events'"),
        ('name = "a"\nquery = "SELECT 1"', "has a 'query' but no 'url'"),
        ('name = "a"\nevents = "x"\ntimezone = "Mars/Olympus"', "not an IANA time zone"),
        (
            'name = "a"\nevents = "x"\ntimestamp_format = "%d.%m.%Y %H:%M:%S.%f %z"',
            "has %f and %z, .*leave timestamp_format out",
        ),
        ('name = "../a"\nevents = "x"', "must be 1 to 64 letters"),
        ('events = "x"', "is required"),
    ],
)
def test_a_domain_needs_a_name_and_one_origin(tmp_path, source, message):
    text = f'[domains.source]\n{source}\n[domains.target]\nname = "b"\nevents = "t.parquet"\n'
    with pytest.raises(SettingsError, match=message):
        load_settings(write(tmp_path, text))


@pytest.mark.parametrize(
    ("addition", "form"),
    [
        ('[project]\nname = "My Project"', "[project] name: must be 1 to 63 lower-case letters, digits and '_', no '_' first"),
        ('[feast.export]\nkey = "user id"', "[feast.export] key: must be letters, digits and '_', no digit first"),
        ('[metrics]\ntextfile = "scalr.txt"', "[metrics] textfile: must be a file whose name ends with .prom"),
        ('[metrics]\npush = "host:9091"', "[metrics] push: must be an address that begins with http:// or https://"),
    ],
)
def test_what_a_text_may_be_is_said_in_words(tmp_path, addition, form):
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, f"{DOMAINS}\n{addition}\n"))
    assert caught.value.found == form


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(SettingsError, match="cannot be read as TOML"):
        load_settings(write(tmp_path, "[domains"))
    with pytest.raises(SettingsError, match="cannot be read: Is a directory") as caught:
        load_settings(tmp_path)
    assert caught.value.next_step == f"name the file in it: --config {tmp_path / 'scalr.toml'}"
    with pytest.raises(SettingsError, match="cannot be read: Not a directory"):
        load_settings(tmp_path / "scalr.toml" / "below")
    (tmp_path / "scalr.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read as TOML"):
        load_settings(tmp_path / "scalr.toml")


@given(section=st.text(max_size=12), key=st.text(max_size=12), value=st.one_of(st.integers(), st.text(max_size=20), st.none()))
@example(section="self", key="", value=None)
@example(section="_env_file", key="", value=None)
def test_whatever_is_passed_in_gives_settings_or_a_clear_error(tmp_path_factory, section, key, value):
    path = write(tmp_path_factory.mktemp("fuzz"), DOMAINS)
    try:
        load_settings(path, **{section: {key: value}})
    except ScalrError as error:
        assert error.next_step  # noqa: PT017 - settings are as good an outcome as an error


@pytest.mark.parametrize(
    ("name", "value", "found", "next_step"),
    [
        ("SCALR_PROJECT", "/x", "SCALR_PROJECT", "SCALR_PROJECT__"),
        ("SCALR_TRANSLATOR__ESTIMATORS", "linear", "SCALR_TRANSLATOR__ESTIMATORS", "JSON"),
        ("SCALR_GENERATON__MODE", "causal", "SCALR_GENERATON__MODE", "SCALR_GENERATION__MODE"),
        ("scalr_generaton__mode", "causal", "scalr_generaton__mode", "SCALR_GENERATION__MODE"),
        ("SCALR_GENERATION__MOD", "causal", "SCALR_GENERATION__MOD", "SCALR_GENERATION__MODE"),
        ("SCALR_GENERATION_MODE", "causal", "SCALR_GENERATION_MODE", "SCALR_GENERATION__MODE"),
        ("SCALR_TRAINING_SET_NAME", "x", "SCALR_TRAINING_SET_NAME", "SCALR_TRAINING_SET__NAME"),
        ("SCALR_NOTHING__LIKE__IT", "x", "SCALR_NOTHING__LIKE__IT", "known here: compute, domains"),
        ("SCALR_DOMAINS__SORCE__URL", "sqlite://", "SCALR_DOMAINS__SORCE__URL", "SCALR_DOMAINS__SOURCE"),
        (
            "SCALR_DOMAINS__SOURCE__COLUMNS__USR",
            "u",
            "SCALR_DOMAINS__SOURCE__COLUMNS__USR",
            "SCALR_DOMAINS__SOURCE__COLUMNS__USER",
        ),
        ("SCALR__GENERATION__MODE", "causal", "SCALR__GENERATION__MODE", "SCALR_GENERATION__MODE"),
        ("SCALR_GENERATION__SEED", "many", "SCALR_GENERATION__SEED", "SCALR_GENERATION__SEED"),
        ("SCALR_PROJECT", '{"hom": "/x"}', "SCALR_PROJECT", "did you mean 'home'?"),
        ("SCALR_BASE", "/", "SCALR_BASE", "known"),
    ],
)
def test_a_bad_variable_is_named(tmp_path, monkeypatch, name, value, found, next_step):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, DOMAINS))
    assert caught.value.where == f"environment variable {found}"
    assert next_step in str(caught.value.next_step)


def test_variables_of_others_and_of_free_keys_are_no_settings(tmp_path, monkeypatch):
    for name in ("SCALR_TOKEN", "SCALR_CONFIG", "SCALR_TRANSLATOR_CRON", "SCALR_EVENTS_CRON"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SCALR_PROJECT__STORAGE_OPTIONS", '{"AWS_REGION": "eu-west-1"}')
    monkeypatch.setenv("SCALR_DOMAINS__SOURCE__STORAGE_OPTIONS__KEY", "k")
    settings = load_settings(write(tmp_path, DOMAINS))
    assert settings.project.storage_options == {"AWS_REGION": "eu-west-1"}
    assert settings.domains.source.storage_options == {"key": "k"}


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        ("gpu:8001", ("gpu:8001",)),
        ("grpc://gpu:8001, [::1]:8001,unix:/run/t/grpc", ("gpu:8001", "[::1]:8001", "unix:/run/t/grpc")),
    ],
)
def test_servers_are_named_one_by_one(tmp_path, url, urls):
    assert load_settings(write(tmp_path, f'{DOMAINS}[serving]\nurl = "{url}"\n')).serving.urls == urls


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "'' is neither host:port"),
        ("gpu:8001,", "'' is neither host:port"),
        ("gpu:8001,other:0", "'other:0' is neither host:port"),
        ("gpu:8001 other:8001", "is neither host:port"),
        ("gpu:8001,grpc://gpu:8001", "names a server twice"),
    ],
)
def test_a_list_of_servers_that_is_none_is_refused(tmp_path, url, said):
    with pytest.raises(SettingsError, match=re.escape(said)):
        load_settings(write(tmp_path, f'{DOMAINS}[serving]\nurl = "{url}"\n'))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('ca_certificate = "ca.pem"', "not a tls:// address"),
        ('dask = "tcp://s:1"\nca_certificate = "ca.pem"', "not a tls:// address"),
        ('dask = "tls://s:1"\nca_certificate = "ca.pem"', "together"),
    ],
)
def test_certificates_of_a_scheduler_are_all_named_and_only_with_tls(tmp_path, lines, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(write(tmp_path, DOMAINS + f"[compute]\n{lines}\n"))


@pytest.mark.parametrize(
    ("registry", "is_refused"),
    [
        ("postgresql://feast:word@db:5432/scalr", True),
        ("postgresql+psycopg://db/scalr", True),
        ("postgresql+psycopg://db/feast", False),
        ("postgresql+psycopg://other/scalr", False),
        ("postgresql+psycopg://db/scalr?options=-csearch_path%3Dfeast", False),
    ],
)
def test_the_ledger_and_the_registry_of_feast_have_a_database_each(tmp_path, registry, is_refused):
    """Both have a table called projects."""
    sections = {"ledger": {"url": "postgresql+psycopg://scalr:secret@db/scalr"}, "feast": {"registry": registry}}
    if not is_refused:
        assert load_settings(write(tmp_path, DOMAINS), **sections).feast_registry_url == registry
        return
    with pytest.raises(SettingsError, match="create a database for each") as caught:
        load_settings(write(tmp_path, DOMAINS), **sections)
    assert "secret" not in str(caught.value)
