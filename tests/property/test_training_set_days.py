"""Version after version made of former parts and new ones, joined by user and by item, against one that is made of nothing else and joined
in the order of time: the same rows, files and ids.

The logs are random, on random days, with late events; windows are published again and rolled back; settings and the policy change.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from support.lakes import mark_home
from support.training_set_project import in_the_order_of_time

from scalr_prod.config.settings import Settings
from scalr_prod.core.timestamps import to_micros
from scalr_prod.features import apply_feature_repo, service_sources
from scalr_prod.generation.policy import Policy, apply_policy, logs_digest, policy_path, settings_digest
from scalr_prod.histories import build_histories
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, table_schema
from scalr_prod.training_set import TrainingSet, build_training_set
from scalr_prod.training_set.assemble import assemble_partitions, plan_assembly
from scalr_prod.training_set.build import _read_inputs
from scalr_prod.training_set.build_tasks import open_build_tasks
from scalr_prod.training_set.input_changes import EVENT_TABLES, InputTables

#: Builds each version of a set twice; test_training_set_versions.py has the next day, a damaged file and the same bytes.
pytestmark = [pytest.mark.slow, pytest.mark.long]

START = datetime(2024, 1, 10, 6, tzinfo=UTC)
DAY = timedelta(days=1)
DOMAINS = {"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}
#: By seed, most rows of a file and of a period that is no day: some months are one part, others are not; some days are several files.
LIMITS = (150, 70)
STAMP = pa.timestamp("us", tz="UTC")


class World:
    """A lake that gets older, and a training set that is built again after each thing that happens to it."""

    def __init__(self, folder, seed: int) -> None:
        self.folder, self.draw = folder, np.random.default_rng(seed)
        self.ids = ("int64", "string")[seed % 2]
        self.at = START
        self.commits = 0
        self.options: dict = {}
        self.histories = {"length": 3, "trailing_days": 2}
        mark_home(self.settings())
        lake = Lake.open(self.settings())
        for table in Table:
            lake.create(table, table_schema(table, user=self.ids, item=self.ids))

    def settings(self) -> Settings:
        chosen = {"name": "days", "cutoff": self.at, "source_history": True, **self.options}
        return Settings(
            project={"name": "days"},
            domains=DOMAINS,
            histories=self.histories,
            training_set=chosen,
            base=self.folder,
        )

    def id(self, prefix: str, many: int, count: int) -> pa.Array:
        drawn = self.draw.integers(0, many, count)
        return pa.array(drawn) if self.ids == "int64" else pa.array([f"{prefix}{one}" for one in drawn])

    def times(self, count: int, since: datetime, until: datetime):
        """Half of them whole hours, so that there are ties."""
        span = np.array([to_micros(since), to_micros(until) - 1])
        drawn = self.draw.integers(*span, count)
        whole = drawn // 3_600_000_000 * 3_600_000_000
        return np.sort(np.where((self.draw.random(count) < 0.5) & (whole >= span[0]), whole, drawn))

    def events(self, count: int, since: datetime, until: datetime, *, late: timedelta = timedelta()) -> None:
        """Both logs get events that became known in a time; where late, they happened up to so long before."""
        for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
            known = self.times(count, since, until)
            before = self.draw.integers(0, late // timedelta(microseconds=1) + 1, count) * (self.draw.random(count) < 0.5)
            rows = {
                "user_id": self.id("u", 7, count),
                "item_id": self.id("i", 9, count),
                "event_timestamp": pa.array(known - before).cast(STAMP),
                "created_timestamp": pa.array(known).cast(STAMP),
                "weight": pa.array(self.draw.integers(1, 4, count).astype(np.float32)),
            }
            self.commit(table, rows)
        build_histories(self.settings())

    def publish(self, count: int, start: datetime, end: datetime) -> str:
        """A window's synthetic events, known from now on, in place of those that it had."""
        run = f"run_{self.commits:016x}"
        happened = pa.array(np.unique(self.draw.integers(to_micros(start), to_micros(end), count))).cast(STAMP)
        count = len(happened)
        rows = {
            "event_id": pa.array([f"{run}-{number}" for number in range(count)]),
            "user_id": self.id("u", 12, count),  # some have no real event
            "item_id": self.id("i", 9, count),
            "event_timestamp": happened,
            "probability": pa.array(np.full(count, 0.5, np.float32)),
            "weight": pa.array(self.draw.random(count).astype(np.float32)),
            "source_domain": pa.array(["a"] * count),
            "source_item_id": self.id("i", 9, count),
            "source_event_timestamp": happened,
            "translator_version": pa.array(np.ones(count, np.int64)),
            "run_id": pa.array([run] * count),
            "created_timestamp": pa.array([self.at] * count, STAMP),
        }
        self.commit(Table.SYNTHETIC_TARGET_EVENTS, rows, window=(start, end))
        return run

    def commit(self, table: Table, rows: dict, *, window=None) -> None:
        lake = Lake.open(self.settings())
        schema = lake.schema(table)
        made = pa.table([rows[name] for name in schema.names], schema=schema)
        self.commits += 1
        if window:
            lake.replace_window(table, made, start=window[0], end=window[1], key=f"commit {self.commits}")
        else:
            lake.append(table, made, key=f"commit {self.commits}")

    def pass_by(self, time: timedelta, count: int, *, late: timedelta = timedelta()) -> None:
        """Time goes on, with events and a publication for it."""
        since, self.at = self.at, self.at + time
        self.events(count, since, self.at, late=late)
        self.publish(count, since, self.at)

    def build(self) -> int:
        """The next version, compared with one from nothing: how many of its files the former one has as well."""
        with pytest.MonkeyPatch.context() as patch:
            # Half of the time goes into the gate's report, which tests of its own look at.
            patch.setattr("scalr_prod.quality.training_set.validate_training_set", lambda *_, **__: None)
            report = build_training_set(self.settings())
        version = TrainingSet.open(report.path, check=True)
        settings, _ = apply_policy(self.settings())
        lake = Lake.open(settings)
        inputs = _read_inputs(settings, lake)
        opened = {table: inputs.opened[table] for table in EVENT_TABLES}
        tables = InputTables(opened, service_sources(settings, settings.training_set.feature_service))
        folder = self.folder / f"whole {report.version}"
        (folder / "nothing").mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("scalr_prod.training_set.features.join_by_key", in_the_order_of_time)
            plan = plan_assembly(settings, inputs.window, inputs.values, tables, folder / "nothing")
            with open_build_tasks(settings, folder, tasks=1, work_s=0) as tasks:
                whole = assemble_partitions(plan, tasks, folder / "version", progress=False)
        files = [folder / "version" / name for part in whole.partitions for name in part.files if name.startswith("rows/")]
        found, wanted = version.to_arrow(), ds.dataset([str(file) for file in files]).to_table()
        assert found.equals(wanted)
        assert report.rows == wanted.num_rows
        assert version.manifest["parts"] == [part.to_json() for part in whole.partitions]
        assert [file.name for file in version.files] == [file.name for file in files]
        assert [file.read_bytes() for file in version.files] == [file.read_bytes() for file in files]
        self.check_ids(version, wanted)
        former = version.path.parent / f"v{report.version - 1}"
        return sum(
            (former / "rows" / file.name).exists() and (former / "rows" / file.name).samefile(file) for file in version.files
        )

    def check_ids(self, version: TrainingSet, rows: pa.Table) -> None:
        vocabulary = version.vocabulary()
        assert vocabulary.users.to_pylist() == sorted(set(rows["user_id"].to_pylist()))
        items = set(rows["item_id"].to_pylist())
        for domain, known, more in (("source", vocabulary.source_items, set()), ("target", vocabulary.target_items, items)):
            listed = [ids for ids in rows[f"{domain}_user_history__item_ids"].to_pylist() if ids]
            assert known.to_pylist() == sorted({one for ids in listed for one in ids} | more)


def first_weeks(world: World) -> int:
    """The first six versions, after days, late events, a window published again and a rollback; the files of a day that stay."""
    world.pass_by(45 * DAY, 30)
    apply_feature_repo(world.settings())
    assert world.build() == 0

    world.pass_by(DAY, 30)
    assert world.build() > 10, "all but the day that the first build cut"
    world.pass_by(DAY, 30, late=3 * DAY)
    assert world.build() > 10
    world.pass_by(DAY / 3, 20)
    ordinary = world.build()
    assert ordinary > 10
    run = world.publish(25, world.at - 10 * DAY, world.at - 8 * DAY)
    assert ordinary - 5 <= world.build() < ordinary + 1, "three days were published again"
    Lake.open(world.settings()).delete(Table.SYNTHETIC_TARGET_EVENTS, f"run_id = '{run}'", key="rolled back")
    assert world.build() >= ordinary - 5
    return ordinary


def damage_and_other_histories(world: World, caplog, *, kept: int) -> None:
    """A file of the latest version is cut short, then all histories are written anew."""
    damaged = max((world.folder / ".scalr" / "datasets" / "days").glob("v*"), key=lambda path: int(path.name[1:]))
    file = sorted((damaged / "rows").iterdir())[3]
    file.write_bytes(file.read_bytes()[:-1])
    world.at += DAY
    caplog.clear()
    assert world.build() > kept
    assert "SHA-256 differs; rebuilding the partition" in caplog.text
    world.histories = {"length": 2, "trailing_days": 2}
    build_histories(world.settings())
    caplog.clear()
    assert world.build() == 0
    assert "was rewritten" in caplog.text
    manifest = json.loads((damaged / "manifest.json").read_text(encoding="utf-8"))
    assert sum(part["rows"] for part in manifest["parts"]) == manifest["rows"]


@pytest.fixture
def world(tmp_path, monkeypatch, caplog, request) -> World:
    monkeypatch.setattr("scalr_prod.training_set.features.max_partition_rows", lambda _: LIMITS[request.param])
    # A few events are a large part of these logs. The files of former days are counted as if their ratio took no step.
    monkeypatch.setattr("scalr_prod.training_set.build.measure_real_to_synthetic", lambda *_: 2.0)
    caplog.set_level("INFO", "scalr_prod.training_set")
    return World(tmp_path, request.param)


@pytest.mark.parametrize("world", [0], indirect=True)
def test_a_version_of_former_parts_has_the_rows_and_files_of_one_that_is_built_from_nothing(world, caplog, monkeypatch):
    ordinary = first_weeks(world)
    with monkeypatch.context() as patched:
        patched.setattr("scalr_prod.training_set.build.measure_real_to_synthetic", lambda *_: 2.4)
        assert world.build() < ordinary, "the ratio took a step: each part with a synthetic row has other weights"
    damage_and_other_histories(world, caplog, kept=5)


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(0, marks=pytest.mark.long),
        pytest.param(1, marks=pytest.mark.nightly(reason="as seed 0, other ids: takes as long again")),
    ],
    indirect=True,
)
def test_so_has_each_of_eighteen_through_changes_of_settings_and_policy(world, caplog):
    ordinary = first_weeks(world)

    world.options = {"synthetic_weight": 0.5}
    assert world.build() < ordinary, "each part with a synthetic row has other weights"
    world.pass_by(DAY, 20)
    assert world.build() > 10
    world.options = {}
    settings = world.settings()
    policy = Policy(
        model="als", best_baseline="real", helps=True, volume=5, temperature=1.0, min_lift=0.0, align=False,
        segment_weights=(0.0, 0.5, 2.0), sparse_below=9, settings=settings_digest(settings), logs=logs_digest(settings), report="",
    )  # fmt: skip
    policy.write(policy_path(settings))
    world.build()
    world.pass_by(DAY, 20, late=3 * DAY)
    caplog.clear()
    world.build()
    assert "λ depends on each user's number of real events" in caplog.text
    policy_path(settings).unlink()

    world.options = {"negatives_per_event": 2, "seed": 3}
    world.build()
    world.pass_by(DAY, 20, late=2 * DAY)
    assert world.build() > 5, "what lies before the first late event has its negatives"
    world.options |= {"start": START + 15.5 * DAY}
    assert world.build() > 5
    world.pass_by(40 * DAY, 25)
    world.build()
    world.events(3, world.at, world.at + DAY, late=70 * DAY)
    world.at += DAY
    world.build()
    world.at += DAY
    assert world.build() > 20, "nothing has happened"
    damage_and_other_histories(world, caplog, kept=20)
