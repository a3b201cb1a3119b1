"""A lake with late events and ties, and two runs published in it: what the tests of training sets build from."""

from __future__ import annotations

import hashlib
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import DAYS, START, make_two_domains, write_toml

from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, table_schema
from scalr_prod.training_set import TrainingSet, build_training_set

LENGTH = 6
TRAILING = 30
#: The made runs: a first one over the first 120 days, known then, and one over the rest.
RUNS = {"run_00000000000000aa": (0, 120), "run_00000000000000bb": (120, DAYS)}


#: One set that several tests read; the builder makes it once.
SHARED = {"name": "shared", "negatives_per_event": 1}


def at(day: float) -> datetime:
    return (START + pd.Timedelta(days=day)).to_pydatetime()


#: Numbers as ids need a project of their own, and take the same queries as text.
BOTH_ID_TYPES = pytest.mark.parametrize("project", ["string", pytest.param("int64", marks=pytest.mark.long)], indirect=True)


def make(folder, ids: str):
    """Both logs with days for times (many ties) and rows that become known late; synthetic events of two runs, made up here."""
    domains = make_two_domains(folder, users=80, ids=ids)
    rng = np.random.default_rng(11)
    for path in (domains.source, domains.target):
        log = pd.read_parquet(path)
        log["timestamp"] = log["timestamp"].dt.floor("D")
        late = np.where(rng.random(len(log)) < 0.3, rng.integers(0, 60, len(log)), 0)
        log["created"] = log["timestamp"] + pd.to_timedelta(late, unit="D")
        log["weight"] = rng.integers(1, 5, len(log)).astype("float32")
        log.to_parquet(path)
    extra = f"[histories]\nlength = {LENGTH}\ntrailing_days = {TRAILING}\n[training_set]\nsource_history = true\n" + "".join(
        f'[domains.{domain}.columns]\ncreated = "created"\nweight = "weight"\n' for domain in ("source", "target")
    )
    config = write_toml(domains, extra)
    settings = load_settings(config)
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    for run_id, (first, last) in RUNS.items():
        publish(settings, run_id, at(first), at(last), rng)
    return config


def publish(settings, run_id: str, start: datetime, end: datetime, rng) -> None:
    """Synthetic events as a run would publish them: known from the window's end on."""
    source = Lake.open(settings).read(Table.SOURCE_EVENTS).to_pandas()
    target = Lake.open(settings).read(Table.TARGET_EVENTS).to_pandas()
    known = source[(source["created_timestamp"] <= end) & source["event_timestamp"].between(start, end, inclusive="left")]
    chosen = known.drop_duplicates(["user_id", "event_timestamp"]).sample(frac=0.4, random_state=int(rng.integers(100)))
    count = len(chosen)
    rows = pd.DataFrame(
        {
            "event_id": [hashlib.md5(f"{run_id}{n}".encode(), usedforsecurity=False).hexdigest() for n in range(count)],
            "user_id": chosen["user_id"].to_numpy(),
            "item_id": rng.choice(target["item_id"].unique(), count),
            "event_timestamp": chosen["event_timestamp"].to_numpy(),
            "probability": rng.random(count).astype("float32"),
            "weight": rng.random(count).astype("float32"),
            "source_domain": "gadgets",
            "source_item_id": chosen["item_id"].to_numpy(),
            "source_event_timestamp": chosen["event_timestamp"].to_numpy(),
            "translator_version": 1,
            "run_id": run_id,
            "created_timestamp": end,
        }
    )
    real = target[["user_id", "item_id", "event_timestamp"]].assign(real=True)
    rows = rows.merge(real.drop_duplicates(), how="left", on=["user_id", "item_id", "event_timestamp"])
    rows = rows[rows.pop("real").isna()]
    kinds = {"user": "int64" if source["user_id"].dtype == "int64" else "string"}
    schema = table_schema(Table.SYNTHETIC_TARGET_EVENTS, user=kinds["user"], item=kinds["user"])
    Lake.open(settings).append(
        Table.SYNTHETIC_TARGET_EVENTS, pa.Table.from_pandas(rows, schema=schema, preserve_index=False), key=run_id
    )


def build(config, **options):
    settings = load_settings(config, training_set=options)
    report = build_training_set(settings)
    return settings, report, TrainingSet.open(report.path, check=True)


def in_the_order_of_time(_tasks, _job, batches, _schema, *, advance):
    """In place of `join_by_key`: no feature is joined yet, so that each group of rows is joined by itself, as it lies."""
    return [None] * len(batches)


def lake(settings, table: Table) -> pd.DataFrame:
    return Lake.open(settings).read(table).to_pandas()
