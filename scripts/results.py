"""Write `docs/reference/results.md` from what the benchmarks left in `benchmarks/results/`.

Usage: python scripts/results.py [--check]. With ``--check`` nothing is written; a page that is not up to date is exit code 1.

Every figure of the page comes from a JSON file. A ``note`` in a file is printed with its figures, and goes when the benchmark is run again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "reference" / "results.md"
INTRODUCTION = """# Results

`make docs` generates this page from `benchmarks/results/`. [Where the figures come from](#where-the-figures-come-from) lists each file
with its command, machine and date. `make bench` measures speed on your machine. A figure in bold misses its limit.
"""
#: Files that this page leaves out, and why.
LEFT_OUT = {
    "bridge": "an experiment with titles, which came to nothing that is built: [a bridge](../experiments/bridge.md)",
    "cold_items": "an experiment with titles, which came to nothing that is built: [cold items](../experiments/cold-items.md)",
    "feast_matrix": "counts of tests: [compatibility](compatibility.md#releases-of-feast)",
    "lift_yelp_models": "models other than ALS: [measurements](../experiments/lift.md#yelp-sasrec-and-a-two-tower-model)",
    "loop": "a simulated loop: [the loop](../experiments/loop.md)",
    "default_run_as_is": "nobody's target events hidden: [users as they are](../experiments/lift.md#users-as-they-are)",
    "selection": "simulated evaluations: [ADR 0019](../adr/0019-synthetic-weight.md)",
    "privacy": "attacks, not speed or lift: [privacy](../experiments/privacy.md)",
    "scout": "an order of pairs, not a model's lift: [what scalr scout expects](../experiments/lift.md#what-scalr-scout-expects)",
    "set_aside": "what scout's order is compared with: [what scalr scout expects](../experiments/lift.md#what-scalr-scout-expects)",
    "world_lifts": "simulated logs: [worlds with a known answer](../experiments/worlds.md)",
    "worlds": "simulated logs: [worlds with a known answer](../experiments/worlds.md)",
}
#: The steps of `bench_growth`, with the larger and the smaller size.
STEPS = {
    "spill": "writes of an external sort, for each row: {} over {} partitions",
    "lookup": "positions of ids, for each lookup: {} over {} known ids",
    "negatives": "negatives of a log: {} over {} buckets of users",
    "log": "latest commits of a table: {} over {} commits",
    "join": "point-in-time join of ten users: {} over {} files",
}
SEGMENTS = ("cold", "sparse", "dense")
MILLION, THOUSAND = "1000000 items", 1000

Record = dict[str, Any]


class Speed(NamedTuple):
    """The speed of a part beside the most that this machine can do.

    Attributes:
        part: What is measured.
        beside: What it is compared to.
        measured: With its unit.
        limit: The same of what it is compared to.
        share: Of the limit's speed.
        aim: The share that is aimed at.
    """

    part: str
    beside: str
    measured: str
    limit: str
    share: float
    aim: float


class Measure(NamedTuple):
    """A figure with its limit.

    Attributes:
        what: What is measured.
        value: The figure.
        unit: Printed after it.
        limit: None: there is none.
        least: Whether the limit is a least value; otherwise it is a greatest.
    """

    what: str
    value: float
    unit: str = ""
    limit: float | None = None
    least: bool = False

    def cells(self) -> list[str]:
        """Return the cells of its row: what, figure, limit, figure over limit."""
        figure = f"{number(self.value)}{self.unit}"
        if self.limit is None:
            return [self.what, figure, "", ""]
        missed = self.value < self.limit if self.least else self.value > self.limit
        bound = f"{'≥' if self.least else '≤'} {number(self.limit)}{self.unit}"
        return [self.what, f"**{figure}**" if missed else figure, bound, f"{self.value / self.limit:.2f}"]


def page() -> str:
    """Return the page's text."""
    sections = [
        whole_run(),
        small_day(),
        speed(),
        joins_and_memory(),
        stages(),
        growth(),
        workers(),
        shares(),
        training(),
        reliability(),
        translator(),
        lift(),
    ]
    sections += [default_run(), default_weight(), ease(), sources()]
    return "\n".join([INTRODUCTION, *("\n".join(section) for section in sections)])


def whole_run() -> list[str]:
    """The whole pipeline on both pairs."""
    found = figures("run")
    measures = []
    for pair, run in found.items():
        measures += [
            Measure(f"`scalr run`, {arrow(pair)}", run["seconds"], " s", run["seconds_limit"]),
            Measure("its peak memory, all processes", run["peak_gib"], " GiB", run["peak_gib_limit"]),
            Measure("events published", run["published"]["rows"]),
        ]
    by_stage = {arrow(pair): run["seconds_by_stage"] for pair, run in found.items()}
    stages = next(iter(by_stage.values()))
    return [
        *heading("A whole run", "run"),
        *measured(measures),
        *table(
            ["seconds by stage", *by_stage],
            [[stage, *(f"{of[stage]:.2f}" for of in by_stage.values())] for stage in stages],
        ),
    ]


def small_day() -> list[str]:
    """A day of few events, with a kept translator and with a training."""
    found = figures("day")
    runs = {"translator kept": found["kept"], "trained": found["trained"], "first run": found["first"]}
    totals = {"seconds": "seconds", "cpu": "processor seconds"}
    rows = [[text, *(f"{run[key]:.1f}" for run in runs.values())] for key, text in totals.items()]
    stages = [
        [stage, *(f"{run['seconds_by_stage'][stage]:.2f}" for run in runs.values())]
        for stage in found["kept"]["seconds_by_stage"]
    ]
    events = number(found["events"])
    return [
        *heading("A small day", "day"),
        f"`scalr run` after {events} new events of a simulated world, from the same state, and the first run before them.",
        "",
        *measured(
            [
                Measure("a day with a kept translator", found["kept"]["seconds"], " s", found["seconds_limit"]),
                Measure("its processor time, over that of a day that trains", found["ratio"], "", found["ratio_limit"]),
                Measure("imports, share of the processor time", found["imports_share"], "", found["imports_limit"]),
            ]
        ),
        *table(["", *runs], rows + stages),
    ]


def speeds() -> list[Speed]:
    """How fast each part is beside its limit."""
    limits, catalogue, generation, scoring = (figures(name) for name in ("limits", "catalogue", "generation", "scoring"))
    join, commit = figures("point_in_time"), figures("data_path")["write_back"]
    rows = []
    for items in ("10000 items", "100000 items"):
        found = limits[items]
        kind = min(("long", "short"), key=lambda kind: found[f"{kind}_of_product"])
        fused, product = (found[f"{kind}_contexts_per_s_{what}"] for what in ("fused", "product"))
        share = found[f"{kind}_of_product"]
        part = f"scoring, {count(items)} items"
        rows.append(Speed(part, "matrix product", rate(fused), rate(product), share, limits["of_product_limit"]))
    for target, found in named(catalogue).items():
        many, few = found[MILLION], found["10000 items"]
        aim = catalogue["limits"]["of_items"]
        part, beside = f"scoring, {count(MILLION)} items ({target})", f"{number(round(few['items'], -3))} items"
        rows.append(Speed(part, beside, rate(many["contexts_per_s"]), rate(few["contexts_per_s"]), many["of_items"], aim))
    in_flight, in_process = scoring["contexts_per_s_grpc_2"], scoring["contexts_per_s_in_process"]
    aim = scoring["ratio_limit"]
    rows.append(
        Speed("scoring over gRPC", "in this process", rate(in_flight), rate(in_process), scoring["ratio_2_in_flight"], aim)
    )
    for target, found in named(generation).items():
        two, aim = found["two_processes"], generation["ratio_target"]
        step, alone = (statistics.median(of) for of in (two["contexts_per_s"], found["in_process_contexts_per_s"]))
        rows.append(Speed(f"generation ({target})", "scoring in this process", rate(step), rate(alone), two["ratio"], aim))
    ratio, aim = join["ratio_to_bare_asof"], 1 / join["limits"]["ratio_to_bare_asof"]
    plain, aim_of_commit = commit["pyarrow_write_and_rename_least_s"], 1 / commit["of_plain_limit"]
    new, again = (commit[f"{kind}_beside_0_least_s"] for kind in ("new", "again"))
    rows += [
        Speed(
            "point-in-time join", "DuckDB's ASOF join", seconds(join["flat_s"]), seconds(join["bare_asof_s"]), 1 / ratio, aim
        ),
        Speed(
            "commit to an empty window",
            "write and rename",
            seconds(new),
            seconds(plain),
            1 / commit["new_of_plain"],
            aim_of_commit,
        ),
        Speed(
            "commit in place of as many rows",
            "the same",
            seconds(again),
            seconds(plain),
            1 / commit["again_of_plain"],
            aim_of_commit,
        ),
    ]
    return rows


def speed() -> list[str]:
    """The parts beside their limits, with the chart."""
    rows = speeds()
    lines = table(
        ["part", "compared to", "measured", "limit", "share of the limit's speed", "aim"],
        [
            [
                row.part,
                row.beside,
                row.measured,
                row.limit,
                f"{row.share:.2f}" if row.share >= row.aim else f"**{row.share:.2f}**",
                f"≥ {row.aim:.2f}",
            ]
            for row in rows
        ],
    )
    rows_of_commit = number(figures("data_path")["write_back"]["rows"])
    below = [f"{row.part} ({row.share:.0%})" for row in rows if row.share < row.aim]
    missed = f"; below the aim: {', '.join(below)}" if below else "; all reach their aim"
    return [
        *heading("Speed compared with a limit", "limits", "catalogue", "scoring", "generation", "point_in_time", "data_path"),
        *lines,
        f"Catalogues of two sizes are compared in contexts × items per second. A commit is one of {rows_of_commit} rows.",
        "",
        f"![The speed of each part as a share of its limit's speed{missed}](../images/limits.svg)",
        "",
        "Bars show the speed as a share of what stands after the colon, marks the share that is aimed at.",
        "",
        *notes("catalogue", "generation"),
    ]


def joins_and_memory() -> list[str]:
    """Figures with a limit that are not speeds beside a limit, and the machine's own."""
    join, catalogue, bare = figures("point_in_time"), figures("catalogue"), figures("limits")["bare"]
    large, bounds, rows = join["large"], join["limits"], join["spine_rows"]
    times = "times_faster_than_feast_default_store"
    size = f"{number(large['events'])} events × {number(large['spine_rows'])} rows"
    lost = rows - join["feast_default_store_rows"]
    measures = [
        Measure(f"join, {number(join['events'])} events × {number(rows)} rows", join["flat_s"], " s"),
        Measure("the same by Feast's default store", join["feast_default_store_s"], " s"),
        Measure("rows that Feast's default store loses", lost),
        Measure("times as fast as Feast's default store", join[times], "", bounds[times], least=True),
        Measure(f"join, {size}: time", large["s"], " s"),
        Measure(f"join, {size}: memory", large["memory_gib"], " GiB", bounds["memory_gib"]),
        *streamed_spines(),
        Measure("Polars' bare ASOF join of as many rows as the first", bare["polars_asof_s"], " s"),
        Measure(f"pyarrow writes {number(1_000_000)} rows of the feature view", bare["pyarrow_write_1000000_rows_s"], " s"),
        Measure("memory bandwidth", bare["memory_gb_per_s"], " GB/s"),
    ]
    for target, found in named(catalogue).items():
        of_tables = found[MILLION]["of_tables"]
        measures.append(
            Measure(
                f"memory of scoring {count(MILLION)} items ({target}), times its tables",
                of_tables,
                "",
                catalogue["limits"]["of_tables"],
            )
        )
    shortlists = []
    for target, found in named(catalogue).items():
        for share, text in (("one in 10", "a tenth"), ("one in 50", "a fiftieth")):
            one = found[MILLION][share]
            cells = [f"{target}, {text}", rate(one["contexts_per_s"]), f"{one['times_as_fast']:.1f}", f"{one['left_out']:.2f}"]
            shortlists.append([*cells, f"{one['left_out_by_most_probable']:.2f}", f"{one['left_out_by_most_popular']:.2f}"])
    return [
        *heading("Joins, memory and shortlists", "point_in_time", "spine", "limits", "catalogue"),
        *measured(measures),
        f"Shortlists of {count(MILLION)} items ([when to use them](../guides/capacity.md#large-catalogues)). Left out is a share of P:",
        "",
        *table(
            ["items on the list", "speed", "times as fast", "left out", "least possible", "left out by the most popular"],
            shortlists,
        ),
        *notes("point_in_time"),
    ]


def streamed_spines() -> list[Measure]:
    """A spine that is a stream, in two sizes: its memory does not grow."""
    found = figures("spine")
    measures = []
    for spine in found["spines"].values():
        text = f"join, {number(found['events'])} events × a stream of {number(spine['spine_rows'])} rows"
        measures += [
            Measure(f"{text}: rows a second of processor time", spine["rows_per_s"]),
            Measure(f"{text}: memory", spine["memory_gib"], " GiB", found["limits"]["memory_gib"]),
        ]
    return [
        *measures,
        Measure(
            "memory of the larger stream over that of the smaller", found["memory_ratio"], "", found["limits"]["memory_ratio"]
        ),
    ]


def stages() -> list[str]:
    """Processor seconds of stages that read and write the log."""
    reading = figures("data_path")["reading"]
    names = {
        "ingest_s": "ingest",
        "build_histories_s": "histories",
        "together_8_s": "contexts of a run, 8 tasks",
        "together_128_s": "contexts of a run, 128 tasks",
    }
    sizes = [f"{number(int(events))} source events" for events in reading]
    rows = [[text, *(f"{of[name]:.2f}" for of in reading.values())] for name, text in names.items()]
    return [*heading("Stages that read the log", "data_path"), *table(["processor seconds", *sizes], rows)]


def growth() -> list[str]:
    """What ten times the events cost, and a day late in a project beside an early one."""
    scale, daily = figures("scale"), figures("daily")
    ((between, ratios),) = scale["ratios"].items()
    small, large = between.split(" to ")
    limits, sizes = scale["limits"], list(scale["stages"])
    lines = []
    for what, unit, text, digits in (("cpu", "s", "processor seconds", 2), ("memory", "mb", "MB of all processes", 0)):
        key = f"{what}_ratio"
        rows = [
            [
                stage.replace("_", " "),
                *(number(round(scale["stages"][size][stage][f"{what}_{unit}"], digits)) for size in sizes),
                f"{found[key]:.2f}",
                f"≤ {limits[key]}",
            ]
            for stage, found in ratios.items()
        ]
        lines += table([text, *map(millions, sizes), f"{millions(large)} over {millions(small)}", "limit"], rows)
    total = sum(found["cpu_s"] for found in scale["stages"][large].values())
    ledger = max(scale["ledger_share"].values())
    days = [
        Measure(f"{stage.replace('_', ' ')}, late days over early ones", found["ratio"], "", daily["ratio_limit"])
        for stage, found in daily["cpu_ratio"].items()
        if stage != "training_set_whole"
    ]
    grown = figures("growth")
    steps = [
        Measure(text.format(*map(number, map(int, list(grown[step])[1::-1]))), grown[step]["times"], "", grown["limits"][step])
        for step, text in STEPS.items()
    ]
    missed = [stage for stage, found in ratios.items() if any(found[key] > limits[key] for key in found)]
    above = f"above the limit: {', '.join(missed)}" if missed else "all within the limits"
    return [
        *heading("Growth with the log", "scale", "growth", "daily"),
        "A column is a number of source events. There is one context for each.",
        "",
        *lines,
        f"![Processor time and memory of each stage, {millions(large)} over {millions(small)} source events; {above}](../images/scale.svg)",
        "",
        *notes("scale"),
        *measured(
            [
                Measure(f"all stages of {millions(large)} source events, one core", total, " s"),
                Measure("share of the ledger in a run's processor time", ledger, "", limits["ledger_share"]),
                *steps,
                *days,
            ]
        ),
        f"Early and late days are of a project of {daily['days']} days with {number(daily['events_a_day'])} events each (processor time).",
        "",
    ]


def workers() -> list[str]:
    """Generation on many Dask workers."""
    found = figures("workers")
    header = ["workers", "contexts/s", "seconds", "efficiency", "processor seconds of a worker", "of the driver", "memory, GiB"]
    rows = [
        [
            count,
            number(round(one["contexts_per_s"])),
            f"{one['seconds']:.1f}",
            f"{one['efficiency']:.2f}",
            f"{one['cpu_s_a_worker']:.1f}",
            f"{one['driver_cpu_s']:.1f}",
            f"{one['memory_gib']:.2f}",
        ]
        for count, one in found["workers"].items()
    ]
    each = f"{number(found['contexts_a_worker'])} contexts a worker; a scorer that waits {found['seconds_a_context'] * 1000:g} ms for each"
    return [*heading("Many workers", "workers"), f"{each}. All workers share the machine's cores.", "", *table(header, rows)]


def shares() -> list[str]:
    """What the driver and its workers take in the stages that run in tasks."""
    found = figures("shares")
    alone, *counts = found["stages"]
    rows = []
    for stage, single in found["stages"][alone].items():
        times = [found["stages"][count][stage] for count in counts]
        cells = [
            f"{one['driver_s'] - one['waiting_s']:.1f} + {one['workers_s']:.1f} ({100 * one['driver_share']:.1f} %)"
            for one in times
        ]
        rows.append([stage.replace("_", " "), f"{single['driver_s']:.1f}", *cells, f"{times[0]['rate_of_16']:.1f} ×"])
    same, waiting = "the same to the byte" if found["same"] else "**not the same**", 1000 * found["waiting_share"]
    header = ["processor seconds", "one process", *(f"driver + {count.replace('1 workers', '1 worker')}" for count in counts)]
    return [
        *heading("The driver and its workers", "shares"),
        f"{number(found['source_events'])} source events. Tables are {same}.",
        f"A driver that waits for tasks takes {waiting:.0f} ms of processor time a second besides, which is not counted here.",
        "",
        *table([*header, "16 workers, simulated"], rows),
    ]


def training() -> list[str]:
    """Training in tasks: the processor time of its parts, and the simulated rate of more workers."""
    found = figures("training")
    rows = [
        [name.replace("_", " "), str(part["tasks"]), f"{part['seconds']:.1f}"]
        for name, part in found["by_name"].items()
        if part["seconds"] >= 1
    ]
    rates = ", ".join(f"{count} workers {found[f'rate_of_{count}']:.1f}" for count in (2, 4, 16))
    (name, longest), *_ = found["longest_tasks"]
    return [
        *heading("Training in tasks", "training"),
        f"{number(found['source_events'])} source and {number(found['target_events'])} target events, default settings.",
        f"Of {found['total_s']:.0f} s of processor time, the driver alone takes {found['driver_s']:.0f}.",
        f"The longest task, `{name.replace('_', ' ')}`, takes {longest:.0f} s.",
        f"Times as fast as one worker, simulated: {rates}.",
        "`fit shared` is what an estimator learns from source events alone, `fit parameters` the rest of a parameter set.",
        "`fit component` and `draw candidates` belong to the calibration, `score block` to metrics and information.",
        "",
        *table(["task", "number", "processor seconds, in all"], rows),
    ]


def reliability() -> list[str]:
    """Killed drivers, and memory over time."""
    faults, soak = read("faults"), figures("soak")
    killed, same = (sum(found[key] for found in faults.values()) for key in ("killed", "the same"))
    rows = [[stage, str(found["killed"]), str(found["the same"])] for stage, found in faults.items()]
    parts = [name.removeprefix("growth_") for name in soak if name.startswith("growth_") and name != "growth_limit"]
    grown = [
        Measure(
            f"growth of memory, {part.replace('_', ' ')} ({soak[f'rss_mb_{part}']:.0f} MB)",
            100 * soak[f"growth_{part}"],
            " %",
            100 * soak["growth_limit"],
        )
        for part in parts
    ]
    return [
        *heading("Reliability", "faults", "soak"),
        "Drivers killed by SIGKILL, and runs with the same rows afterwards ([how](../explanation/reliability.md)); one had ended before:",
        "",
        *table(["stage", "killed", "same rows afterwards"], [*rows, ["all", str(killed), str(same)]]),
        f"A driver that runs for {soak['seconds']:g} s without a pause, with {soak['clients']} clients at the same time:",
        "",
        *measured(
            [
                Measure("runs", soak["runs"]),
                Measure("events", soak["events"]),
                Measure("answers to clients", soak["client_answers"]),
                Measure("wrong answers", soak["client_answers_wrong"]),
                *grown,
            ]
        ),
    ]


def translator() -> list[str]:
    """The translator beside its estimators."""
    found = figures("translator")
    rows = []
    for pair, of in found.items():
        everyone, cold = (of["later_slice"][part] for part in ("all", "cold"))
        best = min(everyone, key=lambda name: everyone[name]["nll"])
        for name, one in sorted(everyone.items(), key=lambda item: item[1]["nll"]):
            nll = f"**{one['nll']:.3f}**" if name == best else f"{one['nll']:.3f}"
            rows.append(
                [arrow(pair), name, nll, f"{one['ndcg@20']:.4f}", f"{cold[name]['ndcg@20']:.4f}", f"{one['top_ece']:.3f}"]
            )
    measures = []
    for pair, of in found.items():
        frequency = "cold_ndcg_of_frequency"
        measures += [
            Measure(f"{arrow(pair)}: NLL, compared with the best estimator's", of["nll"], "", of["nll_limit"]),
            Measure("NDCG@20 over the best estimator's", of["ndcg_of_best"], "", of["ndcg_of_best_limit"], least=True),
            Measure("the same over frequency's, cold users", of[frequency], "", of[f"{frequency}_limit"], least=True),
        ]
    return [
        *heading("The translator", "translator"),
        "Every event of a later slice is predicted from what came strictly before it, over the whole catalogue.",
        "Cold: no target event in training. ECE: of the most probable item.",
        "",
        *table(["pair", "estimator", "NLL", "NDCG@20", "NDCG@20, cold users", "ECE"], rows),
        *measured(measures),
    ]


def lift() -> list[str]:
    """What ALS gains from synthetic events on Yelp."""
    found = read("lift_yelp")
    (verdict,) = found["verdict"]["models"]
    weights, arms = found["choices"][verdict["model"]]["lambda"], {row["name"]: row for row in found["arms"]}
    shown = {
        "popular_lately": "the list",
        "popular_in_cluster": "lists by cluster",
        "real": "real events",
        "model_level_transfer": "joint training",
        "real+scalr": "real + synthetic",
        "translator": "the translator, as a recommender",
    }
    rows = [[text, f"{arms[arm]['metrics']['ndcg']:.4f}"] for arm, text in shown.items()]
    over = {"joint training": "over_rival", "lists by cluster": "over_clusters"}
    groups = {"all": verdict} | {name: verdict[name] for name in (*SEGMENTS, "new")}
    lifts = [
        [text, *(percent(one[key], digits=1) if key in one else "" for one in groups.values())] for text, key in over.items()
    ]
    lifts.insert(0, ["list and real events", *(percent(one, "lift_over_best_pct", digits=1) for one in groups.values())])
    return [
        *heading("Lift", "lift_yelp"),
        f"ALS on Yelp, other ← restaurants: {number(found['users']['all'])} test cases of {len(found['cutoffs'])} cutoffs.",
        "[How to read this](../explanation/lift.md).",
        "λ (cold / sparse / dense) is " + " / ".join(f"{weights[segment]:.2g}" for segment in SEGMENTS) + ".",
        "",
        *table(["", "NDCG@20"], rows),
        "Real + synthetic over the best baselines, with 95 % intervals over users and items.",
        "*New*: all users as if they had no target events.",
        "",
        *table(["over", *groups], lifts),
    ]


def default_run() -> list[str]:
    """What the shortest settings bring, before any evaluation and after one."""

    def pair_of(one: dict[str, Any]) -> str:
        return f"{one['ndcg']:.4f} ({one['ndcg_cold']:.4f})"

    baselines = {
        "popular_lately": "the list",
        "popular_in_cluster": "lists by cluster",
        "als_real": "ALS, real",
        "als_both_domains": "ALS, joint training",
    }

    found = figures("default_run")
    rows = [
        [
            arrow(pair),
            number(one["test_users"]),
            *(pair_of(one[name]) for name in baselines),
            pair_of(one["default"]["als"]),
            f"{percent(one['default']['over_strongest'])}, {baselines[one['default']['over_strongest']['baseline']]}",
            f"{number(one['default']['synthetic_rows'])} / {number(one['default'].get('real_rows', one['target_events']))}",
        ]
        for pair, one in found.items()
    ]
    header = [
        "pair",
        "test users",
        *(name.replace("the list", "best list").replace("lists", "best lists") for name in baselines.values()),
    ]
    header += ["ALS, real + synthetic", "over the strongest baseline (95 %)", "synthetic / real rows"]
    evaluated = {pair: one for pair, one in found.items() if "after_evaluate" in one}
    after = [
        [
            arrow(pair),
            by_segment(one["after_evaluate"].get("lambda", {})),
            pair_of(one["default"]["als"]),
            pair_of(one["after_evaluate"]["als"]),
            pair_of(best_choice(one)),
            f"{100 * one['after_evaluate']['als']['ndcg'] / best_choice(one)['ndcg']:.0f} %",
            f"{100 * (one['after_evaluate']['als']['ndcg'] / best_single_domain(one) - 1):+.0f} %".replace("-", "−"),
        ]
        for pair, one in evaluated.items()
    ]
    return [
        *heading("A default run", "default_run"),
        "NDCG@20 of all users (of those without target history), by ALS of the library `implicit`, with half of the users' target history",
        "removed from the files. Clusters are of users by their source history (k-means). One seed; the better of two α, and the best",
        "half-life and number of clusters, on the test for every figure. Intervals resample users. Nothing is published for a pair with 0",
        "synthetic rows.",
        "",
        *table(header, rows),
        "The same after `scalr evaluate`, which sets λ, temperature and number of events. The best choice on the test is that of nine",
        "settings (three temperatures with three λ each), the default and no synthetic events.",
        "",
        *table(
            [
                "pair",
                "λ",
                "default run",
                "after `scalr evaluate`",
                "best choice on the test",
                "share of it",
                "over the best of the list and ALS, real",
            ],
            after,
        ),
        *notes("default_run"),
    ]


def best_choice(one: Record) -> Record:
    """The best figures on the test of what a pair's run could have shipped."""
    choices: list[Record] = [one["default"]["als"], one["als_real"], *([one["oracle"]] if "oracle" in one else [])]
    return max(choices, key=lambda choice: choice["ndcg"])


def best_single_domain(one: Record) -> float:
    """NDCG of the best baseline that reads target events alone."""
    return max(one[name]["ndcg"] for name in ("popular_lately", "als_real"))


def by_segment(weights: Record) -> str:
    """λ, of each segment where they differ."""
    if not weights:
        return "not evaluated"
    if len(set(weights.values())) == 1:
        return f"{next(iter(weights.values())):g}"
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())


def default_weight() -> list[str]:
    """What the defaults of draws and of their weight are chosen from."""
    pairs = {pair: one for pair, one in figures("default_weight").items() if "draws" in one}
    lines = []
    for pair, one in pairs.items():
        weights = list(one["draws"][0]["ndcg"])
        rows = [
            [
                number(draw["volume"]),
                f"{draw['temperature']:g}",
                f"{draw['min_lift']:g}",
                number(draw["events"]),
                *(f"{draw['ndcg'][weight]:.4f}" for weight in weights),
            ]
            for draw in one["draws"]
        ]
        sizes = f"{number(one['real_events'])} real events, {number(one['test_users'])} test users"
        baselines = f"the best list reaches {one['popular_lately']:.4f}, ALS on real events only {one['real']:.4f}"
        lines += [
            f"{arrow(pair)}: {sizes}; {baselines}.",
            "",
            *table(
                ["events per user", "temperature", "`min_lift`", "synthetic events", *(f"λ = {weight}" for weight in weights)],
                rows,
            ),
        ]
    return [
        *heading("Defaults of draws and their weight", "default_weight"),
        "NDCG@20 of ALS (library `implicit`) with half of the users target-cold, without an interval. λ is the synthetic events' total",
        "weight as a share of the real ones'. The defaults were chosen by these test slices.",
        "",
        *lines,
        *notes("default_weight"),
    ]


def ease() -> list[str]:
    """A linear model beside ALS."""
    rows = [
        [name, f"{one['ndcg']:.4f}", *(f"{one['by_segment'][segment]:.4f}" for segment in SEGMENTS), number(one["penalty"])]
        for name, one in figures("ease").items()
    ]
    return [
        *heading("EASE", "ease"),
        "The closed-form linear model (Steck 2019) on the test cases of [the evaluation on Yelp](#lift), NDCG@20:",
        "",
        *table(["trained on", "all", *SEGMENTS, "penalty"], rows),
    ]


def sources() -> list[str]:
    """Each file with its command, machine and date, as far as it says, and the libraries."""
    rows, libraries = [], defaultdict(list)
    for name in sorted(path.stem for path in RESULTS.glob("*.json") if path.stem not in LEFT_OUT):
        found = read(name)
        machine = found.get("machine", {})
        host = ", ".join([f"{machine['cores']} cores", machine["system"], f"Python {machine['python']}"]) if machine else ""
        command = found.get("command") or (
            f"python -m benchmarks {found['benchmark']}" if "benchmark" in found else "make faults"
        )
        rows.append([f"`{name}.json`", f"`{command}`", host, found.get("date") or found.get("commit", "")])
        if versions := found.get("versions"):
            libraries[", ".join(f"{library} {version}" for library, version in versions.items())].append(name)
    return [
        *heading("Where the figures come from"),
        "An empty cell: the file does not say. No figure is of a GPU.",
        "",
        *table(["file", "command", "machine", "date or commit"], rows),
        *table(["libraries", "files"], [[versions, ", ".join(names)] for versions, names in libraries.items()]),
        "Left out:",
        "",
        *table(["file", "why"], [[f"`{name}.json`", why] for name, why in LEFT_OUT.items()]),
    ]


def read(name: str) -> Record:
    """What a file holds."""
    found: Record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def figures(name: str) -> Record:
    """What a benchmark measured."""
    found: Record = read(name)["figures"]
    return found


def named(found: Record) -> Record:
    """The measurements of pairs of domains, by the target domain."""
    return {pair.rsplit(" ", 1)[-1]: one for pair, one in found.items() if " to " in pair}


def notes(*names: str) -> list[str]:
    """What the files say of their figures."""
    found = {name: read(name) for name in names}
    texts = {name: one.get("note") or one.get("figures", {}).get("note") for name, one in found.items()}
    return [line for name, text in texts.items() if text for line in (f"- `{name}`: {text}",)] + [""] * any(texts.values())


def heading(title: str, *names: str) -> list[str]:
    """A section's title and its files."""
    files = ", ".join(f"`{name}.json`" for name in names)
    return [f"## {title}", "", *([f"From {files}.", ""] if names else [])]


def measured(measures: Iterable[Measure]) -> list[str]:
    """A table of figures with limits."""
    return table(["measured", "figure", "limit", "figure ÷ limit"], [one.cells() for one in measures])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, and an empty line."""
    return [*(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)), ""]


def number(value: float) -> str:
    """With spaces between thousands, or three digits."""
    whole = abs(value) >= THOUSAND or value == int(value)
    return (f"{value:,.0f}".replace(",", " ") if whole else f"{value:.3g}").replace("-", "−")


def count(items: str) -> str:
    """The number in a size such as 1000000 items."""
    return number(int(items.split(maxsplit=1)[0]))


def millions(events: str) -> str:
    """A number of events, such as 10 M."""
    return f"{int(events) // 10**6} M"


def rate(contexts: float) -> str:
    """Contexts a second."""
    return f"{number(contexts)} contexts/s"


def seconds(value: float) -> str:
    """In milliseconds where that says more."""
    return f"{value * THOUSAND:.1f} ms" if value * THOUSAND < THOUSAND / 10 else f"{value:.2f} s"


def percent(found: Record, name: str = "lift_pct", interval: str = "ci95", digits: int = 0) -> str:
    """A gain with its interval."""
    gain, low, high = (signed(value, digits) for value in (found[name], *found[interval]))
    return f"{gain} % ({low} … {high})"


def signed(value: float, digits: int) -> str:
    """With its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def arrow(pair: str) -> str:
    """A pair of domains, such as food_from_kitchen, as target ← source."""
    return pair.replace("_from_", " ← ").replace("_", " ")


def main() -> None:
    """Write the page, or compare it."""
    text = page()
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return
    if "--check" in sys.argv:
        sys.exit(f"{PAGE.relative_to(ROOT)} is not up to date; run: make docs")
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
