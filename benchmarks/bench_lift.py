"""`scalr evaluate` on two real domains, both directions, with half of the users target-cold and with none.

Needs the food and kitchen logs (SCALR_TEST_DATA, or ../shared/data beside the checkout); says so where they are absent. The two
directions run beside each other, one thread each. Limit: 60 minutes on two cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench_run import DATA, beside_each_other, write_settings

LIMIT_S = 3600
SETTINGS = """
[translator]
folds = 2
epochs = 3
threads = 1
[generation]
contexts = "users"
min_lift = 0.0
align = false
partitions = 2
[serving]
scorer = "local"
threads = 1
[compute]
workers = 1
[quality]
max_bucket_distance = 1.0
[downstream]
threads = 1
"""
#: Events a user, tried on validation; the torch models get few, for the sake of the hour.
VOLUMES = {"als": [5, 20], "two_tower": [5], "sasrec": [5]}
#: What a lift must survive.
CONTROLS = ("popularity", "trend", "shuffled", "duplicated", "frequency")
#: Cold fraction, family, arms beside the two compared, in the order of what is worth most.
PLAN: tuple[tuple[float, str, tuple[str, ...]], ...] = (
    (
        0.5,
        "als",
        (
            *("synthetic_only", *CONTROLS, "sampled", "top_k", "top_1"),
            *("model_level_transfer", "dose_0.25", "dose_0.5", "dose_2", "align_on", "filter_on"),
            *("only_topics", "only_linear", "only_factorisation", "only_sequential"),
        ),
    ),
    (0.5, "two_tower", (*CONTROLS, "sampled", "top_1", "align_on", "filter_on", "model_level_transfer")),
    (0.0, "als", ("trend", "shuffled", "model_level_transfer")),
    (0.5, "sasrec", (*CONTROLS, "model_level_transfer")),
    (0.0, "two_tower", ("trend", "shuffled", "model_level_transfer")),
    (0.0, "sasrec", ()),
)


def main() -> dict:
    folder = DATA / "amazon_food_kitchen"
    if not folder.exists():
        return {"skipped": f"the data set is not at {folder}; set SCALR_TEST_DATA"}
    started = time.perf_counter()
    tables = beside_each_other("benchmarks.bench_lift")
    return {"tables": tables, "seconds": round(time.perf_counter() - started, 1), "seconds_limit": LIMIT_S}


def direction(source: str, target: str, scratch: Path) -> dict:
    """Every evaluation of one direction: cold fraction → family → report."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.evaluation import EvaluationRequest, evaluate

    config = write_settings(DATA / "amazon_food_kitchen", source, target, scratch, SETTINGS)
    tables: dict[str, dict] = {}
    for cold, family, arms in PLAN:
        settings = load_settings(config, downstream={"models": [family], "volumes": VOLUMES[family]})
        report = evaluate(settings, EvaluationRequest(cold_fraction=cold, arms=("translator", *arms), full=True))
        tables.setdefault(f"cold_{cold:g}", {})[family] = slim(report.to_json())
        print(f"{target} from {source}, cold {cold:g}, {family}: {report.seconds} s", file=sys.stderr, flush=True)
    return tables


def slim(report: dict) -> dict:
    """What is worth keeping of a report: no trace of the search, four significant digits."""
    for choice in report["choices"].values():
        for one in (choice, *choice["arms"].values()):
            one["validation"].pop("tried")
    runs = [{"draw": run["draw"], "events": run["events"], "diagnostics": run["diagnostics"]} for run in report["runs"]]
    return _rounded({key: value for key, value in report.items() if key != "path"} | {"runs": runs})


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def markdown(tables: dict) -> str:
    """The tables of docs/experiments/food-and-kitchen.md."""
    lines = []
    for name, settings in tables.items():
        target, _, source = name.partition("_from_")
        for cold, families in settings.items():
            share = f"{float(cold.partition('_')[2]):.0%}"
            for family, report in families.items():
                users = report["users"]
                lines += [
                    f"### {target} ← {source}, {share} of users target-cold, {family}",
                    "",
                    _sentence(users, report["choices"][family]),
                    "",
                    *_table(report),
                    "",
                ]
    return "\n".join(lines)


def _sentence(users: dict, choice: dict) -> str:
    weights = "/".join(f"{value:.2g}" for value in choice["lambda"].values())
    draw = f"{choice['draw']['volume']} events per user, temperature {choice['draw']['temperature']:g}, λ cold/sparse/dense {weights}"
    tested = f"{users['all']} test users ({users['cold']} cold, {users['sparse']} sparse, {users['dense']} dense)"
    return f"{tested}. Chosen on validation: {draw}."


def _table(report: dict) -> list[str]:
    probable = "probabilities" in report["arms"][0]
    more = ["NE", "calibration"] if probable else []
    head = [
        "arm",
        "NDCG@20",
        "lift over real (95 % CI)",
        "ours over this (95 % CI)",
        "cold",
        "sparse",
        "dense",
        "coverage",
        "of its events",
        *more,
    ]
    rows = [head, ["---"] * len(head)]
    for arm in report["arms"]:
        metrics, slices = arm["metrics"], arm["slices"]
        values = [arm["name"], f"{metrics['ndcg']:.4f}", _interval(arm), _interval(arm.get("scalr_over_this", {}))]
        values += [f"{slices[part]['ndcg']:.4f}" if part in slices else "" for part in ("cold", "sparse", "dense")]
        values += [f"{metrics['coverage']:.1%}", f"{arm['synthetic']['coverage']:.1%}" if "synthetic" in arm else ""]
        values += _calibrated(arm) if probable else []
        rows.append(values)
    return ["| " + " | ".join(row) + " |" for row in rows]


def _calibrated(arm: dict) -> list[str]:
    """NE and calibration ratio; of the arms that are lists, none."""
    found = arm.get("probabilities", {}).get("all")
    return [f"{found['ne']:.3f}", f"{found['calibration']:.2f}"] if found else ["", ""]


def _interval(found: dict) -> str:
    return f"{found['lift_pct']:+.1f} % ({found['ci95'][0]:+.1f} … {found['ci95'][1]:+.1f})" if "ci95" in found else ""


if __name__ == "__main__":
    if sys.argv[1:] == ["--markdown"]:
        print(markdown(json.loads((Path(__file__).parent / "results" / "lift.json").read_text())["figures"]["tables"]))
    elif sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder_of_one:
            print(json.dumps(direction(*sys.argv[1:3], Path(folder_of_one))))
    else:
        print(json.dumps(main(), indent=2))
