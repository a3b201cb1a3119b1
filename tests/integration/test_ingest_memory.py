"""Four times the input, (nearly) the same memory: each run in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

PROGRAM = """
import json, resource, sys
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.config.settings import load_settings
settings = load_settings(sys.argv[1])
{"ingest": ingest, "histories": build_histories}[sys.argv[2]](settings)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


def write_log(path: Path, events: int, *, text: bool) -> None:
    """Random events of 50 a user, in pieces; every tenth becomes known up to three days late."""
    rng = np.random.default_rng(0)
    day = 86_400_000_000

    def instants(micros: np.ndarray) -> pa.Array:
        return pa.array(micros.astype("int64")).cast(pa.timestamp("us", "UTC"))

    def piece(rows: int) -> pa.Table:
        happened = 1.7e15 + rng.random(rows) * 200 * day
        late = (rng.random(rows) < 0.1) * rng.random(rows) * 3 * day
        user, item = (pc.cast(pa.array(rng.integers(0, events // size, rows)), pa.string()) for size in (50, 100))
        return pa.table(
            {
                "user_id": pc.binary_join_element_wise("user-", user, ""),
                "item_id": pc.binary_join_element_wise("item-", item, ""),
                "timestamp": instants(happened),
                "known": instants(happened + late),
            }
        )

    if text:
        from pyarrow import csv

        with csv.CSVWriter(path, piece(1).schema) as writer:
            for _ in range(events // 20_000):
                writer.write_table(piece(20_000))
        return
    with pq.ParquetWriter(path, piece(1).schema) as writer:
        for _ in range(events // 20_000):
            writer.write_table(piece(20_000))


def project(folder: Path, events: int) -> Path:
    folder.mkdir()
    write_log(folder / "s.parquet", events, text=False)
    write_log(folder / "t.csv", events // 5, text=True)
    config = folder / "scalr.toml"
    columns = 'columns = { created = "known" }'
    config.write_text(
        f'[domains.source]\nname = "a"\nevents = "s.parquet"\n{columns}\n'
        f'[domains.target]\nname = "b"\nevents = "t.csv"\n{columns}\n[compute]\nmemory_mb = 128\n'
    )
    return config


def peak_mb(config: Path, stage: str) -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(config), stage], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout.splitlines()[-1]))


def test_memory_does_not_grow_with_the_input(tmp_path):
    # Below some hundred thousand events, no buffer is full yet.
    small, large = project(tmp_path / "small", 800_000), project(tmp_path / "large", 3_200_000)
    for stage in ("ingest", "histories"):
        before, after = peak_mb(small, stage), peak_mb(large, stage)
        assert after < 1.3 * before, f"{stage}: {before:.0f} MB for 1 M events, {after:.0f} MB for 4 M"
