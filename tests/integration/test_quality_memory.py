"""A million rows are checked within `[compute] memory_mb`, beside what the libraries take: each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

PROGRAM = """
import json, resource, sys
from scalr_prod.quality import check_dataset
from scalr_prod.config.settings import settings_from_dict
domains = {place: {"name": place, "events": "none.csv"} for place in ("source", "target")}
settings = settings_from_dict({"domains": domains, "compute": {"memory_mb": int(sys.argv[2])}})
verdict = check_dataset(sys.argv[1], settings=settings)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"passed": verdict.passed, "rows": verdict.rows, "peak": peak}))
"""
ROWS = """
SELECT 'u' || (i % 200000) AS user_id, 'i' || (hash(i) % 50000) AS item_id, TIMESTAMPTZ '2024-01-01' + to_seconds(i) AS event_timestamp,
       (i % 5 = 0)::TINYINT AS label, 0.5::FLOAT AS weight, i % 3 = 0 AS is_synthetic,
       [TIMESTAMPTZ '2023-01-01' + to_seconds(i + n) FOR n IN range(20)] AS history__event_timestamps,
       ['item' || (i + n) FOR n IN range(20)] AS history__item_ids, TIMESTAMPTZ '2023-01-01' + to_seconds(i) AS stats__first_seen
FROM range({rows}) AS t(i)
"""


MEMORY_MB = 256


def checked(path: Path, rows: int) -> dict:
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({ROWS.format(rows=rows)}) TO '{path}' (FORMAT parquet)")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(MEMORY_MB)], cwd=path.parent, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_million_rows_stay_within_the_memory_that_the_settings_allow(tmp_path):
    small, large = (checked(tmp_path / f"{rows}.parquet", rows) for rows in (10_000, 1_000_000))
    assert (small["passed"], large["passed"], large["rows"]) == (True, True, 1_000_000)
    assert large["peak"] - small["peak"] < 1.5 * MEMORY_MB, (small, large)
