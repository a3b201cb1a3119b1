"""Whether `scalr scout` orders pairs as measured lifts do, and how long ten domains take.

Twelve pairs are those of `bench_set_aside`, in the direction that was measured there: categories of Yelp's places (SCALR_TEST_DATA, or
../shared/data beside the checkout) and departments of a year of groceries. A pair's measured lift is that of ALS with synthetic events over
ALS on real events alone, on the test slice, with the choice that validation favoured, whether it was taken or refused; 0 where no choice
was ahead (`results/set_aside.json`). A second list of lifts is that of a default run over the better of ALS on real events and the list of
popular items (`results/default_run.json`); a refused run is 0.

Twelve further pairs are drawn at random from those of ten of Yelp's categories, each place in one of them, with at least 1 000 common
users. Each is measured by a default run with the protocol of `bench_default_run`; `scalr scout` reads the files that the run reads.

The agreement of orders is Kendall's tau-b, with percentiles 2.5 and 97.5 of 2 000 resamples of the pairs. Beside the expected gain, the
orders by its two parts are compared.

The time is that of all 90 pairs of the ten categories, with two threads.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd

from benchmarks.bench_default_run import run_folder, shipped, split, without_users
from benchmarks.bench_set_aside import NAMED_FIRST, NAMED_LATER, RESULT, YELP, queries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scalr_prod.evaluation import ScoutReport

CATEGORIES = (
    "Cinema",
    "Fashion",
    "Automotive",
    "Active Life",
    "Hotels & Travel",
    "Beauty & Spas",
    "Coffee & Tea",
    "Nightlife",
    "Arts & Entertainment",
    "Shopping",
)
#: Further pairs, and how many common users each has at least.
FURTHER, MIN_COMMON_USERS = 12, 1_000
DEFAULT_RUNS = RESULT.with_name("default_run.json")
RESAMPLES = 2_000


def main() -> dict[str, Any]:
    """Pairs, the agreement of orders, and the time of ten domains."""
    if not YELP.exists():
        return {"skipped": f"Yelp's log is not at {YELP}; set SCALR_TEST_DATA"}
    with tempfile.TemporaryDirectory() as scratch:
        pairs = {name: _scouted(name, pair, Path(scratch)) for name, pair in (NAMED_FIRST | NAMED_LATER).items()}
        categories = _write_categories(Path(scratch))
        timed, report = _ten_domains(categories)
        further = {name: _further_pair(name, categories) for name in _draw_pairs(report)}
    found = {"pairs": pairs, "agreement": agreement(pairs), "further_pairs": further}
    return found | {"further_agreement": _agreement(further, _lifts(further)), "ten_domains": timed}


def _scouted(name: str, pair: tuple[str, str, str], scratch: Path) -> dict[str, Any]:
    """One pair's figures."""
    from scalr_prod.evaluation.domain_pair import measure_pair
    from scalr_prod.translator import DomainLog

    folder = scratch / name
    folder.mkdir()
    for role, query in zip(("source", "target"), queries_of(pair), strict=True):
        duckdb.execute(f"COPY ({query} ORDER BY timestamp, user_id, item_id) TO '{folder / role}.parquet'")
    settings = _settings({role: f"{role}.parquet" for role in ("source", "target")}, folder)
    started = time.perf_counter()
    logs = {place: DomainLog.from_settings(settings, place) for place in ("sources.source", "target")}
    read = time.perf_counter()
    found = measure_pair(settings, ("source", "target"), *logs.values()).to_json()
    print(f"{name}: {found}", file=sys.stderr, flush=True)
    seconds = {"read_seconds": round(read - started, 1), "measure_seconds": round(time.perf_counter() - read, 1)}
    return found | {"measured_lift_pct": measured_lifts()[name]} | seconds


def _settings(events: Mapping[str, str], folder: Path) -> Any:
    """Settings of logs by name; the last is the target."""
    from scalr_prod.config import settings_from_dict

    *sources, target = ({"name": name, "events": path, "timezone": "UTC"} for name, path in events.items())
    domains = {"sources": {section["name"]: section for section in sources}, "target": target}
    return settings_from_dict({"domains": domains, "translator": {"threads": 2}}, base=folder)


def measured_lifts() -> dict[str, float]:
    """Lift of each pair on the test slice, in percent."""
    figures = json.loads(RESULT.read_text())["figures"]
    pairs = figures["named_first_today"]["pairs"] | figures["named_later"]["pairs"]
    lifts = {}
    for name, found in pairs.items():
        choice = found.get("the_other_choice", found.get("over_the_other_choice"))
        lifts[name] = round(choice["lift_pct"], 1) if isinstance(choice, dict) else 0.0
    return lifts


def default_run_lifts() -> dict[str, float]:
    """Lift of a default run over the better of ALS on real events and the list, in percent."""
    figures = json.loads(DEFAULT_RUNS.read_text())["figures"]
    return {name: _default_run_lift(found) for name, found in figures.items() if name in NAMED_FIRST | NAMED_LATER}


def _default_run_lift(found: Mapping[str, Any]) -> float:
    if found["default"].get("refused"):
        return 0.0
    baseline = max(found[name]["ndcg"] for name in ("popular_lately", "als_real"))
    return round(100 * (found["default"]["als"]["ndcg"] / baseline - 1), 1)


def agreement(pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Kendall's tau of each order with that of the measured lifts, within each place too, and with that of default runs."""
    lifts = measured_lifts()
    found: dict[str, Any] = {"all": _agreement(pairs, lifts)}
    for place in ("yelp", "groceries"):
        of_place = {name: pairs[name] for name, pair in (NAMED_FIRST | NAMED_LATER).items() if pair[0] == place}
        found[place] = _agreement(of_place, lifts)
    default_runs = default_run_lifts()
    return found | {"default_runs": _agreement({name: pairs[name] for name in default_runs}, default_runs)}


def _agreement(pairs: Mapping[str, Mapping[str, Any]], lifts: Mapping[str, float]) -> dict[str, Any]:
    orders: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "expected_gain": lambda found: found["expected_gain_pct"] or 0.0,
        "split_lift": lambda found: found["split_lift"]["lift_pct"],
        "own_over_others": lambda found: found["own_over_others"]["nats"],
    }
    return {name: _tau({pair: order(one) for pair, one in pairs.items()}, lifts) for name, order in orders.items()}


def _lifts(pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: found["measured_lift_pct"] for name, found in pairs.items()}


def _tau(told: Mapping[str, float], lifts: Mapping[str, float]) -> dict[str, Any]:
    from scipy.stats import kendalltau

    both = np.array([(told[name], lifts[name]) for name in told])
    rng = np.random.default_rng(0)
    resampled = [kendalltau(*both[rng.integers(0, len(both), len(both))].T).statistic for _ in range(RESAMPLES)]
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    tau = kendalltau(*both.T)
    return {"tau": round(float(tau.statistic), 3), "ci95": [round(float(low), 3), round(float(high), 3)], "pairs": len(both)}


def _write_categories(scratch: Path) -> Path:
    """Write a log of each category; a place is in the first that it has."""
    folder = scratch / "ten"
    folder.mkdir()
    named = "list_contains(list_transform(string_split(title, ','), lambda one: trim(one)), '{}')".format
    category = " ".join(f"WHEN {named(one)} THEN '{one}'" for one in CATEGORIES)
    for one in CATEGORIES:
        rows = f"SELECT user_id, item_id, timestamp FROM '{YELP}' WHERE CASE {category} END = '{one}'"
        duckdb.execute(f"COPY ({rows} ORDER BY timestamp, user_id, item_id) TO '{folder / _name(one)}.parquet'")
    return folder


def _name(category: str) -> str:
    return re.sub(r"\W+", "_", category.lower())


def _ten_domains(folder: Path) -> tuple[dict[str, Any], ScoutReport]:
    """Time of all pairs of ten domains, and the best one."""
    from scalr_prod.evaluation import scout

    started, processor = time.perf_counter(), time.process_time()
    report = scout(_settings({_name(one): f"{_name(one)}.parquet" for one in CATEGORIES}, folder))
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    found = report.to_json()
    print(f"ten domains: {seconds:.0f} s, {found['best']}", file=sys.stderr, flush=True)
    worth = sum(pair["reason"] is None for pair in found["pairs"])
    counts = {"pairs": len(report.pairs), "worth_a_run": worth, "events": sum(one.events for one in report.domains)}
    timed = {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "best": found["best"]}
    return counts | timed, report


def _draw_pairs(report: ScoutReport) -> list[str]:
    """Pairs of the ten domains, whatever was measured of them; none, in either direction, is one of the twelve."""
    names = sorted(f"{one.target}_from_{one.source}" for one in report.pairs if one.common_users >= MIN_COMMON_USERS)
    known = {frozenset(map(_name, pair[1:])) for pair in (NAMED_FIRST | NAMED_LATER).values()}
    fresh = [name for name in names if frozenset(name.split("_from_")) not in known]
    return sorted(np.random.default_rng(0).choice(fresh, min(FURTHER, len(fresh)), replace=False).tolist())


def _further_pair(name: str, folder: Path) -> dict[str, Any]:
    """One further pair: what scout says by the files of a run, and the lift of that run."""
    from scalr_prod.evaluation.domain_pair import measure_pair
    from scalr_prod.translator import DomainLog

    roles = dict(zip(("target", "source"), name.split("_from_"), strict=True))
    logs = [pd.read_parquet(folder / f"{roles[role]}.parquet") for role in ("source", "target")]
    source, known, scene = split(*logs)
    baselines = {"popular_lately": scene.best_list(), "als_real": scene.als(known.assign(weight=1.0))}
    with run_folder(source, known) as scratch:
        settings = _settings({"source": "source.parquet", "target": "target.parquet"}, scratch)
        places = [DomainLog.from_settings(settings, place) for place in ("sources.source", "target")]
        found = measure_pair(settings, ("source", "target"), *places).to_json()
        default = shipped(scene, scratch)
    figures = {key: without_users(one) for key, one in baselines.items()} | {
        "default": default | {"als": without_users(default["als"])}
    }
    found |= {"measured_lift_pct": _default_run_lift(figures)} | figures
    print(f"{name}: {found}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
