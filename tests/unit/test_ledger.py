"""The ledger on real SQLite: runs and their states, partitions, publications, models, data sets, leases, migrations."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import OperationalError

from scalr_prod.errors import LeaseHeld, LedgerError, RunNotFound, TranslatorNotFound
from scalr_prod.ledger import Ledger, PublicationStatus, RunSpec, RunState, check_run_id
from scalr_prod.ledger.migrations import HEAD
from scalr_prod.ledger.models import Base
from scalr_prod.ledger.records import TRANSITIONS

T0 = datetime(2024, 1, 1, tzinfo=UTC)


def make_spec(seed: int = 0, **changes: object) -> RunSpec:
    fields = {
        "mode": "backfill",
        "start": T0,
        "end": T0 + timedelta(days=1),
        "as_of": T0 + timedelta(days=1),
        "seed": seed,
        "translator_version": 1,
        "translator_sha256": "ab",
        "translator_trained_until": T0,
        "table_versions": {"source_events": 3},
        "settings": {"generation": {"temperature": 1.0}},
    }
    return RunSpec.make(**{**fields, **changes})


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'folder' / 'ledger.db'}"


@pytest.fixture
def ledger(url):
    with Ledger(url) as opened:
        yield opened


def to_state(ledger: Ledger, run_id: str, state: RunState) -> None:
    """Bring a planned run to a state by a way that the transitions allow."""
    path = {RunState.PLANNED: []}
    waiting = [RunState.PLANNED]
    while waiting:
        at = waiting.pop(0)
        for following in sorted(TRANSITIONS[at]):
            if following not in path:
                path[following] = [*path[at], following]
                waiting.append(following)
    for step in path[state]:
        ledger.set_stage(run_id, step, cause="test")


def test_the_same_spec_is_the_same_run_and_any_change_is_another():
    spec = make_spec()
    assert check_run_id(spec.run_id) == spec.run_id
    assert make_spec().run_id == spec.run_id
    elsewhere = T0.astimezone(timezone(timedelta(hours=5)))
    assert make_spec(start=elsewhere) == spec, "the zone in which a time is written is not part of it"
    others = [
        make_spec(seed=1),
        make_spec(mode="causal"),
        make_spec(end=T0 + timedelta(days=2)),
        make_spec(as_of=T0 + timedelta(days=2)),
        make_spec(translator_version=2),
        make_spec(translator_sha256="cd"),
        make_spec(translator_trained_until=T0 + timedelta(microseconds=1)),
        make_spec(table_versions={"source_events": 4}),
        make_spec(settings={}),
    ]
    assert len({spec.run_id, *(other.run_id for other in others)}) == len(others) + 1
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_refuses_naive_times_and_empty_windows():
    with pytest.raises(ValueError, match="no time zone"):
        make_spec(start=T0.replace(tzinfo=None))
    with pytest.raises(ValueError, match="empty"):
        make_spec(end=T0)
    with pytest.raises(LedgerError, match="no run's specification"):
        RunSpec.from_json({"run_id": "run_x"})


def test_a_run_begins_once(ledger):
    first, second = ledger.begin_run(make_spec()), ledger.begin_run(make_spec())
    assert (first.created, second.created) == (True, False)
    assert first.state is RunState.PLANNED
    assert ledger.run(first.run_id).spec == make_spec()
    assert [step.to_state for step in ledger.transitions(first.run_id)] == [RunState.PLANNED]
    assert json.loads(json.dumps(first.to_json()))["spec"]["start"] == "2024-01-01T00:00:00+00:00"


def test_an_id_taken_by_another_spec_is_refused(ledger):
    spec = make_spec()
    ledger.begin_run(spec)
    with pytest.raises(LedgerError, match="differ in seed"):
        ledger.begin_run(RunSpec.from_json(spec.to_json() | {"seed": 9}))


@pytest.mark.parametrize("run_id", ["run_0123456789abcdef", "run_1", "../etc", "run_0123456789abcdef' OR 1=1 --"])
def test_an_unknown_run_is_told(ledger, run_id):
    for ask in (ledger.run, ledger.transitions, ledger.partitions, lambda r: ledger.set_stage(r, "generating", cause="x")):
        with pytest.raises(RunNotFound):
            ask(run_id)


@pytest.mark.parametrize("found", RunState)
def test_from_each_state_only_those_that_follow(ledger, found):
    for number, wanted in enumerate(RunState):
        run = ledger.begin_run(make_spec(seed=number))
        to_state(ledger, run.run_id, found)
        before = ledger.transitions(run.run_id)
        if wanted is found:
            ledger.set_stage(run.run_id, wanted, cause="again")
            assert ledger.transitions(run.run_id) == before, "staying is no transition"
        elif wanted in TRANSITIONS[found]:
            assert ledger.set_stage(run.run_id, wanted, cause="why").state is wanted
            last = ledger.transitions(run.run_id)[-1]
            assert (last.from_state, last.to_state, last.cause) == (found, wanted, "why")
        else:
            with pytest.raises(LedgerError, match=f"a {found.value} run cannot become {wanted.value}") as caught:
                ledger.set_stage(run.run_id, wanted, cause="why")
            assert caught.value.run_id == run.run_id
            assert ledger.run(run.run_id).state is found
            assert ledger.transitions(run.run_id) == before


def test_runs_are_listed_newest_first_by_state_and_up_to_a_number(ledger):
    ids = [ledger.begin_run(make_spec(seed=seed)).run_id for seed in range(4)]
    assert [run.run_id for run in ledger.runs()] == ids[::-1]
    ledger.set_stage(ids[1], "generating", cause="x")
    assert [run.run_id for run in ledger.runs(state="generating")] == [ids[1]]
    assert len(ledger.runs(limit=2)) == 2


def test_a_repeated_partition_replaces_its_manifest(ledger):
    run_id = ledger.begin_run(make_spec()).run_id
    ledger.record_partitions(run_id, [(1, {"rows": 5, "sha256": "aa", "path": "p1", "extra": {"x": [1]}}), (0, {})])
    ledger.record_partition(run_id, 1, {"rows": 7, "state": "empty", "when": T0})
    found = ledger.partitions(run_id)
    assert [(part.partition, part.rows, part.state) for part in found] == [(0, 0, "done"), (1, 7, "empty")]
    assert found[1].manifest["when"] == str(T0)
    assert found[1].sha256 is None


def test_partitions_land_together_or_not_at_all(ledger):
    run_id = ledger.begin_run(make_spec()).run_id

    def failing():
        yield 0, {"rows": 1}
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        ledger.record_partitions(run_id, failing())
    assert ledger.partitions(run_id) == []


def validated(ledger: Ledger, seed: int = 0, **changes: object) -> str:
    run_id = ledger.begin_run(make_spec(seed=seed, **changes)).run_id
    to_state(ledger, run_id, RunState.VALIDATED)
    return run_id


def test_a_publication_is_intended_then_confirmed_and_can_be_taken_back(ledger):
    run_id = validated(ledger)
    assert ledger.last_publication(run_id) is None
    intent = ledger.intend_publication(run_id, base_version=3, rows=10, replaced={"run_x": 2})
    assert (intent.attempt, intent.status, intent.key) == (1, PublicationStatus.PENDING, f"publish:{run_id}:1")
    again = ledger.intend_publication(run_id, base_version=4, rows=11, replaced={})
    assert (again.attempt, again.key, again.base_version, again.rows) == (1, intent.key, 4, 11)
    assert len(ledger.publications(run_id)) == 1
    assert ledger.run(run_id).state is RunState.VALIDATED

    for _ in range(2):  # a repeated confirmation changes nothing
        done = ledger.record_publication(run_id, attempt=1, delta_version=5, rows=11, cause="published")
        assert (done.status, done.delta_version) == (PublicationStatus.PUBLISHED, 5)
    assert ledger.run(run_id).state is RunState.PUBLISHED

    for _ in range(2):
        gone = ledger.record_rollback(run_id, attempt=1, delta_version=6, cause="rolled back")
        assert (gone.status, gone.rollback_version) == (PublicationStatus.ROLLED_BACK, 6)
    assert ledger.run(run_id).state is RunState.ROLLED_BACK
    second = ledger.intend_publication(run_id, base_version=6, rows=11, replaced={})
    assert (second.attempt, second.key) == (2, f"publish:{run_id}:2")
    with pytest.raises(LedgerError, match="no attempt 7"):
        ledger.record_publication(run_id, attempt=7, delta_version=1, rows=1, cause="x")


def test_a_run_that_was_not_validated_cannot_be_confirmed_and_nothing_of_it_stays(ledger):
    run_id = ledger.begin_run(make_spec()).run_id
    ledger.intend_publication(run_id, base_version=0, rows=1, replaced={})
    with pytest.raises(LedgerError, match="cannot become published"):
        ledger.record_publication(run_id, attempt=1, delta_version=1, rows=1, cause="x")
    assert ledger.last_publication(run_id).status is PublicationStatus.PENDING, "both changes are one transaction"


def test_later_publications_over_a_window_are_found(ledger):
    day = timedelta(days=1)

    def published(seed: int, start: int, end: int, version: int) -> str:
        run_id = validated(ledger, seed, start=T0 + start * day, end=T0 + end * day, as_of=T0 + 20 * day)
        ledger.intend_publication(run_id, base_version=version - 1, rows=1, replaced={})
        ledger.record_publication(run_id, attempt=1, delta_version=version, rows=1, cause="x")
        return run_id

    before = published(0, 0, 20, 1)
    first = published(1, 5, 10, 2)
    published(2, 10, 12, 3)  # touches, does not overlap
    published(3, 0, 5, 4)
    inside, around = published(4, 6, 7, 5), published(5, 0, 20, 6)
    later = ledger.replaced_since(ledger.last_publication(first))
    assert [found.run_id for found in later] == [inside, around]
    assert before not in {found.run_id for found in later}


def model(ledger: Ledger, version: int, sha256: str = "aa") -> object:
    return ledger.record_model_version(
        version, path=f"/m/{version}", sha256=sha256, fingerprint="ff", trained_until=T0, metrics={"ndcg": 0.1}
    )


def test_a_model_version_never_changes(ledger):
    assert model(ledger, 1) == model(ledger, 1)
    with pytest.raises(LedgerError, match="version 1 is recorded already, with another sha256"):
        model(ledger, 1, "bb")
    model(ledger, 2)
    assert [found.version for found in ledger.model_versions()] == [1, 2]
    assert ledger.model_versions()[0].trained_until == T0


def test_promotions_are_kept_in_order(ledger):
    assert ledger.promoted_version() is None
    with pytest.raises(TranslatorNotFound):
        ledger.promote_version(1, cause="x")
    model(ledger, 1)
    model(ledger, 2)
    for version in (1, 1, 2, 1):
        ledger.promote_version(version, cause="because")
    assert [step.version for step in ledger.promotions()] == [1, 2, 1]
    assert ledger.promoted_version() == 1


def test_a_dataset_version_never_changes(ledger):
    fields = {"path": "/d", "rows": 5, "cutoff": None, "manifest": {"a": T0}}
    first = ledger.record_dataset("set", 1, fingerprint="f", **fields)
    assert ledger.record_dataset("set", 1, fingerprint="f", **fields) == first
    with pytest.raises(LedgerError, match="another fingerprint"):
        ledger.record_dataset("set", 1, fingerprint="g", **fields)
    ledger.record_dataset("other", 1, fingerprint="h", **fields)
    assert [found.name for found in ledger.datasets()] == ["other", "set"]
    assert [found.name for found in ledger.datasets("set")] == ["set"]


def test_a_lease_keeps_others_out_until_it_is_given_back_or_runs_out(ledger):
    run_id = ledger.begin_run(make_spec()).run_id
    with ledger.lease(run_id, owner="a") as held:
        held.check()
        with pytest.raises(LeaseHeld, match="a works on this run") as caught, ledger.lease(run_id, owner="b"):
            pass
        assert caught.value.run_id == run_id
        assert ledger.run(run_id).lease_owner == "a"
    assert ledger.run(run_id).lease_owner is None
    ledger.acquire_lease(run_id, "a", ttl_s=0.05)
    time.sleep(0.1)
    ledger.acquire_lease(run_id, "b")
    with pytest.raises(LedgerError, match="was lost"):
        ledger.renew_lease(run_id, "a")
    assert not ledger.release_lease(run_id, "a")
    assert ledger.release_lease(run_id, "b")


def test_a_lease_is_given_back_when_the_work_fails(ledger):
    run_id = ledger.begin_run(make_spec()).run_id
    with pytest.raises(RuntimeError, match="boom"), ledger.lease(run_id):
        raise RuntimeError("boom")
    assert ledger.run(run_id).lease_owner is None


def test_a_lease_is_renewed_in_the_background_and_its_loss_is_noticed(ledger):
    run_id = ledger.begin_run(make_spec()).run_id
    with ledger.lease(run_id, owner="a", ttl_s=2) as held:
        time.sleep(3)  # the machine may be busy: a renewal has more than a second to come late
        held.check()
        with pytest.raises(LeaseHeld):
            ledger.acquire_lease(run_id, "b")
        engine = ledger._engine
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE runs SET lease_owner = 'thief'"))
        deadline = time.monotonic() + 20
        while held._lost is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(LedgerError, match="was lost"):
            held.check()
    assert ledger.run(run_id).lease_owner == "thief", "what is not ours is not given back"


def test_a_driver_can_wait_for_a_lease(ledger):
    run_id = ledger.begin_run(make_spec()).run_id
    ledger.acquire_lease(run_id, "a")
    threading.Timer(0.5, ledger.release_lease, (run_id, "a")).start()
    with ledger.lease(run_id, owner="b", wait_s=20):
        assert ledger.run(run_id).lease_owner == "b"
    ledger.acquire_lease(run_id, "a")
    with pytest.raises(LeaseHeld), ledger.lease(run_id, owner="b", wait_s=0.3):
        pass


LEAVE_A_LEASE = """
import os, sys
from scalr_prod.ledger import Ledger
lease = Ledger(sys.argv[1]).lease(sys.argv[2])
lease.__enter__()
print("held", flush=True)
if sys.argv[3] == "die":
    os._exit(1)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="only Linux tells one space of process ids from another")
def test_the_lease_of_a_process_that_died_here_is_free_and_that_of_a_living_one_is_not(ledger, url):
    run_id = ledger.begin_run(make_spec()).run_id
    command = [sys.executable, "-c", LEAVE_A_LEASE, url, run_id]
    with subprocess.Popen([*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeld), ledger.lease(run_id):
            pass
        living.kill()
    with ledger.lease(run_id):
        pass
    subprocess.run([*command, "die"], check=False, capture_output=True)
    assert ledger.run(run_id).lease_owner is not None
    owner = ledger.run(run_id).lease_owner
    host, pid, machine, token = owner.rsplit(":", 3)
    with ledger.lease(run_id):
        pass
    # The same process id on another machine says nothing about that one.
    ledger.acquire_lease(run_id, f"{host}:{pid}:{'0' * len(machine)}:{token}")
    with pytest.raises(LeaseHeld), ledger.lease(run_id):
        pass


def test_the_schema_is_the_models(ledger):
    with ledger._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == HEAD


def test_a_ledger_of_a_newer_package_is_refused(url):
    with Ledger(url) as ledger, ledger._engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="its schema is 9999") as caught:
        Ledger(url)
    assert "upgrade scalr-prod" in caught.value.next_step


def test_opening_again_keeps_what_is_there(url):
    with Ledger(url) as ledger:
        run_id = ledger.begin_run(make_spec()).run_id
    with Ledger(url) as ledger:
        assert ledger.run(run_id).state is RunState.PLANNED


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("not a url", "no database URL"),
        ("mysql://root:secret@host/db", "cannot be kept in mysql"),
        ("sqlite://", "would be forgotten"),
        ("nosuch://x:secret@y", "cannot be kept in nosuch"),
    ],
)
def test_an_impossible_address_is_refused_without_repeating_its_password(url, says):
    with pytest.raises(LedgerError, match=says) as caught:
        Ledger(url)
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_told_without_its_password():
    with pytest.raises(LedgerError, match="cannot be reached") as caught:
        Ledger("postgresql://someone:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError):
        Ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")


def test_a_file_that_is_no_database_is_told(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_text("this is no database, but long enough to be looked at" * 100)
    with pytest.raises(LedgerError):
        Ledger(f"sqlite:///{path}")


def _begin(url: str, seeds: range, barrier: object) -> int:
    barrier.wait()
    with Ledger(url) as ledger:
        return sum(ledger.begin_run(make_spec(seed=seed)).created for seed in seeds)


def in_processes(work: object, arguments: list[tuple]) -> list:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(len(arguments)) as pool:
        barrier = manager.Barrier(len(arguments))
        return pool.starmap(work, [(*given, barrier) for given in arguments])


def test_processes_that_open_and_write_a_new_ledger_at_once_lose_nothing(url):
    created = in_processes(_begin, [(url, range(10))] * 3)
    assert sum(created) == 10, "each run was created by exactly one of them"
    with Ledger(url) as ledger:
        assert len(ledger.runs()) == 10


def test_a_writer_waits_for_another_and_readers_do_not(url):
    with Ledger(url) as ledger:
        ledger.begin_run(make_spec())
        path = url.removeprefix("sqlite:///")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert len(ledger.runs()) == 1
        assert time.monotonic() - started < 5
        done = threading.Thread(target=ledger.begin_run, args=(make_spec(seed=1),))
        done.start()
        time.sleep(0.3)
        assert done.is_alive()
        other.execute("COMMIT")
        other.close()
        done.join(20)
        assert len(ledger.runs()) == 2


def test_an_error_below_is_told_in_our_words(ledger, monkeypatch):
    def failing(*_args, **_options):
        raise OperationalError("SELECT secret", {}, Exception("disk I/O error"))

    monkeypatch.setattr("sqlalchemy.orm.Session.scalars", failing)
    with pytest.raises(LedgerError, match="cannot be reached: disk I/O error") as caught:
        ledger.runs()
    assert "SELECT" not in str(caught.value)


def first_schema(url: str, run_id: str, spec: dict) -> None:
    """A ledger as the first version of the package left it: a run half-way, and what it had come through."""
    from alembic import command

    from scalr_prod.ledger.migrations import config

    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg") if url.startswith("postgresql") else url)
    with engine.begin() as connection:
        command.upgrade(config(connection), "0001")
        values = {"id": run_id, "spec": json.dumps(spec), "at": "2024-01-02 03:04:05+00:00"}
        connection.execute(
            sa.text(
                "INSERT INTO runs (run_id, spec, state, created_at, updated_at) VALUES (:id, :spec, 'generating', :at, :at)"
            ),
            values,
        )
        for former, state, cause in ((None, "planned", "planned"), ("planned", "generating", "generate")):
            connection.execute(
                sa.text(
                    "INSERT INTO run_transitions (run_id, from_state, to_state, at, cause) VALUES (:id, :former, :state, :at, :why)"
                ),
                {"id": run_id, "former": former, "state": state, "at": values["at"], "why": cause},
            )
    engine.dispose()


def test_a_ledger_of_the_first_schema_is_carried_over_whole(url):
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    spec = make_spec()
    first_schema(url, spec.run_id, spec.to_json())
    with Ledger(url) as ledger:
        steps = ledger.transitions(spec.run_id)
        assert [(step.from_state, step.to_state, step.cause) for step in steps] == [
            (None, RunState.PLANNED, "planned"),
            (RunState.PLANNED, RunState.GENERATING, "generate"),
        ]
        assert steps[0].at == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
        ledger.set_stage(spec.run_id, RunState.GENERATED, cause="goes on")
        assert [change.to_state for change in ledger.history(spec.run_id)] == ["planned", "generating", "generated"]
        assert ledger.run(spec.run_id).spec == spec
        test_the_schema_is_the_models(ledger)


def test_all_that_has_a_state_has_a_history(ledger):
    run_id = validated(ledger)
    ledger.record_partition(run_id, 0, {"rows": 5, "sha256": "a"})
    ledger.record_partition(run_id, 0, {"rows": 5, "sha256": "a"})
    ledger.record_partition(run_id, 0, {"rows": 6, "sha256": "b"})
    intent = ledger.intend_publication(run_id, base_version=3, rows=6, replaced={})
    ledger.intend_publication(run_id, base_version=4, rows=6, replaced={})
    ledger.record_publication(run_id, attempt=intent.attempt, delta_version=5, rows=6, cause="landed")
    ledger.record_rollback(run_id, attempt=intent.attempt, delta_version=6, cause="wrong")
    changes = ledger.history(run_id)
    assert [(c.key, c.from_state, c.to_state, c.cause) for c in changes if c.subject == "partition"] == [
        (f"{run_id}/0", None, "done", "5 rows staged"),
        (f"{run_id}/0", "done", "done", "6 rows staged, made again"),
    ]
    assert [(c.key, c.from_state, c.to_state) for c in changes if c.subject == "publication"] == [
        (f"{run_id}/1", None, "pending"),
        (f"{run_id}/1", "pending", "published"),
        (f"{run_id}/1", "published", "rolled_back"),
    ]
    assert all(c.actor and c.at.tzinfo and c.cause for c in changes)
    model = {"path": "p", "sha256": "s", "fingerprint": "f", "trained_until": T0, "metrics": {}}
    ledger.record_model_version(1, **model)
    ledger.record_model_version(1, **model)
    ledger.promote_version(1, cause="best")
    ledger.record_dataset("set", 1, path="p", fingerprint="f", rows=1, cutoff=None, manifest={})
    assert [(c.key, c.to_state) for c in ledger.history(subject="model")] == [
        ("translator/1", "recorded"),
        ("translator", "version 1"),
    ]
    assert [(c.key, c.to_state) for c in ledger.history(subject="dataset")] == [("set/1", "recorded")]


def test_a_takeover_says_from_whom_and_why(ledger):
    run_id = ledger.begin_run(make_spec()).run_id
    ledger.acquire_lease(run_id, "first", ttl_s=-1)
    ledger.acquire_lease(run_id, "second")
    (change,) = ledger.history(run_id, subject="lease")
    assert (change.from_state, change.to_state) == ("first", "second")
    assert "ran out" in change.cause
