"""A project small enough to be run a hundred times, its undisturbed run, and a Dask cluster that outlives drivers."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.fault_harness import Drivers, Kill, Outcome, as_bytes, view

SETTINGS = """
[generation]
partitions = 4
[serving]
scorer = "local"
threads = 1
startup_timeout_s = 240
[compute]
workers = 1
[quality]
max_bucket_distance = 0.9
min_information = 0
"""


@pytest.fixture(scope="session")
def drivers() -> Drivers:
    return Drivers()


def warm() -> None:
    """Import what a worker imports for its first task."""
    import importlib

    for name in ("deltalake", "feast", "torch"):
        importlib.import_module(name)


@pytest.fixture(scope="session")
def cluster():
    """Two worker processes, warm for all drivers; killed ones are started anew by their nannies."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.dashboard.status.task-stream-length": 1}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as made,
    ):
        yield made


@dataclass(frozen=True)
class Project:
    """One project on one path; each test puts it back to a stage of its undisturbed run.

    Attributes:
        config: Its scalr.toml.
        snapshots: The whole folder as it was before each stage.
        options: Settings of every driver.
        points: Points of the undisturbed run, by stage.
        seconds: Its seconds, by stage.
        rows: What it published, sorted.
    """

    config: Path
    snapshots: Path
    options: dict[str, Any]
    points: dict[str, int]
    seconds: dict[str, float]
    rows: pa.Table

    def before(self, stage: str) -> Path:
        """Put the project back to where the stage begins; gives its scalr.toml."""
        shutil.rmtree(self.config.parent)
        shutil.copytree(self.snapshots / stage, self.config.parent)
        return self.config

    def check(self, *, exact: bool = True) -> None:
        """The view holds what the undisturbed run published: nothing is lost, nothing is there twice.

        Args:
            exact: To the last bit. Else (behind Triton, which joins the requests that wait, so that sums are rounded in another
                order) the two columns of probabilities to a hundred-thousandth, and all else to the last bit.
        """
        found, floats = view(self.config, **self.options), ["probability", "weight"]
        if not exact:
            for name in floats:
                np.testing.assert_allclose(found[name].to_numpy(), self.rows[name].to_numpy(), rtol=1e-5, atol=1e-7)
        kept = [name for name in found.schema.names if exact or name not in floats]
        assert as_bytes(found.select(kept)) == as_bytes(self.rows.select(kept))


def undisturbed(drivers: Drivers, config: Path, options: dict[str, Any]) -> Project:
    """Run a project once, from nothing to the training set."""
    # On one thread a repeated training gives the same parameters to the last bit; on two, sums come in any order.
    lean = 'threads = 1\nestimators = ["popularity", "frequency", "linear"]'
    config.write_text(config.read_text().replace("threads = 2", lean))
    snapshots = config.parent.parent / "before"
    found = drivers.drive(config, "run", snapshots=str(snapshots), **options)
    assert found.error is None, found.error
    return Project(config, snapshots, options, found.points, found.seconds, view(config, **options))


@pytest.fixture(scope="session")
def project(drivers, cluster, make_project, tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("faults") / "logs"
    made = make_project(folder, SETTINGS, users=60, source_items=48, target_items=40)
    return undisturbed(drivers, made.base / "scalr.toml", {"compute": {"dask": cluster.scheduler_address}})


@pytest.fixture(scope="session")
def served(drivers, project) -> Project:
    """The same project, from generation on, with a real Triton that each run starts and stops."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.serving import stop_triton

    # A request for every context: there has to be something to interrupt. A server that is silent for half of the deadline hangs.
    serving = {"scorer": "triton", "threads": 1, "deadline_s": 40, "startup_timeout_s": 240}
    options = project.options | {"serving": serving, "generation": {"batch_size": 1}}
    config = project.before("generate")
    found = drivers.drive(config, "run", **options)
    assert found.error is None, found.error
    # Only what both runs passed can be counted on.
    points = {stage: min(project.points[stage], found.points[stage]) for stage in ("generate", "validate", "publish")}
    yield replace(project, options=options, rows=view(config, **options), points=project.points | points)
    stop_triton(load_settings(config, **options))


@pytest.fixture(scope="session")
def tally():
    """What the kills came to, by stage; written as JSON to where SCALR_FAULTS_REPORT says."""
    found: dict[str, Counter[str]] = {}
    yield found
    target = os.environ.get("SCALR_FAULTS_REPORT")
    if target and found:
        Path(target).write_text(json.dumps({stage: dict(counts) for stage, counts in found.items()}, indent=1) + "\n")


@pytest.fixture
def survive(drivers, project, tally):
    """Kill a driver, go on as a user would, and compare; gives the recovery's outcome."""

    def work(kill: Kill) -> Outcome:
        counts = tally.setdefault(kill.stage, Counter())
        counts["killed"] += 1
        config = project.before(kill.stage)
        assert drivers.drive(config, "run", kill=kill, **project.options).killed
        left = {path.name for path in (config.parent / ".scalr" / "staging").glob("*")}
        action = "resume" if kill.stage in {"generate", "validate", "publish"} else "run"
        found = drivers.drive(config, action, **project.options)
        assert found.error is None, f"{kill}: {found.error}"
        project.check()
        assert not {path.name for path in (config.parent / ".scalr" / "staging").glob("*")}, f"{kill} left {left}"
        counts["the same"] += 1
        return found

    return work
