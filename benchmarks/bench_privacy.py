"""What a run's rows tell about users, with default settings: two Amazon domains in both directions, and two fifths of Yelp's users.

Also a causal run of the last fifth of the target events' time.

The run is not published: the attacks read its candidates. Needs the logs (SCALR_TEST_DATA, or ../shared/data beside the checkout).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.bench_run import DATA, DIRECTIONS
from scalr_prod import Project

#: Of Yelp's users, those whose id's digest begins with a byte below this.
YELP_BYTES = 102
CAUSAL = '[generation]\nmode = "causal"\nstart = "2014-01-10T00:00:00Z"\n'


def main() -> dict:
    amazon, yelp = DATA / "amazon_food_kitchen", DATA / "yelp_restaurants_other"
    if not amazon.exists() or not yelp.exists():
        return {"skipped": f"the data sets are not at {DATA}; set SCALR_TEST_DATA"}
    figures = {}
    for source, target in DIRECTIONS:
        with tempfile.TemporaryDirectory() as scratch:
            logs = [amazon / f"{name}.parquet" for name in (source, target)]
            figures[f"{target}_from_{source}"] = measure(write_settings(*logs, Path(scratch)))
    with tempfile.TemporaryDirectory() as scratch:
        logs = [amazon / f"{name}.parquet" for name in DIRECTIONS[0]]
        figures["food_from_kitchen_causal"] = measure(write_settings(*logs, Path(scratch), CAUSAL))
    with tempfile.TemporaryDirectory() as scratch:
        figures["yelp_other_from_restaurants"] = measure(write_settings(*sample_yelp(yelp, Path(scratch)), Path(scratch)))
    return figures


def write_settings(source: Path, target: Path, folder: Path, extra: str = "") -> Path:
    """A scalr.toml of default settings, with the scorer in this process."""
    config = folder / "scalr.toml"
    config.write_text(
        f'[domains.source]\nname = "source"\nevents = "{source}"\n[domains.target]\nname = "target"\nevents = "{target}"\n'
        f'[serving]\nscorer = "local"\n{extra}'
    )
    return config


def sample_yelp(data: Path, folder: Path) -> list[Path]:
    """Write the logs of some users, without titles."""
    written = []
    for name in ("source", "target"):
        log = pd.read_parquet(data / f"{name}.parquet", columns=["user_id", "item_id", "timestamp"])
        digests = {user: hashlib.md5(user.encode(), usedforsecurity=False).digest()[0] for user in log["user_id"].unique()}
        log["timestamp"] = pd.to_datetime(log["timestamp"], utc=True)
        written.append(folder / f"{name}.parquet")
        log[log["user_id"].map(digests) < YELP_BYTES].to_parquet(written[-1])
    return written


def measure(config: Path) -> dict:
    """Generate a run where there is none yet, and attack it."""
    with Project.open(config) as project:
        if not project.runs():
            project.ingest()
            project.histories()
            project.train()
            project.generate()
        return {name: value for name, value in project.privacy().to_json().items() if name not in {"run_id", "promise"}}


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
