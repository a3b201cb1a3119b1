"""`scalr forget`: a user is in everything that a project keeps, then in nothing of it, and nothing brings them back."""

from __future__ import annotations

import json
import shutil
import socket
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from byte_search import in_redis, short_traces, traces
from redis_server import client, running_redis
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.cli import app
from scalr_prod.contracts import Table
from scalr_prod.downstream.isolation import isolate
from scalr_prod.errors import ForgettingError, LakeError, LeaseHeld, PublicationError, TranslatorError
from scalr_prod.feast_store import open_feature_store
from scalr_prod.forgetting import forget
from scalr_prod.generation.parts import part_path, sha256_of, writing
from scalr_prod.ledger import Ledger, RunSpec, run_folder
from scalr_prod.quality import GateReport
from scalr_prod.quality.accept import write_accepted
from scalr_prod.settings import load_settings
from scalr_prod.tombstones import Tombstones, refuse_overdue
from scalr_prod.training_set.manifest import read_manifest, verify
from scalr_prod.training_set.vocabulary import Vocabulary

pytestmark = pytest.mark.slow

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
    spec = RunSpec.make(
        mode="backfill",
        start=START,
        end=END,
        as_of=END,
        seed=0,
        translator_version=1,
        translator_sha256="0" * 64,
        translator_trained_until=END,
        table_versions=versions,
        settings={"generation": {}, "histories": {"length": 50}, "sources": ["source"]},
    )
    schema = lake.schema(Table.SYNTHETIC_TARGET_EVENTS)
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
    folder = run_folder(settings, spec.run_id)
    for name in ("asked/contexts", "parts", "candidates"):
        with writing(part_path(folder / name, 0), schema) as write:
            write(table)
    files = write_accepted(folder, table.to_reader(), schema)
    report = GateReport(spec.run_id, True, "strict", len(rows), len(rows), 0, [], files=files).to_json()  # noqa: FBT003
    report["rules"] = [
        {"rule": "shown", "examples": json.loads(rows.tail(3)[["user_id", "item_id"]].to_json(orient="records"))},
        {"rule": "also", "examples": [{"user_id": "u1", "item_id": ITEM}, {"user_id": "u1", "item_id": "t1"}]},
    ]
    (folder / "gate.json").write_text(json.dumps({"inputs": {}, "report": report}))
    (folder / "run.json").write_text(json.dumps(spec.to_json()))
    ledger = project.ledger
    ledger.record_model_version(1, path="", sha256="0" * 64, fingerprint="1", trained_until=END, metrics={})
    ledger.begin_run(spec)
    for state in ("generating", "generated", "validated"):
        ledger.set_stage(spec.run_id, state, cause="test")
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
    isolate(settings, END, pa.array([person]).slice(0, 0), name="half")
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


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A filled project on SQLite; copy its folder before changing it."""
    folder = tmp_path_factory.mktemp("filled") / "logs"
    return make(folder, TEXT, "")


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


@pytest.mark.parametrize(("person", "store"), [(TEXT, "sqlite"), (NUMBER, "redis")], ids=["text in sqlite", "number in redis"])
def test_a_forgotten_user_is_nowhere_and_does_not_come_back(person, store, redis, filled, tmp_path):
    if store == "redis":
        client(redis).flushall()
        config, run_id = make(tmp_path / "logs", person, f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n')
    else:
        shutil.copytree(filled[0].parent, tmp_path / "logs")
        config, run_id = tmp_path / "logs" / "scalr.toml", filled[1]
    settings = load_settings(config)
    held = {"lake", "runs", "datasets", "evaluations", "gx", "reports", "triton-server"}
    assert where(traces(settings.home, person)) >= held | ({"feast_online.db"} if store == "sqlite" else set())
    assert bool(in_redis(client(redis), person)) == (store == "redis")
    address = redis if store == "redis" else None
    backup = tmp_path / "backup"
    shutil.copytree(run_folder(settings, run_id) / "accepted", backup)
    with Project(settings) as project:
        before = project.lake.read(Table.SOURCE_EVENTS).num_rows
        names = project.training_set().vocabulary()
        report = project.forget([str(person)])
        gone(settings, person, address)
        assert report.users == 1
        assert report.known == 0
        assert report.removed["source_events"] == 8
        assert report.removed["target_events"] == 4
        assert report.removed["synthetic_target_events"] == 8
        assert report.removed["synthetic_quarantine"] == 8
        assert report.removed["online store"] >= 1
        assert report.translators == [1]
        assert project.lake.read(Table.SOURCE_EVENTS).num_rows == before - 8
        # The proof says nothing of who it was, the tombstone can be read by its owner alone.
        (proof,) = project.ledger.history(subject="forgotten")
        stones = Tombstones.open(settings)
        assert proof.key == stones.digest(person)
        assert json.loads(proof.cause)["removed"]["source_events"] == 8
        assert stat.S_IMODE((settings.home / "forgotten" / "secret").stat().st_mode) == 0o600
        # Others are served, and keep their rows and numbers.
        one = 1_003 if isinstance(person, int) else "u3"
        assert project.lake.dataset(Table.SOURCE_EVENTS).count_rows(filter=ds.field("user_id") == one) == 8
        features = ["source_user_history:event_count"]
        served = open_feature_store(settings).get_online_features(features, [{"user_id": one}, {"user_id": person}]).to_dict()
        assert served["event_count"] == [8, None]
        version = project.training_set()
        manifest = read_manifest(version.path)
        verify(version.path, manifest)
        assert manifest["rows"] == version.to_arrow().num_rows == manifest["real"] + manifest["synthetic"]
        numbers = Vocabulary.read(version.path)
        assert list(numbers.encode("users", [one, person])) == [next(iter(names.encode("users", [one]))), 0]
        shown = json.loads(validation(settings).read_text())
        assert shown["shown"] == {"partial_unexpected_list": ["[forgotten]", 3], "element_count": 3}
        assert (settings.home / "reports" / "x.html").read_text() == "before\n<td>[forgotten]</td>\nafter\n"

        # The logs hold the person still: no command brings them back.
        rows = project.ingest().domains
        assert [one.rows_forgotten for one in rows.values()] == [8, 4]
        assert [one.rows_added for one in rows.values()] == [0, 0]
        with pytest.raises(LakeError, match="is no longer there"):
            project.resume(run_id)
        for work in (
            project.status,
            project.histories,
            lambda: project.rollback(run_id),
            lambda: project.publish(run_id),
            project.build_training_set,
            lambda: project.ingest(replace=START),
            project.maintain,
            lambda: project.forget([person]),
        ):
            work()
            gone(settings, person, address)
        view = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS)
        assert view.num_rows == 160
        assert project.forget([person]).known == 1
        assert len(project.ledger.history(subject="forgotten")) == 1

        # A copy of the run from before is refused, and forgetting again takes them out of it.
        project.rollback(run_id)
        accepted = run_folder(settings, run_id) / "accepted"
        shutil.rmtree(accepted)
        shutil.copytree(backup, accepted)
        (file,) = accepted.glob("*.parquet")
        gate = accepted.parent / "gate.json"
        content = json.loads(gate.read_text())
        content["report"]["files"][0]["sha256"] = sha256_of(file)
        gate.write_text(json.dumps(content))
        with pytest.raises(PublicationError, match="1 users who were forgotten"):
            project.publish(run_id)
        project.forget([person])
        project.publish(run_id)
        gone(settings, person, address)


@pytest.fixture
def settings(filled, tmp_path):
    shutil.copytree(filled[0].parent, tmp_path / "logs")
    return load_settings(tmp_path / "logs" / "scalr.toml")


@pytest.mark.parametrize("at", [by_night(None), "work._rebuilt", by_night("work._refill")])
def test_a_forgotten_item_is_nowhere_and_does_not_come_back(settings, filled, tmp_path, monkeypatch, at):
    run_id, folder = filled[1], run_folder(settings, filled[1])
    held = {"lake", "runs", "datasets", "evaluations", "reports", "feast_online.db"}
    assert where(traces(settings.home, ITEM)) >= held
    shutil.copytree(folder / "accepted", tmp_path / "backup")
    with Project(settings) as project:
        before = {table: project.lake.read(table).to_pandas() for table in (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)}
        former = project.training_set()
        names, rows = former.vocabulary(), former.to_pandas()
        theirs = before[Table.TARGET_EVENTS]["item_id"] == ITEM
        published = before[Table.SYNTHETIC_TARGET_EVENTS]["item_id"] == ITEM
        if at is not None:
            with monkeypatch.context() as patched:
                patched.setattr(f"scalr_prod.forgetting.{at}", cut_off)
                with pytest.raises(KeyboardInterrupt):
                    project.forget_items([ITEM])
            assert project.ingest().domains["target"].rows_added == 0
        report = project.forget_items([ITEM])
        gone(settings, ITEM)
        assert (report.users, report.items, report.known, report.translators) == (0, 1, 0, [])
        if at is None:
            assert report.removed["target_events"] == theirs.sum() > 0
            assert report.removed["synthetic_target_events"] == published.sum() > 0
            assert report.removed["target_items"] == 1
        (proof,) = project.ledger.history(subject="forgotten")
        assert proof.key == Tombstones.open(settings).digest(ITEM, "item")
        left = project.lake.read(Table.TARGET_EVENTS).to_pandas()
        assert len(left) == len(before[Table.TARGET_EVENTS]) - theirs.sum()
        # Histories are those of the events that are left.
        history = project.lake.read(Table.TARGET_USER_HISTORY).to_pandas()
        assert history.groupby("user_id")["event_count"].max().to_dict() == left.groupby("user_id").size().to_dict()
        # The training set keeps its other rows, their places and numbers; the item's place in histories is nobody's.
        version = project.training_set()
        verify(version.path, read_manifest(version.path))
        kept = version.to_pandas()
        assert len(kept) == version.manifest["rows"] == (rows["item_id"] != ITEM).sum() < len(rows)
        wanted = rows[rows["item_id"] != ITEM]["target_user_history__item_ids"]
        expected = [None if one is None else [None if item == ITEM else item for item in one] for one in wanted]
        assert any(one is not None and None in one for one in expected)
        assert [None if one is None else list(one) for one in kept["target_user_history__item_ids"]] == expected
        numbers = Vocabulary.read(version.path)
        assert list(numbers.encode("target_items", ["t3", ITEM])) == [next(iter(names.encode("target_items", ["t3"]))), 0]
        assert len(version.torch(history_length=5)) == len(kept)
        # What was made from its events is stale, and the logs do not bring it back.
        assert {"dataset", "publish"} <= {state.stage for state in project.status() if state.stale}
        domains = project.ingest().domains
        assert [one.rows_forgotten for one in domains.values()] == [0, theirs.sum()]
        assert [one.rows_added for one in domains.values()] == [0, 0]
        for work in (
            project.histories,
            project.build_training_set,
            lambda: project.ingest(replace=START),
            lambda: project.rollback(run_id),
            lambda: project.forget_items([ITEM]),
        ):
            work()
            gone(settings, ITEM)
        assert ITEM not in set(project.lake.read(Table.TARGET_ITEMS)["item_id"].to_pylist())
        assert (settings.home / "reports" / "y.html").read_text() == "before\n<td>[forgotten]</td>\nafter\n"
        assert traces(settings.home, TEXT)  # nobody else goes with it


def test_items_whose_ids_are_numbers_leave_too(tmp_path):
    """A long one is searched for as bytes; a short one in all that holds ids of target items."""
    config, run_id = make(tmp_path / "logs", TEXT, "", numbers=True)
    settings = load_settings(config)
    of_items = r"^(target_user_history__|target_item_stats__)?item_ids?$|^target_items?$|partial_unexpected"

    def left(one):
        # Histories of the source domain hold other items under the same names.
        return short_traces(settings.home, one, of_items)

    with Project(settings) as project:
        assert where(left(SHORT)) >= {"lake", "runs", "datasets", "evaluations", "feast_online.db"}
        assert where(traces(settings.home, LONG)) >= {"lake", "runs", "datasets", "feast_online.db"}
        theirs = {
            table: pc.sum(pc.is_in(project.lake.read(table)["item_id"], pa.array([SHORT, LONG]))).as_py()
            for table in (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)
        }
        report = project.forget_items([str(SHORT), str(LONG)])
        assert (report.items, report.removed["target_items"]) == (2, 2)
        for table, rows in theirs.items():
            assert report.removed[table.value] == rows > 0
        assert left(SHORT) == []
        gone(settings, LONG)
        for work in (project.ingest, project.histories, project.build_training_set, lambda: project.rollback(run_id)):
            work()
            assert left(SHORT) == []
            gone(settings, LONG)
        assert left(3), "other items stay"


@pytest.mark.long
def test_a_forgotten_user_is_in_no_object_of_a_store(tmp_path):
    """The lake of an S3-compatible store: every object is read, those of former versions are gone."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not a thread of this process: a library that waits for it may keep the interpreter.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        keys = {"aws_access_key_id": "somebody", "aws_secret_access_key": "nobody-asks"}
        s3 = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
        s3.create_bucket(Bucket="the-lake")
        options = {"AWS_ENDPOINT_URL": address, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
        options |= {name.upper(): key for name, key in keys.items()}
        listed = "\n".join(f'{name} = "{value}"' for name, value in options.items())
        extra = f'[project]\nlake = "s3://the-lake/lake"\n[project.storage_options]\n{listed}\n'

        def objects(name):
            """All objects as files of a folder."""
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket="the-lake"):
                for found in page.get("Contents", ()):
                    path = tmp_path / name / found["Key"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(s3.get_object(Bucket="the-lake", Key=found["Key"])["Body"].read())
            return tmp_path / name

        config, run_id = make(tmp_path / "logs", TEXT, extra)
        with Project.open(config) as project:
            tables = {one.split("/")[1] for one in traces(objects("before"), TEXT)}
            assert tables >= {"source_events", "target_events", "source_user_history", "synthetic_target_events"}
            assert project.forget([TEXT]).removed["files of tables"] > 0
            assert traces(objects("after"), TEXT) == []
            gone(project.settings, TEXT)
            assert project.ingest().domains["source"].rows_added == 0
            project.rollback(run_id)
            project.publish(run_id)
            assert traces(objects("later"), TEXT) == []
            assert project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 160
    finally:
        server.terminate()
        server.wait(30)


def cut_off(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "at", [by_night("work.forget_in_files"), "files._renew", by_night("work.forget_entities"), "work._conclude"]
)
def test_a_call_that_was_cut_off_goes_on(settings, filled, monkeypatch, at):
    with monkeypatch.context() as patched:
        patched.setattr(f"scalr_prod.forgetting.{at}", cut_off)
        with pytest.raises(KeyboardInterrupt):
            forget(settings, [TEXT])
    stones = Tombstones.open(settings)
    assert stones.unfinished() == 1
    # Already now nothing brings them back.
    with Project(settings) as project:
        assert project.ingest().domains["source"].rows_added == 0
    report = forget(settings, [TEXT])
    assert (report.known, report.translators) == (0, [1])
    gone(settings, TEXT)
    assert Tombstones.open(settings).unfinished() == 0
    # Checksums are those of the files that there are now.
    with Project(settings) as project:
        version = project.training_set()
        verify(version.path, version.manifest)
        assert version.manifest["rows"] == version.to_arrow().num_rows
        project.rollback(filled[1])
        assert project.publish(filled[1]).rows == 160


def test_a_run_at_work_is_not_disturbed(settings, filled):
    with Ledger.open(settings) as ledger, ledger.lease(filled[1]), pytest.raises(LeaseHeld, match="works on this run"):
        forget(settings, [TEXT])
    assert traces(settings.home / "lake", TEXT)
    forget(settings, [TEXT])
    gone(settings, TEXT)


def test_a_translator_that_learned_from_the_user_is_used_for_the_days_of_grace(settings):
    forget(settings, ["u7"])
    refuse_overdue(settings, 1)
    late = settings.with_sections(forgetting={"grace_days": 0})
    with pytest.raises(TranslatorError, match="1 users who have been forgotten"):
        refuse_overdue(late, 1)
    refuse_overdue(late, 2)  # one that was trained since
    forget(settings, ["nobody at all"])
    assert Tombstones.open(settings).retrain_by(settings, 1)[0] == 1


def test_without_the_key_no_log_is_read(settings, tmp_path):
    config, listed = tmp_path / "logs" / "scalr.toml", tmp_path / "users.txt"
    assert CliRunner().invoke(app, ["forget", "--config", str(config)]).exit_code == 2
    listed.write_text(f"{TEXT}\n\nu4\n")
    found = CliRunner().invoke(app, ["forget", "--config", str(config), "--file", str(listed), "--json"])
    assert found.exit_code == 0
    assert json.loads(found.stdout)["users"] == 2
    assert TEXT not in found.stdout
    gone(settings, TEXT)
    listed.write_text(f"{ITEM}\n")
    found = CliRunner().invoke(app, ["forget", "--items", "--config", str(config), "--file", str(listed), "--json"])
    assert json.loads(found.stdout)["items"] == 1
    gone(settings, ITEM)
    (settings.home / "forgotten" / "secret").unlink()
    with Project(settings) as project, pytest.raises(ForgettingError, match="the key of the hashes is not there"):
        project.ingest()


def test_nobody_is_forgotten_while_rows_are_set_aside(settings):
    """Switching publication on would bring the files back as they were."""
    with Project(settings) as project:
        project.disable_publication()
        with pytest.raises(ForgettingError, match="switched off") as caught:
            project.forget([TEXT])
        assert "scalr publication enable" in caught.value.next_step
        assert not Tombstones.open(settings).users
        project.enable_publication()
        project.forget([TEXT])
    gone(settings, TEXT)
