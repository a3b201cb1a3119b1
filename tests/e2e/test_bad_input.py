"""Each bad input: one clear error that names the place and the next step, exit code 1, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

#: Runs commands on bad logs; unit/ingest/test_bad_input.py has each kind of bad log.
pytestmark = [pytest.mark.slow, pytest.mark.long]


def rewrite(path: Path, change) -> None:
    change(pd.read_parquet(path)).to_parquet(path)


def with_first(column: str, value):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(object)
        frame.loc[3, column] = value
        return frame

    return change


def missing_column(domains):
    rewrite(domains.source, lambda frame: frame.rename(columns={"item_id": "product"}))


def wrong_type(domains):
    rewrite(domains.source, lambda frame: frame.assign(user_id=1.5))


def naive_timestamps(domains):
    rewrite(domains.target, lambda frame: frame.assign(timestamp=frame["timestamp"].dt.tz_localize(None)))


def unparsable_timestamps(domains):
    rewrite(domains.target, lambda f: with_first("timestamp", "soon")(f.assign(timestamp=f["timestamp"].astype(str))))


def null_ids(domains):
    rewrite(domains.source, with_first("user_id", None))


def empty_ids(domains):
    rewrite(domains.source, with_first("item_id", ""))


def empty_file(domains):
    rewrite(domains.source, lambda frame: frame.head(0))


def no_file(domains):
    domains.source.unlink()


def truncated(domains):
    domains.source.write_bytes(domains.source.read_bytes()[:-100])


def no_common_user(domains):
    rewrite(domains.target, lambda frame: frame.assign(user_id="x" + frame["user_id"]))


CASES = {
    missing_column: ["s.parquet", "'item_id'", "product", "[domains.source.columns]"],
    wrong_type: ["s.parquet", "'user_id'", "double"],
    naive_timestamps: ["t.parquet", "'timestamp'", "naive", "timezone"],
    unparsable_timestamps: ["t.parquet", "'timestamp'", "row 4", "soon"],
    null_ids: ["s.parquet", "'user_id'", "row 4", "null or empty"],
    empty_ids: ["s.parquet", "'item_id'", "row 4", "null or empty"],
    empty_file: ["s.parquet", "no row"],
    no_file: ["s.parquet", "no such file"],
    truncated: ["s.parquet"],
    no_common_user: ["user"],
}


@pytest.mark.parametrize("spoil", CASES, ids=lambda spoil: spoil.__name__)
def test_a_bad_log_is_refused_whole(two_domains, scalr, project, spoil):
    spoil(two_domains)
    code, error, stderr = scalr("ingest", config=project)
    assert code == 1
    assert "Traceback" not in stderr
    assert error["next_step"]
    for expected in CASES[spoil]:
        assert expected in stderr, stderr
    assert stderr.count("error:") == 1
    tables = list((project.parent / ".scalr" / "lake").glob("*")) if (project.parent / ".scalr" / "lake").exists() else []
    assert tables == [], "nothing may be written"
    assert not list((project.parent / ".scalr").glob("staging/*")), "nothing half-written may stay"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[generation]\nsede = 3", ["sede", "seed"]),
        ("[generation]\ntemperature = -1", ["[generation] temperature", "greater than 0"]),
        ("[generation]\nstart = 2024-03-01T00:00:00Z\nend = 2024-02-01T00:00:00Z", ["[generation]", "empty"]),
        ("[generation]\nstart = 2024-03-01T00:00:00", ["[generation] start", "naive"]),
        ("[compute]\ndask = 'somewhere'", ["[compute] dask"]),
        ("[ingest]\nfast = true", ["ingest"]),
    ],
)
def test_impossible_settings_are_refused(two_domains, scalr, settings_with, line, expected):
    config = settings_with(line)
    code, error, stderr = scalr("run", config=config)
    assert (code, error["error"]) == (1, "SettingsError")
    for part in ["scalr.toml", *expected]:
        assert part in stderr, stderr
    assert not (config.parent / ".scalr").exists()
