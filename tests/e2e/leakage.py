"""An independent check of every row that a run published or built. It shares no code with the package.

It reads the Delta tables, the Parquet of the training set and the JSON manifests, and recomputes with pandas what must hold.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from deltalake import DeltaTable

UTC = "UTC"


def table(home: Path, name: str) -> pd.DataFrame:
    return DeltaTable(str(home / "lake" / name)).to_pandas()


def published(home: Path) -> pd.DataFrame:
    """The published events with their source events."""
    keys = ["run_id", "event_id"]
    sources = table(home, "synthetic_event_provenance")[[*keys, "source_item_id", "source_event_timestamp"]]
    return table(home, "synthetic_target_events").merge(sources, on=keys, validate="one_to_one")


def micros(column: pd.Series) -> np.ndarray:
    return pd.to_datetime(column, utc=True).astype("datetime64[us, UTC]").astype("int64").to_numpy()


def low_bits(key: object) -> int:
    """Bytes 8 to 16 of the md5 of an id's text as a little-endian number."""
    return int.from_bytes(hashlib.md5(str(key).encode(), usedforsecurity=False).digest()[8:], "little")


def fold(user: object, folds: int) -> int:
    """The fold of a user: the upper half of that number, modulo the folds."""
    return (low_bits(user) >> 32) % folds


def check_run(home: Path, run_id: str) -> dict[str, int]:
    """Every published event of a run: candidate seen before, source event real and known, translator's time within its mode."""
    spec = json.loads((home / "runs" / run_id / "run.json").read_text())
    start, end, as_of, until = (pd.Timestamp(spec[key]) for key in ("start", "end", "as_of", "translator_trained_until"))
    synthetic = published(home)
    synthetic = synthetic[synthetic["run_id"] == run_id]
    source, target = table(home, "source_events"), table(home, "target_events")
    assert len(synthetic), "nothing was published"

    if spec["mode"] == "causal":
        assert until <= start
    else:
        assert until <= as_of

    event = micros(synthetic["event_timestamp"])
    assert (event >= start.value // 1000).all()
    assert (event < end.value // 1000).all()
    assert (micros(synthetic["created_timestamp"]) == as_of.value // 1000).all()
    assert (event == micros(synthetic["source_event_timestamp"])).all()

    known_target = target[micros(target["created_timestamp"]) <= as_of.value // 1000]
    first_seen = known_target.groupby("item_id")["event_timestamp"].min()
    seen = synthetic["item_id"].map(first_seen)
    assert seen.notna().all()
    assert (micros(seen) < event).all(), "a candidate was proposed before it was first seen"

    known_source = source[micros(source["created_timestamp"]) <= as_of.value // 1000]
    real = set(zip(known_source["user_id"], known_source["item_id"], micros(known_source["event_timestamp"]), strict=True))
    made_from = set(
        zip(synthetic["user_id"], synthetic["source_item_id"], micros(synthetic["source_event_timestamp"]), strict=True)
    )
    assert made_from <= real, "a synthetic event was made from a source event that is not there, or was not known"

    consumed = (
        synthetic[["user_id", "item_id", "event_timestamp"]]
        .merge(known_target[["user_id", "item_id", "event_timestamp"]], on=["user_id", "item_id"], suffixes=("", "_real"))
        .query("event_timestamp_real < event_timestamp")
    )
    assert consumed.empty, "an item was proposed that the user had consumed before"

    assert synthetic["event_id"].is_unique
    assert not synthetic.duplicated(["user_id", "item_id", "event_timestamp"]).any()
    assert "event_id" not in target.columns
    return {"synthetic": len(synthetic), "users": synthetic["user_id"].nunique(), "items": synthetic["item_id"].nunique()}


def check_training_set(folder: Path, home: Path) -> dict[str, int]:
    """Every row of a training set: features strictly before the label and known by it, provenance on synthetic rows only."""
    manifest = json.loads((folder / "manifest.json").read_text())
    cutoff = pd.Timestamp(manifest["cutoff"]).value // 1000
    rows = pd.read_parquet(folder / "rows")
    label = micros(rows["event_timestamp"])
    assert (label < cutoff).all()

    checked = 0
    for view in ("source_user_history", "target_user_history"):
        if f"{view}__event_timestamps" not in rows:
            continue
        history = table(home, view)
        stamps = rows[f"{view}__event_timestamps"]
        latest = np.array([-1 if s is None or len(s) == 0 else _last(s) for s in stamps])
        assert (latest < label).all(), f"{view}: a history reaches its label"
        checked += int((latest >= 0).sum())
        _every_history_is_the_latest_known(rows, history, view, label)

    synthetic = rows["is_synthetic"].to_numpy(dtype=bool)
    assert rows.loc[synthetic, "run_id"].notna().all()
    assert rows.loc[~synthetic, "run_id"].isna().all()
    real = table(home, "target_events")
    positives = rows[~synthetic & (rows["label"] == 1)]
    keys = set(zip(real["user_id"], real["item_id"], micros(real["event_timestamp"]), strict=True))
    assert set(zip(positives["user_id"], positives["item_id"], micros(positives["event_timestamp"]), strict=True)) <= keys
    return {"rows": len(rows), "histories": checked, "synthetic": int(synthetic.sum())}


def _last(stamps: np.ndarray) -> int:
    return int(np.max(np.asarray(stamps, dtype="datetime64[us]").astype("int64")))


def _every_history_is_the_latest_known(rows: pd.DataFrame, history: pd.DataFrame, view: str, label: np.ndarray) -> None:
    """Compare the number of events that each history says it has seen with a count over the sorted history rows."""
    times: dict[object, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    event, created = micros(history["event_timestamp"]), micros(history["created_timestamp"])
    order = np.lexsort((created, event))
    users, counts = history["user_id"].to_numpy()[order], history["event_count"].to_numpy()[order]
    event, created = event[order], created[order]
    for user, positions in pd.Series(np.arange(len(users))).groupby(users):
        where = positions.to_numpy()
        times[user] = (event[where], created[where], counts[where])
    found = rows[f"{view}__event_count"].to_numpy(dtype=float, na_value=np.nan)
    for user, when, value in zip(rows["user_id"], label, found, strict=True):
        expected = np.nan
        if user in times:
            happened, known, count = times[user]
            visible = np.flatnonzero((happened < when) & (known < when))
            if len(visible):
                expected = count[visible[-1]]
        assert (np.isnan(value) and np.isnan(expected)) or value == expected, (user, when, value, expected)
