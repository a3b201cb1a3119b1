"""`scalr forget`: a user is in everything that a project keeps, then in nothing of it, and nothing brings them back."""

from __future__ import annotations

import json
import shutil
import socket
import stat
import subprocess
import sys
import time

import pyarrow.dataset as ds
import pytest
from conftest import make_two_domains, write_toml
from support.byte_search import in_redis, traces
from support.erasure_project import ITEM, NUMBER, START, TEXT, by_night, cut_off, gone, make, validation, where
from support.redis_server import client, running_redis
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.core.hashing import file_sha256
from scalr_prod.errors import ForgettingError, LakeError, LeaseHeld, PublicationError, TranslatorError
from scalr_prod.features import open_feature_store
from scalr_prod.ledger import Ledger, run_folder
from scalr_prod.operations.erasure import erase_users
from scalr_prod.schemas import Table
from scalr_prod.training_set.manifest import read_manifest, verify_files
from scalr_prod.training_set.vocabulary import IdVocabulary
from scalr_prod.workspace.suppression_list import SuppressionList, ensure_retrained_in_time

pytestmark = pytest.mark.slow
#: Takes five to fifteen seconds; the user who is forgotten in the first test meets the same checks.
long = pytest.mark.long


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.mark.parametrize(
    ("person", "store"),
    [
        pytest.param(TEXT, "sqlite", id="text in sqlite"),
        pytest.param(NUMBER, "redis", id="number in redis", marks=long),
    ],
)
def test_a_forgotten_user_is_nowhere_and_does_not_come_back(person, store, request, filled, tmp_path):
    redis = request.getfixturevalue("redis") if store == "redis" else None
    if store == "redis":
        config, run_id = make(tmp_path / "logs", person, f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n')
    else:
        shutil.copytree(filled[0].parent, tmp_path / "logs")
        config, run_id = tmp_path / "logs" / "scalr.toml", filled[1]
    settings = load_settings(config)
    held = {"lake", "runs", "datasets", "evaluations", "gx", "reports", "triton-server"}
    assert where(traces(settings.home, person)) >= held | ({"feast_online.db"} if store == "sqlite" else set())
    if redis is not None:
        assert in_redis(client(redis), person)
    backup = tmp_path / "backup"
    shutil.copytree(run_folder(settings.home, run_id) / "accepted", backup)
    with Project(settings) as project:
        before = project.lake.read(Table.SOURCE_EVENTS).num_rows
        names = project.training_set().vocabulary()
        report = project.forget([str(person)])
        gone(settings, person, redis)
        assert report.users == 1
        assert report.known == 0
        assert report.removed["source_events"] == 8
        assert report.removed["target_events"] == 4
        assert report.removed["synthetic_target_events"] == 8
        assert report.removed["synthetic_event_provenance"] == 8
        assert report.removed["synthetic_quarantine"] == 8
        assert report.removed["online store"] >= 1
        assert report.translators == [1]
        assert project.lake.read(Table.SOURCE_EVENTS).num_rows == before - 8
        # The proof says nothing of who it was, the tombstone can be read by its owner alone.
        (proof,) = project.ledger.changes.find(subject="forgotten")
        stones = SuppressionList.open(settings)
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
        verify_files(version.path, manifest)
        assert manifest["rows"] == version.to_arrow().num_rows == manifest["real"] + manifest["synthetic"]
        numbers = IdVocabulary.read(version.path)
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
            gone(settings, person, redis)
        view = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS)
        assert view.num_rows == 160
        assert project.forget([person]).known == 1
        assert len(project.ledger.changes.find(subject="forgotten")) == 1

        # A copy of the run from before is refused, and forgetting again takes them out of it.
        project.rollback(run_id)
        accepted = run_folder(settings.home, run_id) / "accepted"
        shutil.rmtree(accepted)
        shutil.copytree(backup, accepted)
        (file,) = accepted.glob("*.parquet")
        gate = accepted.parent / "gate.json"
        content = json.loads(gate.read_text())
        content["report"]["files"][0]["sha256"] = file_sha256(file)
        gate.write_text(json.dumps(content))
        with pytest.raises(PublicationError, match="1 erased users"):
            project.publish(run_id)
        project.forget([person])
        project.publish(run_id)
        gone(settings, person, redis)


@pytest.fixture
def settings(filled, tmp_path):
    shutil.copytree(filled[0].parent, tmp_path / "logs")
    return load_settings(tmp_path / "logs" / "scalr.toml")


@long
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


@pytest.mark.parametrize(
    "at",
    [
        by_night("orchestrate.erase_from_files"),
        pytest.param("files._update_manifests", marks=long),
        by_night("orchestrate.erase_entities"),
        pytest.param("orchestrate._record_completion", marks=long),
    ],
)
def test_a_call_that_was_cut_off_goes_on(settings, filled, monkeypatch, at):
    with monkeypatch.context() as patched:
        patched.setattr(f"scalr_prod.operations.erasure.{at}", cut_off)
        with pytest.raises(KeyboardInterrupt):
            erase_users(settings, [TEXT])
    assert [entry.done for entry in SuppressionList.open(settings).users.values()].count(False) == 1
    # Already now nothing brings them back.
    with Project(settings) as project:
        assert project.ingest().domains["source"].rows_added == 0
    report = erase_users(settings, [TEXT])
    assert (report.known, report.translators) == (0, [1])
    gone(settings, TEXT)
    assert all(entry.done for entry in SuppressionList.open(settings).users.values())
    # Checksums are those of the files that there are now.
    with Project(settings) as project:
        version = project.training_set()
        verify_files(version.path, version.manifest)
        assert version.manifest["rows"] == version.to_arrow().num_rows
        project.rollback(filled[1])
        assert project.publish(filled[1]).rows == 160


def test_a_run_at_work_is_not_disturbed(settings, filled):
    with Ledger.open(settings) as ledger, ledger.leases.hold(filled[1]), pytest.raises(LeaseHeld, match="works on this run"):
        erase_users(settings, [TEXT])
    assert traces(settings.home / "lake", TEXT)


def test_a_translator_that_learned_from_the_user_is_used_for_the_days_of_grace(settings):
    erase_users(settings, ["u7"])
    ensure_retrained_in_time(settings, 1)
    late = settings.with_sections(forgetting={"grace_days": 0})
    with pytest.raises(TranslatorError, match="1 users who were erased"):
        ensure_retrained_in_time(late, 1)
    ensure_retrained_in_time(late, 2)  # one that was trained since
    erase_users(settings, ["nobody at all"])
    assert SuppressionList.open(settings).retraining_deadline(1, grace_days=settings.forgetting.grace_days)[0] == 1


@long
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
    with Project(settings) as project, pytest.raises(ForgettingError, match="the key of the hashes is missing"):
        project.ingest()


@long
def test_nobody_is_forgotten_while_rows_are_set_aside(settings):
    """Switching publication on would bring the files back as they were."""
    with Project(settings) as project:
        project.disable_publication()
        with pytest.raises(ForgettingError, match="publication is disabled") as caught:
            project.forget([TEXT])
        assert "scalr publication enable" in caught.value.next_step
        assert not SuppressionList.open(settings).users
        project.enable_publication()
        project.forget([TEXT])
    gone(settings, TEXT)


@long
def test_short_numbers_as_ids_leave_manifests_as_they_are(tmp_path, here):
    """Versions, sizes and counts may be the same numbers: what reads them goes on."""
    config = write_toml(make_two_domains(tmp_path, ids="int"), '[generation]\npartitions = 2\n[serving]\nscorer = "local"\n')
    settings = load_settings(config, compute={"workers": 1, "dask": here})
    with Project(settings) as project:
        first = project.run()
        gone_ = [1, 2, 3, 5, 8, 13, 221]
        project.forget([str(one) for one in gone_])
        again = project.run()
        assert again.run_id != first.run_id
        users = set(project.training_set().to_arrow()["user_id"].to_pylist())
    assert users
    assert not users & set(gone_)
    numbers = [path for path in settings.home.rglob("manifest.json") if "[forgotten]" in path.read_text()]
    assert numbers == []
