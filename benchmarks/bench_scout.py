"""Whether `scalr scout` orders pairs as measured lifts do, and how long ten domains take.

The twelve pairs are those of `bench_set_aside`, in the direction that was measured there: categories of Yelp's places (SCALR_TEST_DATA, or
../shared/data beside the checkout) and departments of a year of groceries. A pair's measured lift is that of ALS with synthetic events over
ALS on real events alone, on the test slice, with the choice that validation favoured, whether it was taken or refused; 0 where no choice
was ahead (`results/set_aside.json`). The agreement of orders is Kendall's tau-b, with percentiles 2.5 and 97.5 of 2 000 resamples of the
pairs. Beside the expected gain, the orders by its two parts are compared; all of them also within Yelp and within the groceries.

A second list of lifts is that of a default run over the best list of popular items, on eleven of the pairs (the table of
docs/experiments/lift.md); a refused run is 0.

The time is that of all 90 pairs of ten of Yelp's categories, each place in one of them, with two threads.
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

from benchmarks.bench_set_aside import NAMED_FIRST, NAMED_LATER, RESULT, YELP, queries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
#: Rows of the table of default runs.
ROWS = {
    "cinema ← fashion": "cinema_from_fashion",
    "sports ← coffee": "active_from_coffee",
    "cars ← beauty": "autos_from_beauty",
    "hotels ← food": "hotels_from_food",
    "food ← shops": "food_from_shops",
    "shops ← nightlife": "shops_from_nightlife",
    "arts ← shops": "arts_from_shops",
    "packaged seafood ← packaged meat": "packaged_seafood_from_packaged_meat",
    "pastry ← meat": "pastry_from_meat",
    "cosmetics ← drugs": "cosmetics_from_drugs",
    "salad bar ← nutrition": "salad_bar_from_nutrition",
}
LIFT_PAGE = Path(__file__).parent.parent / "docs" / "experiments" / "lift.md"
RESAMPLES = 2_000


def main() -> dict[str, Any]:
    """Pairs, the agreement of orders, and the time of ten domains."""
    if not YELP.exists():
        return {"skipped": f"Yelp's log is not at {YELP}; set SCALR_TEST_DATA"}
    with tempfile.TemporaryDirectory() as scratch:
        pairs = {name: _scouted(name, pair, Path(scratch)) for name, pair in (NAMED_FIRST | NAMED_LATER).items()}
        timed = _ten_domains(Path(scratch))
    return {"pairs": pairs, "agreement": agreement(pairs), "ten_domains": timed}


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
    """Lift of a default run over the best list, in percent, by the documented table."""
    lifts = {}
    for line in LIFT_PAGE.read_text().splitlines():
        cells = [cell.strip(" ¹*") for cell in line.strip("|").split("|")]
        if cells[0] in ROWS and len(cells) == 8:
            best_list, synthetic = cells[4], cells[6]
            lifts[ROWS[cells[0]]] = 0.0 if synthetic == "refused" else 100 * (float(synthetic) / float(best_list) - 1)
    return lifts


def agreement(pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Kendall's tau of each order with that of the measured lifts, and of the expected gain with that of default runs."""
    orders: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "expected_gain": lambda found: found["expected_gain_pct"] or 0.0,
        "split_lift": lambda found: found["split_lift"]["lift_pct"],
        "own_over_others": lambda found: found["own_over_others"]["nats"],
    }
    lifts, default_runs = measured_lifts(), default_run_lifts()
    found = {name: _tau({pair: order(one) for pair, one in pairs.items()}, lifts) for name, order in orders.items()}
    for place in ("yelp", "groceries"):
        of_place = {name: pairs[name] for name, pair in (NAMED_FIRST | NAMED_LATER).items() if pair[0] == place}
        found |= {
            f"{name}_within_{place}": _tau({pair: order(one) for pair, one in of_place.items()}, lifts)
            for name, order in orders.items()
        }
    gains = {pair: orders["expected_gain"](pairs[pair]) for pair in default_runs}
    return found | {"expected_gain_with_default_runs": _tau(gains, default_runs)}


def _tau(told: Mapping[str, float], lifts: Mapping[str, float]) -> dict[str, Any]:
    from scipy.stats import kendalltau

    both = np.array([(told[name], lifts[name]) for name in told])
    rng = np.random.default_rng(0)
    resampled = [kendalltau(*both[rng.integers(0, len(both), len(both))].T).statistic for _ in range(RESAMPLES)]
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    tau = kendalltau(*both.T)
    return {"tau": round(float(tau.statistic), 3), "ci95": [round(float(low), 3), round(float(high), 3)], "pairs": len(both)}


def _ten_domains(scratch: Path) -> dict[str, Any]:
    """Time of all pairs of ten domains, and the best one."""
    from scalr_prod.evaluation import scout

    folder = scratch / "ten"
    folder.mkdir()
    named = "list_contains(list_transform(string_split(title, ','), lambda one: trim(one)), '{}')".format
    category = " ".join(f"WHEN {named(one)} THEN '{one}'" for one in CATEGORIES)
    events = {}
    for one in CATEGORIES:
        name = re.sub(r"\W+", "_", one.lower())
        rows = f"SELECT user_id, item_id, timestamp FROM '{YELP}' WHERE CASE {category} END = '{one}'"
        duckdb.execute(f"COPY ({rows} ORDER BY timestamp, user_id, item_id) TO '{folder / name}.parquet'")
        events[name] = f"{name}.parquet"
    started, processor = time.perf_counter(), time.process_time()
    report = scout(_settings(events, folder))
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    found = report.to_json()
    print(f"ten domains: {seconds:.0f} s, {found['best']}", file=sys.stderr, flush=True)
    worth = sum(pair["reason"] is None for pair in found["pairs"])
    counts = {"pairs": len(report.pairs), "worth_a_run": worth, "events": sum(one.events for one in report.domains)}
    return counts | {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "best": found["best"]}


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
