"""Run the benchmarks and keep their figures under `benchmarks/results/`.

Usage: python -m benchmarks [point_in_time data_path scoring limits gpu generation translator run]
       python -m benchmarks [day daily growth scale catalogue workers set_aside default_weight default_run ease abxi soak privacy]
       python -m benchmarks [worlds world_lifts loop selection scout cold_items bridge spine shares training]

Those of the second and third line run only when they are named: ``growth`` takes a minute, ``shares`` and ``spine`` five, ``selection``
ten, ``scale`` hours at its default size, ``abxi`` up to an hour, ``worlds``, ``world_lifts``, ``set_aside`` and ``ease`` half
an hour, ``catalogue``, ``default_run``, ``bridge``, ``training`` and ``privacy`` a quarter, ``loop`` and ``cold_items`` twenty minutes,
``scout`` half an hour, ``soak``, ``day``, ``daily`` and ``workers`` ten minutes.

Each is a module `bench_NAME` with a `main() -> dict`. Ratios come from one run on one machine, medians of several rounds.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

NAMES = ("point_in_time", "data_path", "scoring", "limits", "gpu", "generation", "translator", "run")
RESULTS = Path(__file__).parent / "results"
LONG = (
    "day",
    "daily",
    "growth",
    "scale",
    "catalogue",
    "workers",
    "set_aside",
    "default_weight",
    "default_run",
    "ease",
    "abxi",
    "soak",
    "privacy",
    "worlds",
    "world_lifts",
    "loop",
    "selection",
    "scout",
    "cold_items",
    "bridge",
    "spine",
    "shares",
    "training",
)
PARTS = (
    "torch",
    "numba",
    "implicit",
    "feast",
    "deltalake",
    "duckdb",
    "distributed",
    "great-expectations",
    "tritonclient",
    "numpy",
)


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all of them."""
    unknown = sorted(set(names) - {*NAMES, *LONG})
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join((*NAMES, *LONG))}")
    RESULTS.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    for name in names or NAMES:
        print(f"── {name}", flush=True)
        started = time.perf_counter()
        figures = importlib.import_module(f"benchmarks.bench_{name}").main()
        if set(figures) == {"skipped"}:  # what was measured elsewhere stays
            print(f"  skipped: {figures['skipped']}", flush=True)
            continue
        record = {
            "benchmark": name,
            "figures": figures,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine,
            "versions": {part: metadata.version(part) for part in PARTS},
            "seconds": round(time.perf_counter() - started, 1),
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        for key, value in figures.items():
            print(f"  {key}: {str(value)[:500]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
