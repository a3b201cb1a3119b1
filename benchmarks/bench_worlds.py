"""The translator in worlds whose translation is known: what share of the oracle's nats it recovers, knob by knob.

Each world is fitted and measured as `scalr translator evaluate` does it: parameters on the first eight tenths of the target events,
without those of half of the users; weights on the next tenth; figures on the last tenth. Nats are the mean -log P(item) of the hidden
users' events there that are new to their users, over the items seen before that are new to them too. ``recovered`` is (popularity -
mixture) / (popularity - oracle). ``information`` is what `scalr_prod.translator.information_gain` measures, by which the gate accepts or
refuses a run.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.worlds import World, WorldLogs
from scalr_prod.config.sections import ComputeSettings, HistorySettings, TranslatorSettings
from scalr_prod.config.settings import load_settings
from scalr_prod.core.hashing import hash_fold
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.translator.data.event_log import EventLog, data_end, read_event_log
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.information_gain import InformationGain
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    label_rows_between,
    measure_components,
    measure_own_over_others,
    time_quantile,
)

#: The world whose knobs are turned, one at a time. `World()` is one with eight times the users.
SMALL = World(users=1_000, topics=15, source_items=450, target_items=450)
KNOBS: tuple[dict[str, Any], ...] = (
    {"signal": 0.0},
    {"signal": 0.1},
    {"signal": 0.3},
    {},
    {"signal": 0.9},
    {"drift": 1.0},
    {"overlap": 0.5},
    {"late": 0.5},
    {"repeats": 0.3},
    {"source_events": 5},
    {"source_events": 60},
    {"target_events": 3},
    {"source_items": 1_800, "target_items": 1_800},
)
#: Of the large world.
LARGE_SIGNALS = (0.0, 0.6, 0.9)


def main() -> dict:
    torch.set_num_threads(1)
    found = {_named(knobs): measured(replace(SMALL, **knobs)) for knobs in KNOBS}
    found |= {f"8 000 users, signal {signal:g}": measured(World(signal=signal)) for signal in LARGE_SIGNALS}
    with TemporaryDirectory() as folder:
        found |= {f"source domains: {name}": figures for name, figures in two_sources(SMALL, Path(folder)).items()}
    return found


def measured(world: World, **translator: Any) -> dict[str, Any]:
    """Nats of the members, of both oracles and of chance, for users without target history in training."""
    started = time.process_time()
    logs = world.make()
    options = TranslatorSettings(threads=1, **translator)
    settings: Any = SimpleNamespace(translator=options, histories=HistorySettings(), compute=ComputeSettings())
    log = logs.log(length=settings.histories.length, folds=settings.translator.folds)
    return _measured(logs, log, settings) | {"cpu_seconds": round(time.process_time() - started, 1)}


def two_sources(world: World, folder: Path, extra: str = "[translator]\nthreads = 1\n") -> dict[str, Any]:
    """The same where the source log is split into two domains (`WorldLogs.split`): with the one, with the other, with both.

    Each is a project of its own, read from disk as any log is.
    """
    logs = world.make()
    halves = logs.split()
    found = {}
    for name, sources in {**{name: {name: events} for name, events in halves.items()}, "both": halves}.items():
        started = time.process_time()
        settings = load_settings(logs.write(folder / name, extra, sources=sources))
        ingest(settings)
        build_histories(settings)
        apply_feature_repo(settings)
        log = read_event_log(settings, data_end(Lake.open(settings)))
        assert log.users.to_pylist() == list(range(world.users)), "the oracle knows users by their place"
        found[name] = _measured(logs, log, settings) | {"cpu_seconds": round(time.process_time() - started, 1)}
    return found


def _measured(logs: WorldLogs, log: EventLog, settings: Any) -> dict[str, Any]:
    world = logs.world
    hidden = hash_fold(log.users, 2) == 0
    begin, middle = (time_quantile(log.label_times(), share) for share in (0.8, 0.9))
    end = int(log.target.time.max()) + 1
    (shared,) = fit_shared([calibration_slice(settings, log, begin, middle)])
    calibrated = fit_calibration(settings, shared, hidden, lambda _: None, with_information=True)
    pairs = TrainingSlice.from_log(log, middle, settings.translator, popularity_until=end)
    tensors = fit_parameter_sets(pairs, {-1: hidden}, lambda _: None) | calibrated.tables
    cold = measure_components(settings, log, pairs, tensors, label_rows_between(log, middle, end), hidden)["cold"]
    oracles = logs.oracles(middle, end)
    asked = hidden[logs.target.user[oracles.rows]]
    assert asked.sum() == cold["mixture"].eligible, "the oracle is asked about the same events"
    nats = {"uniform": float(oracles.uniform[asked].mean())} | {name: row.nll for name, row in cold.items()}
    nats |= {"oracle": float(oracles.oracle[asked].mean()), "knowing_oracle": float(oracles.knowing[asked].mean())}
    gain, most = nats["popularity"] - nats["mixture"], nats["popularity"] - nats["oracle"]
    own_over_others = measure_own_over_others(settings, pairs, tensors, {-1: hidden})
    assert calibrated.over_popularity is not None
    return {
        "world": {name: getattr(world, name) for name in ("users", "topics", "target_items")} | world.changed(),
        "events": int(asked.sum()),
        "nats": {name: round(value, 3) for name, value in nats.items()},
        "gained": round(gain, 3),
        "recovered": round(gain / most, 3) if world.signal else None,
        "information": InformationGain(own_over_others, calibrated.over_popularity).to_json(),
    }


def _named(knobs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in knobs.items()) or "base"


if __name__ == "__main__":  # with knobs as JSON: that world alone
    print(json.dumps(main() if len(sys.argv) == 1 else measured(replace(SMALL, **json.loads(sys.argv[1]))), indent=2))
