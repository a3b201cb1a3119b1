"""Two CSV files of somebody's → `scalr init --yes` → `scalr ingest`; and, nightly, everything else, with no file edited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.warm import run

SCALR = Path(sys.executable).with_name("scalr")


def scalr(folder: Path, *arguments: str, timeout: int = 900) -> dict:
    done = run([SCALR, *arguments, "--json"], cwd=folder, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def theirs(two_domains) -> Path:
    """The made logs as a shop and a cinema would have them: their own names, times and separators."""
    folder = two_domains.folder
    shop = pd.read_parquet(two_domains.source).rename(
        columns={"user_id": "customer_id", "item_id": "sku", "timestamp": "ordered_at"}
    )
    shop["ordered_at"] = shop["ordered_at"].dt.strftime("%d.%m.%Y %H:%M:%S")
    shop.to_csv(folder / "shop.csv", index=False, sep=";")
    films = pd.read_parquet(two_domains.target).rename(columns={"user_id": "userId", "item_id": "movieId"})
    films["timestamp"] = films["timestamp"].astype("int64") // 1_000_000
    films.assign(rating=4.0).to_csv(folder / "ratings.csv", index=False)
    pd.read_parquet(two_domains.target_items).rename(columns={"item_id": "movieId"}).to_csv(folder / "movies.csv", index=False)
    return folder


def test_two_csv_files_are_ingested_with_no_file_edited(theirs):
    told = scalr(theirs, "init", "--yes", "--source", "shop.csv", "--target", "ratings.csv", "--target-items", "movies.csv")
    assert told["source"]["timestamp_format"] == "%d.%m.%Y %H:%M:%S"
    report = scalr(theirs, "ingest")
    assert report["common_users"] > 100
    assert report["source"]["rows"] == len(pd.read_csv(theirs / "shop.csv"))
    assert report["target"]["catalogue"] == pd.read_csv(theirs / "ratings.csv")["movieId"].nunique()


def test_in_a_terminal_one_line_corrects_the_guess(theirs):
    pty = pytest.importorskip("pty", reason="a terminal of POSIX")
    master, slave = pty.openpty()
    command = [SCALR, "init", "--source", "shop.csv", "--target", "ratings.csv"]
    with subprocess.Popen(command, cwd=theirs, stdin=slave, stdout=subprocess.PIPE, text=True) as process:
        os.write(master, b"timezone=Asia/Tokyo\n\n")
        shown, _ = process.communicate(timeout=120)
    os.close(master)
    os.close(slave)
    assert process.returncode == 0, shown
    assert "local times in UTC" in shown
    assert "local times in Asia/Tokyo" in shown
    assert 'timezone = "Asia/Tokyo"' in (theirs / "scalr.toml").read_text()


@pytest.mark.nightly  # a whole run, with Triton: minutes
@pytest.mark.triton
@pytest.mark.timeout(1800)
def test_two_csv_files_become_published_events_with_no_file_edited(theirs):
    scalr(theirs, "init", "--yes", "--source", "shop.csv", "--target", "ratings.csv", "--target-items", "movies.csv")
    try:
        report = scalr(theirs, "run", timeout=1500)
    finally:
        scalr(theirs, "triton", "stop")
    assert report["stages"]["publish"]["rows"] > 0
