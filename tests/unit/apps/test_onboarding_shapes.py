"""Foreign files of many shapes, as `scalr init` understands them and `scalr ingest` reads them."""

from __future__ import annotations

import gzip
import json
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from deltalake import write_deltalake
from support.examples import sweep
from support.onboarding_log import EVENTS, csv, form, frame, seconds
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

runner = CliRunner()


def jsonl(rows: list[dict], name: str):
    def write(folder: Path) -> str:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        opened = gzip.open if name.endswith(".gz") else open
        with opened(folder / name, "wt", encoding="utf-8") as file:
            file.write(text)
        return name

    return write


def by_date(folder: Path) -> str:
    for user, item, at in EVENTS:
        part = folder / "events" / f"date={at:%Y-%m-%d}"
        part.mkdir(parents=True)
        pd.DataFrame({"customer_id": [user], "product_id": [item], "event_time": [pd.Timestamp(at)]}).to_parquet(
            part / "p.parquet"
        )
    return "events"


def delta(folder: Path) -> str:
    rows = frame("user_id", "item_id", "timestamp", pd.to_datetime([e[2] for e in EVENTS]).astype("datetime64[us, UTC]"))
    write_deltalake(str(folder / "table"), rows)
    return "table"


def parquet(rows: pd.DataFrame, name: str):
    def write(folder: Path) -> str:
        rows.to_parquet(folder / name)
        return name

    return write


def amazon(name: str):
    rows = [
        {
            "rating": 5.0,
            "title": "Fine",
            "images": [{"small": "a"}] if user == 1 else [],
            "asin": f"B{item}",
            "parent_asin": f"P{item}",
            "user_id": f"A{user}",
            "timestamp": int(at.timestamp() * 1000) + 7,
            "verified_purchase": True,
            "details": 3 if user == 1 else "several types",
        }
        for user, item, at in EVENTS
    ]
    return jsonl(rows, name)


def old_amazon(name: str):
    rows = [
        {"reviewerID": f"A{user}", "asin": str(item), "reviewTime": f"{at:%m %d, %Y}", "overall": 5.0}
        for user, item, at in EVENTS
    ]
    return jsonl(rows, name)


NAIVE = [at.replace(tzinfo=None) for _, _, at in EVENTS]
#: name → how to write it, its columns, further settings, and (where only days are kept) that.
SHAPES = {
    "MovieLens ratings": (
        csv(frame("userId", "movieId", "timestamp", seconds(), rating=[4.5] * 12), "ratings.csv"),
        ("userId", "movieId", "timestamp"),
        {},
    ),
    "Amazon Reviews 2023": (amazon("Kitchen.jsonl.gz"), ("user_id", "parent_asin", "timestamp"), {}),
    "Amazon Reviews 2014": (
        old_amazon("reviews.json"),
        ("reviewerID", "asin", "reviewTime"),
        {"format": "jsonl", "timezone": "UTC", "timestamp_format": "%m %d, %Y"},
    ),
    "RecBole": (
        csv(frame("user_id:token", "item_id:token", "timestamp:float", [float(s) for s in seconds()]), "ml.inter", "\t"),
        ("user_id:token", "item_id:token", "timestamp:float"),
        {},
    ),
    "Parquet by date": (by_date, ("customer_id", "product_id", "event_time"), {}),
    "Delta": (delta, ("user_id", "item_id", "timestamp"), {}),
    "Parquet, naive": (
        parquet(frame("member_id", "track_id", "played_at", pd.to_datetime(NAIVE)), "plays.parquet"),
        ("member_id", "track_id", "played_at"),
        {"timezone": "UTC"},
    ),
    "European dates with a clock": (
        csv(
            frame("Kunde ID", "Artikel", "Datum", form("%d.%m.%Y %H:%M:%S")).rename(
                columns={"Kunde ID": "client_id", "Artikel": "article_id", "Datum": "date"}
            ),
            "bon.csv",
            ";",
        ),
        ("client_id", "article_id", "date"),
        {"timezone": "UTC", "timestamp_format": "%d.%m.%Y %H:%M:%S"},
    ),
    "days with slashes": (
        csv(frame("household_key", "product_id", "day", form("%d/%m/%Y")), "baskets.csv"),
        ("household_key", "product_id", "day"),
        {"timezone": "UTC", "timestamp_format": "%d/%m/%Y"},
    ),
    "American days": (
        csv(frame("CustomerID", "StockCode", "InvoiceDate", form("%m/%d/%Y %H:%M"), InvoiceNo=list(range(12))), "retail.csv"),
        ("CustomerID", "StockCode", "InvoiceDate"),
        {"timezone": "UTC", "timestamp_format": "%m/%d/%Y %H:%M"},
    ),
    "compact days": (
        csv(frame("user", "item", "date", form("%Y%m%d")), "compact.csv"),
        ("user", "item", "date"),
        {"timezone": "UTC", "timestamp_format": "%Y%m%d"},
    ),
    "ISO with zone": (
        csv(frame("uid", "sku", "ts", form("%Y-%m-%dT%H:%M:%S%z", "Asia/Tokyo")), "shop.csv"),
        ("uid", "sku", "ts"),
        {},
    ),
    "ISO without zone": (
        csv(frame("visitorid", "itemid", "created_at", form("%Y-%m-%d %H:%M:%S")), "visits.tsv", "\t"),
        ("visitorid", "itemid", "created_at"),
        {"timezone": "UTC"},
    ),
    "ISO days": (
        csv(frame("customer_id", "article_id", "t_dat", form("%Y-%m-%d")), "fashion.csv"),
        ("customer_id", "article_id", "t_dat"),
        {"timezone": "UTC"},
    ),
    "milliseconds": (
        csv(frame("visitorid", "itemid", "timestamp", [s * 1000 for s in seconds()], event=["view"] * 12), "clicks.csv"),
        ("visitorid", "itemid", "timestamp"),
        {},
    ),
    "text file": (
        csv(frame("user_id", "business_id", "date", form("%Y-%m-%d %H:%M:%S")), "yelp.txt", "|"),
        ("user_id", "business_id", "date"),
        {"format": "csv", "timezone": "UTC"},
    ),
    "compressed text file": (
        csv(frame("user_id", "business_id", "date", form("%Y-%m-%d %H:%M:%S")), "yelp.txt.xz", "|"),
        ("user_id", "business_id", "date"),
        {"format": "csv", "timezone": "UTC"},
    ),
    "a time with its unit": (
        csv(frame("customer", "film", "ts_ms", [s * 1000 for s in seconds()]), "watched.csv"),
        ("customer", "film", "ts_ms"),
        {},
    ),
    "an item of another name": (
        csv(frame("user_id", "garment_code", "timestamp", seconds(), rating=[1] * 12), "wardrobe.csv"),
        ("user_id", "garment_code", "timestamp"),
        {},
    ),
}
DAYS_ONLY = {"Amazon Reviews 2014", "days with slashes", "compact days", "ISO days"}
MINUTES_ONLY = {"American days"}


@pytest.mark.parametrize("shape", sweep(SHAPES, keep=6))
def test_foreign_files_are_understood_and_ingested(shape, tmp_path, monkeypatch):
    write, columns, more = SHAPES[shape]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    log = write(tmp_path / "theirs")
    # The same log under another name is the target: the ids of users are of one type then. It is refused from ten rows on.
    monkeypatch.setattr("scalr_prod.ingest.pipeline.MIN_ROWS", 100)
    other = write(tmp_path / "ours")
    asked = ["init", "--yes", "--source", f"theirs/{log}", "--target", f"ours/{other}", "--json"]
    done = runner.invoke(app, asked)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    found = tomllib.loads(Path("scalr.toml").read_text())["domains"]
    for place in ("source", "target"):
        said = {key: value for key, value in found[place].items() if key not in {"name", "events", "columns"}}
        assert tuple(found[place]["columns"].values()) == columns
        assert said == more
    assert len(told["source"]["rows"]) == 5
    assert runner.invoke(app, ["ingest"]).exit_code == 0
    rows = Lake.open(load_settings("scalr.toml")).read(Table.SOURCE_EVENTS)
    times = sorted(at.replace(microsecond=0) for at in rows["event_timestamp"].to_pylist())
    expected = sorted(at for _, _, at in EVENTS)
    if shape in DAYS_ONLY:
        expected = [at.replace(hour=0, minute=0, second=0) for at in expected]
    if shape in MINUTES_ONLY:
        expected = [at.replace(second=0) for at in expected]
    assert times == expected
    assert len(rows) == len(EVENTS)
