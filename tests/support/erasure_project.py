"""A small project in which one user and one item are in everything that it keeps: what tests of `scalr forget` begin with."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from scalr_prod import Project
from scalr_prod.evaluation.sandbox import create_sandbox
from scalr_prod.generation import candidate_schema
from scalr_prod.generation.part_files import open_part_writer, part_path
from scalr_prod.ledger import RunSpec, RunWindow, TranslatorPin, run_folder
from scalr_prod.quality import GateReport
from scalr_prod.schemas import Table
from support.byte_search import in_redis, traces
from support.redis_server import client
from support.small_project import write_accepted

START = datetime(2024, 1, 1, tzinfo=UTC)
END = START + timedelta(days=40)
TEXT, NUMBER = "zebra-7731-quokka", 7_731_773_177_317_731
ITEM = "okapi-4242-numbat"


#: Ids of items that are numbers: a short one and one that no other bytes are by chance; source items are others.
SHORT, LONG = 7, 8_442_844_284_428_442


def by_night(place):
    """One more place to be cut off at; CONTRIBUTING.md."""
    return pytest.param(place, marks=pytest.mark.nightly)


def item_of(name, number, *, numbers=False):
    """An item's id; one of the target domain's, or two where ids are numbers, is nowhere else."""
    if numbers:
        return 600 + number if name == "s" else LONG if number == 8 else number
    return ITEM if (name, number) == ("t", 7) else f"{name}{number}"


def write_logs(folder, person, *, numbers=False):
    """Twenty users and one more, whose id is nowhere else; each with events in both domains."""
    rng = np.random.default_rng(5)
    others = [f"u{n}" for n in range(20)] if isinstance(person, str) else [1_000 + n for n in range(20)]
    for name, items, count in (("s", 12, 8), ("t", 10, 4)):
        rows = [
            (
                user,
                item_of(name, int(rng.integers(items)), numbers=numbers),
                START + timedelta(seconds=int(rng.integers(40 * 86_400))),
            )
            for user in [*others, person]
            for _ in range(count)
        ]
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
        frame["timestamp"] = frame["timestamp"].astype("datetime64[us, UTC]")
        frame.to_parquet(folder / f"{name}.parquet", index=False)


def accepted_run(project):
    """A run as the gate leaves it, with two synthetic events for each source event, staged parts, and a gate's examples."""
    settings, lake = project.settings, project.lake
    versions = {t.value: lake.version(t) for t in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY)}
    spec = RunSpec.create(
        mode="backfill",
        window=RunWindow(START, END, END),
        seed=0,
        translator=TranslatorPin(1, "0" * 64, END),
        table_versions=versions,
        settings={"generation": {}, "histories": {"length": 50}, "sources": ["source"]},
    )
    schema = candidate_schema(lake)
    numbers = pa.types.is_integer(schema.field("item_id").type)
    events = lake.read(Table.SOURCE_EVENTS).to_pandas()
    rows = pd.DataFrame(
        {
            "event_id": [f"{number:032x}" for number in range(len(events))],
            "user_id": events["user_id"],
            "item_id": [item_of("t", number % 10, numbers=numbers) for number in range(len(events))],
            "event_timestamp": events["event_timestamp"],
            "probability": np.float32(0.2),
            "weight": np.float32(0.5),
            "source_domain": "source",
            "source_item_id": events["item_id"],
            "source_event_timestamp": events["event_timestamp"],
            "translator_version": 1,
            "run_id": spec.run_id,
            "created_timestamp": END,
        }
    )
    table = pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
    folder = run_folder(settings.home, spec.run_id)
    for name in ("asked/contexts", "parts", "candidates"):
        with open_part_writer(part_path(folder / name, 0), schema) as write:
            write(table)
    files = write_accepted(folder, table)
    report = GateReport(spec.run_id, True, "strict", len(rows), len(rows), 0, [], files=files).to_json()  # noqa: FBT003
    report["rules"] = [
        {"rule": "shown", "examples": json.loads(rows.tail(3)[["user_id", "item_id"]].to_json(orient="records"))},
        {"rule": "also", "examples": [{"user_id": "u1", "item_id": ITEM}, {"user_id": "u1", "item_id": "t1"}]},
    ]
    (folder / "gate.json").write_text(json.dumps({"inputs": {}, "report": report}))
    (folder / "run.json").write_text(json.dumps(spec.to_json()))
    ledger = project.ledger
    ledger.models.record(1, path="", sha256="0" * 64, fingerprint="1", trained_until=END, metrics={})
    ledger.runs.begin(spec)
    for state in ("generating", "generated", "validated"):
        ledger.runs.set_state(spec.run_id, state, cause="test")
    return spec.run_id, table


def fill(project, person):
    """Everything that may hold the person; gives the run."""
    settings = project.settings
    project.ingest()
    project.histories()
    run_id, rows = accepted_run(project)
    project.publish(run_id)
    project.build_training_set()
    theirs = rows.filter(ds.field("user_id") == person)
    schema = project.lake.schema(Table.SYNTHETIC_QUARANTINE)
    quarantined = theirs.append_column("reason", pa.array(["shown"] * len(theirs))).select(schema.names).cast(schema)
    project.lake.append(Table.SYNTHETIC_QUARANTINE, quarantined, key="test")
    create_sandbox(settings, END, pa.array([person]).slice(0, 0), name="half")
    for name, text in (
        ("triton-server/server.log", f"asked for user {person} twice"),
        ("reports/x.html", f"<td>{person}</td>"),
        ("reports/y.html", f"<td>{ITEM}</td>"),
    ):
        path = settings.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"before\n{text}\nafter\n")
    shown = validation(settings)
    content = json.loads(shown.read_text())
    content["shown"] = {"partial_unexpected_list": [person, 3], "element_count": 3}
    shown.write_text(json.dumps(content))
    return run_id


def validation(settings):
    """A result of Great Expectations."""
    return next(iter(sorted((settings.home / "gx" / "validations").rglob("*rows.json"))))


def make(folder, person, extra, *, numbers=False):
    folder.mkdir()
    write_logs(folder, person, numbers=numbers)
    (folder / "scalr.toml").write_text(
        '[domains.source]\nname = "source"\nevents = "s.parquet"\n[domains.target]\nname = "target"\nevents = "t.parquet"\n'
        f"[publication]\nonline = true\n[compute]\nworkers = 1\n{extra}"
    )
    with Project.open(folder / "scalr.toml") as project:
        run_id = fill(project, person)
    return folder / "scalr.toml", run_id


def where(found):
    """The top folders of traces."""
    return {one.split(":")[0].split("/")[0] for one in found}


def gone(settings, person, redis=None):
    found = traces(settings.home, person)
    assert found == []
    if redis is not None:
        assert in_redis(client(redis), person) == []


def cut_off(*_, **__):
    raise KeyboardInterrupt
