"""A small project made by hand, for the rooms after generation: a lake, a planned run, and candidates that keep every rule.

Source events: user ``u<k>`` on ``s<j>`` at hour ``k + 10 j``. Target items ``t0 … t9`` are first seen long before, with the
user ``first``, so that each may be proposed. Candidates: for every source event of the window two different items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from scalr_prod.config.settings import Settings, load_settings
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunSpec, RunState, RunWindow, TranslatorPin, run_folder
from scalr_prod.quality import GateReport
from scalr_prod.quality.outputs import move_accepted
from scalr_prod.schemas import Table, generated_event_schema, table_schema
from scalr_prod.workspace.user_assignment import Holdout
from support.lakes import fill_lake_once
from support.warm import forking

START = datetime(2024, 1, 1, tzinfo=UTC)
USERS, SOURCE_EVENTS, ITEMS = 20, 10, 10
IDS: dict[str, Any] = {"user": "string", "item": "string", "source_item": "string"}


def hour(number: float) -> datetime:
    return START + timedelta(hours=number)


def events(rows: list[tuple[str, str, float, float]]) -> pa.Table:
    """Rows of user, item, hour of the event, hour from which on it is known."""
    schema = table_schema(Table.TARGET_EVENTS, user="string", item="string")
    columns = list(zip(*rows, strict=True))
    arrays = [list(columns[0]), list(columns[1]), [hour(h) for h in columns[2]], [hour(h) for h in columns[3]]]
    return pa.table(dict(zip(schema.names, [*arrays, [1.0] * len(rows)], strict=True))).cast(schema)


def source_rows() -> list[tuple[str, str, float, float]]:
    return [(f"u{k}", f"s{j}", k + 10 * j, k + 10 * j) for k in range(USERS) for j in range(SOURCE_EVENTS)]


def target_rows() -> list[tuple[str, str, float, float]]:
    return [("first", f"t{i}", -1000, -1000) for i in range(ITEMS)]


def make_lake(lake: Lake, source: list | None = None, target: list | None = None, items: list[str] = ()) -> None:
    """All tables that the gate and the publication read or write."""
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.TARGET_ITEMS, Table.SOURCE_USER_HISTORY):
        lake.create(table, table_schema(table, user="string", item="string"))
    for table in (Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_EVENT_PROVENANCE, Table.SYNTHETIC_QUARANTINE):
        lake.create(table, table_schema(table, **IDS))
    lake.append(Table.SOURCE_EVENTS, events(source_rows() if source is None else source), key="source")
    lake.append(Table.TARGET_EVENTS, events(target_rows() if target is None else target), key="target")
    if items:
        schema = lake.schema(Table.TARGET_ITEMS)
        none = [None] * len(items)
        lake.append(Table.TARGET_ITEMS, pa.table([list(items), none, none, none], schema=schema), key="items")


#: What training would have measured of a translator that knows something.
INFORMED = {
    "events": 400,
    "users": 100,
    "own_over_others": {"nats": 0.4, "ci99": [0.3, 0.5]},
    "later_events": 90,
    "over_popularity": {"nats": 0.2, "ci99": [0.15, 0.25]},
    "others_over_popularity": {"nats": -0.2, "ci99": [-0.25, -0.15]},
    "draw_nats": 0.2,
    "draws_at_prior": 0.1,
}
#: Settings of a gate that puts bad rows aside.
QUARANTINE = '[quality]\npolicy = "quarantine"\nmax_quarantine_share = 0.2\n'
#: Here u0 consumed ``eaten`` at hour 20, ``late`` is first seen at hour 90, ``unseen`` is in the catalogue only, and ``hidden``
#: happened early but became known late.
GATE_TARGET = [*target_rows(), ("u0", "eaten", 20, 20), ("other", "late", 90, 90), ("other", "hidden", 10, 5000)]


@dataclass
class Handmade:
    """A project and the means to make runs in it."""

    folder: Path
    extra: str = ""
    source: list | None = None
    target: list | None = None
    items: list[str] = field(default_factory=list)
    #: Versions of the translator by what they were trained until: a version never changes.
    versions: dict[datetime, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "scalr.toml"
        self.configure(self.extra)
        rows = (self.source, self.target, self.items)
        fill_lake_once(self.settings, repr(rows), lambda lake: make_lake(lake, *rows))

    def configure(self, extra: str) -> Settings:
        """Other settings from now on."""
        self.config.write_text(
            '[domains.source]\nname = "source"\nevents = "s.parquet"\n'
            f'[domains.target]\nname = "target"\nevents = "t.parquet"\n{extra}\n'
        )
        self.settings = load_settings(self.config)
        return self.settings

    @property
    def lake(self) -> Lake:
        return Lake.open(self.settings)

    def run(
        self,
        *,
        start: float = 50,
        end: float = 100,
        as_of: float | None = None,
        mode: str = "backfill",
        trained_until: float | None = None,
        seed: int = 0,
        generated: bool = True,
        candidates: pd.DataFrame | None = None,
        metrics: dict[str, Any] | None = None,
        **generation: Any,
    ) -> RunSpec:
        """A run in the ledger, with run.json and candidates on disk."""
        versions = {
            t.value: self.lake.version(t) for t in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY)
        }
        wanted = {"events_per_source_event": 2, "exclude_consumed": True, "align": True, "align_buckets": 10, **generation}
        until = hour(start if trained_until is None else trained_until)
        version = self.versions.setdefault(until, len(self.versions) + 1)
        held = Holdout.from_settings(self.settings)
        spec = RunSpec.create(
            mode=mode,
            window=RunWindow(hour(start), hour(end), hour(end if as_of is None else as_of)),
            seed=seed,
            translator=TranslatorPin(version, "0" * 64, until),
            table_versions=versions,
            settings={"generation": wanted, "histories": {"length": 50}} | (held.to_run_settings() if held else {}),
        )
        with Ledger.open(self.settings) as ledger:
            ledger.models.record(
                version,
                path="",
                sha256="0" * 64,
                fingerprint=until.isoformat(),
                trained_until=until,
                metrics={"information": INFORMED} if metrics is None else metrics,
            )
            ledger.runs.begin(spec)
            folder = run_folder(self.settings.home, spec.run_id)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.json").write_text(json.dumps(spec.to_json()))
            if generated:
                self.write(spec, self.candidates(spec) if candidates is None else candidates)
                ledger.runs.set_state(spec.run_id, "generating", cause="test")
                ledger.runs.set_state(spec.run_id, "generated", cause="test")
        return spec

    def candidates(self, spec: RunSpec, source: list | None = None) -> pd.DataFrame:
        """Two events for every source event of the window; as many for every target item."""
        rows = []
        for user, item, when, _ in source_rows() if source is None else source:
            if not spec.start <= hour(when) < spec.end:
                continue
            for _ in range(2):
                target = f"t{len(rows) % ITEMS}"
                text = f"{spec.seed}|{user}|{item}|{when}|{target}"
                rows.append((hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), user, target, hour(when), item))
        frame = pd.DataFrame(rows, columns=["event_id", "user_id", "item_id", "event_timestamp", "source_item_id"])
        frame["probability"] = np.float32(0.2)
        frame["weight"] = np.float32(0.5)
        frame["source_domain"] = "source"
        frame["source_event_timestamp"] = frame["event_timestamp"]
        frame["translator_version"] = spec.translator_version
        frame["run_id"] = spec.run_id
        frame["created_timestamp"] = spec.as_of
        return frame

    def faulty_candidates(self, spec: RunSpec) -> pd.DataFrame:
        """Candidates of which 14 or more break a rule: one that looks at other rows, at a log, or at nothing but themselves."""
        rows = self.candidates(spec).to_dict("records")
        rows += [{**rows[place], "event_id": f"{place:032x}"} for place in (0, 70, 140)]  # a user, item and time again
        rows += [{**rows[-place], "event_id": rows[place]["event_id"]} for place in (5, 60)]  # another user's event id
        for place, (column, value) in {
            11: ("user_id", None),
            22: ("user_id", None),
            33: ("user_id", "nobody"),
            44: ("event_id", None),
            55: ("source_item_id", "nothing"),
            66: ("source_event_timestamp", pd.Timestamp("1999-01-01", tz="UTC")),
            77: ("source_event_timestamp", None),
            88: ("item_id", "unseen"),
            99: ("weight", np.float32(2)),
        }.items():
            rows[place] = {**rows[place], column: value}
        return pd.DataFrame(rows)

    def write(self, spec: RunSpec, frame: pd.DataFrame, *, schema: pa.Schema | None = None, parts: int = 2) -> Path:
        """Candidates as the generation leaves them, in several parts."""
        schema = schema or generated_event_schema(**IDS)
        schema = pa.schema([column.with_nullable(nullable=True) for column in schema])
        folder = run_folder(self.settings.home, spec.run_id) / "candidates"
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*"):
            path.unlink()
        for part in range(parts):
            table = pa.Table.from_pandas(frame.iloc[part::parts], schema=schema, preserve_index=False)
            pq.write_table(table, folder / f"part-{part:05d}.parquet")
        return folder

    def accepted(self, parts: int = 1, **plan: Any) -> RunSpec:
        """A run as the gate leaves it when every row passed, without the gate's time."""
        spec = self.run(**plan)
        folder = run_folder(self.settings.home, spec.run_id)
        schema = generated_event_schema(**IDS)
        rows = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "candidates").glob("*"))]).cast(schema)
        files = write_accepted(folder, rows, parts)
        report = GateReport(spec.run_id, True, "strict", rows.num_rows, rows.num_rows, 0, [], files=files)  # noqa: FBT003
        (folder / "gate.json").write_text(json.dumps({"inputs": {}, "report": report.to_json()}))
        with Ledger.open(self.settings) as ledger:
            ledger.runs.set_state(spec.run_id, "validated", cause="test")
        return spec

    def state(self, run_id: str) -> RunState:
        """Where a run stands in the ledger."""
        with Ledger.open(self.settings) as ledger:
            return ledger.runs.get(run_id).state

    def held(self) -> dict[str, int]:
        """Rows of the view by run."""
        return self.view()["run_id"].value_counts().to_dict()

    def view(self) -> pd.DataFrame:
        """What the feature view's table holds."""
        frame = self.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
        return frame.sort_values(["user_id", "event_timestamp", "item_id"], ignore_index=True)


def write_accepted(folder: Path, rows: pa.Table, parts: int = 1) -> list[dict[str, Any]]:
    """Make rows the accepted ones of a run; gives the files as a gate's report has them."""
    size, paths = -(-len(rows) // parts), [folder / f"rows-{part}.parquet" for part in range(parts)]
    for part, path in enumerate(paths):
        pq.write_table(rows.slice(part * size, size), path)
    return move_accepted(folder, paths)


def in_processes(work: Callable[..., Any], arguments: list[tuple]) -> list[Any]:
    """Call a module's function once per tuple, each in a process of its own, all let loose at the same moment.

    Each call gets one more argument, a barrier to wait at.
    """
    context = forking("scalr_prod.compute.worker_preload")
    with context.Manager() as manager, context.Pool(len(arguments)) as pool:
        barrier = manager.Barrier(len(arguments))
        found = pool.starmap(work, [(*given, barrier) for given in arguments])
        # In order: SIGTERM would find a process that writes down what was covered, which then never ends.
        pool.close()
        pool.join()
        return found
