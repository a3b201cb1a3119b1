"""The ledger on real SQLite: runs and their states, partitions, publications, models, data sets, and their history."""

from __future__ import annotations

import json
from datetime import timedelta, timezone

import pytest
from support.ledger_runs import T0, make_spec, to_state, validated

from scalr_prod.errors import LedgerError, RunNotFound, TrainingSetError, TranslatorNotFound
from scalr_prod.ledger import Ledger, PublicationStatus, RunSpec, RunState, check_run_id
from scalr_prod.ledger.dto import ALLOWED_TRANSITIONS


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
    with pytest.raises(LedgerError, match="invalid run specification"):
        RunSpec.from_json({"run_id": "run_x"})


def test_a_run_begins_once(ledger):
    first, second = ledger.runs.begin(make_spec()), ledger.runs.begin(make_spec())
    assert (first.created, second.created) == (True, False)
    assert first.state is RunState.PLANNED
    assert ledger.runs.get(first.run_id).spec == make_spec()
    assert [step.to_state for step in ledger.changes.find(first.run_id, subject="run")] == [RunState.PLANNED]
    assert json.loads(json.dumps(first.to_json()))["spec"]["start"] == "2024-01-01T00:00:00+00:00"


def test_an_id_taken_by_another_spec_is_refused(ledger):
    spec = make_spec()
    ledger.runs.begin(spec)
    with pytest.raises(LedgerError, match="differ in seed"):
        ledger.runs.begin(RunSpec.from_json(spec.to_json() | {"seed": 9}))


@pytest.mark.parametrize("run_id", ["run_0123456789abcdef", "run_1", "../etc", "run_0123456789abcdef' OR 1=1 --"])
def test_an_unknown_run_is_told(ledger, run_id):
    for ask in (
        ledger.runs.get,
        ledger.runs.partitions,
        lambda r: ledger.runs.set_state(r, "generating", cause="x"),
    ):
        with pytest.raises(RunNotFound):
            ask(run_id)


@pytest.mark.parametrize("found", RunState)
def test_from_each_state_only_those_that_follow(ledger, found):
    for number, wanted in enumerate(RunState):
        run = ledger.runs.begin(make_spec(seed=number))
        to_state(ledger, run.run_id, found)
        before = ledger.changes.find(run.run_id, subject="run")
        if wanted is found:
            ledger.runs.set_state(run.run_id, wanted, cause="again")
            assert ledger.changes.find(run.run_id, subject="run") == before, "staying is no transition"
        elif wanted in ALLOWED_TRANSITIONS[found]:
            assert ledger.runs.set_state(run.run_id, wanted, cause="why").state is wanted
            last = ledger.changes.find(run.run_id, subject="run")[-1]
            assert (last.from_state, last.to_state, last.cause) == (found, wanted, "why")
        else:
            with pytest.raises(LedgerError, match=f"a {found.value} run cannot become {wanted.value}") as caught:
                ledger.runs.set_state(run.run_id, wanted, cause="why")
            assert caught.value.run_id == run.run_id
            assert ledger.runs.get(run.run_id).state is found
            assert ledger.changes.find(run.run_id, subject="run") == before


def test_runs_are_listed_newest_first_by_state_and_up_to_a_number(ledger):
    ids = [ledger.runs.begin(make_spec(seed=seed)).run_id for seed in range(4)]
    assert [run.run_id for run in ledger.runs.find()] == ids[::-1]
    ledger.runs.set_state(ids[1], "generating", cause="x")
    assert [run.run_id for run in ledger.runs.find(state="generating")] == [ids[1]]
    assert len(ledger.runs.find(limit=2)) == 2


def test_a_repeated_partition_replaces_its_manifest(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    ledger.runs.record_partitions(run_id, [(1, {"rows": 5, "sha256": "aa", "path": "p1", "extra": {"x": [1]}}), (0, {})])
    ledger.runs.record_partitions(run_id, [(1, {"rows": 7, "state": "empty", "when": T0})])
    found = ledger.runs.partitions(run_id)
    assert [(part.partition, part.rows, part.state) for part in found] == [(0, 0, "done"), (1, 7, "empty")]
    assert found[1].manifest["when"] == str(T0)
    assert found[1].sha256 is None


def test_partitions_land_together_or_not_at_all(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id

    def failing():
        yield 0, {"rows": 1}
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        ledger.runs.record_partitions(run_id, failing())
    assert ledger.runs.partitions(run_id) == []


def test_a_publication_is_intended_then_confirmed_and_can_be_taken_back(ledger):
    run_id = validated(ledger)
    assert ledger.publications.last(run_id) is None
    intent = ledger.publications.record_intent(run_id, base_version=3, rows=10, replaced={"run_x": 2})
    assert (intent.attempt, intent.status, intent.key) == (1, PublicationStatus.PENDING, f"publish:{run_id}:1")
    again = ledger.publications.record_intent(run_id, base_version=4, rows=11, replaced={})
    assert (again.attempt, again.key, again.base_version, again.rows) == (1, intent.key, 4, 11)
    assert len(ledger.publications.find(run_id)) == 1
    assert ledger.runs.get(run_id).state is RunState.VALIDATED

    for _ in range(2):  # a repeated confirmation changes nothing
        done = ledger.publications.confirm(run_id, attempt=1, delta_version=5, rows=11, cause="published")
        assert (done.status, done.delta_version) == (PublicationStatus.PUBLISHED, 5)
    assert ledger.runs.get(run_id).state is RunState.PUBLISHED

    for _ in range(2):
        gone = ledger.publications.record_rollback(run_id, attempt=1, delta_version=6, cause="rolled back")
        assert (gone.status, gone.rollback_version) == (PublicationStatus.ROLLED_BACK, 6)
    assert ledger.runs.get(run_id).state is RunState.ROLLED_BACK
    second = ledger.publications.record_intent(run_id, base_version=6, rows=11, replaced={})
    assert (second.attempt, second.key) == (2, f"publish:{run_id}:2")
    with pytest.raises(LedgerError, match="no attempt 7"):
        ledger.publications.confirm(run_id, attempt=7, delta_version=1, rows=1, cause="x")


def test_a_run_that_was_not_validated_cannot_be_confirmed_and_nothing_of_it_stays(ledger):
    run_id = ledger.runs.begin(make_spec()).run_id
    ledger.publications.record_intent(run_id, base_version=0, rows=1, replaced={})
    with pytest.raises(LedgerError, match="cannot become published"):
        ledger.publications.confirm(run_id, attempt=1, delta_version=1, rows=1, cause="x")
    assert ledger.publications.last(run_id).status is PublicationStatus.PENDING, "both changes are one transaction"


def test_later_publications_over_a_window_are_found(ledger):
    day = timedelta(days=1)

    def published(seed: int, start: int, end: int, version: int) -> str:
        run_id = validated(ledger, seed, start=T0 + start * day, end=T0 + end * day, as_of=T0 + 20 * day)
        ledger.publications.record_intent(run_id, base_version=version - 1, rows=1, replaced={})
        ledger.publications.confirm(run_id, attempt=1, delta_version=version, rows=1, cause="x")
        return run_id

    before = published(0, 0, 20, 1)
    first = published(1, 5, 10, 2)
    published(2, 10, 12, 3)  # touches, does not overlap
    published(3, 0, 5, 4)
    inside, around = published(4, 6, 7, 5), published(5, 0, 20, 6)
    later = ledger.publications.superseding(ledger.publications.last(first))
    assert [found.run_id for found in later] == [inside, around]
    assert before not in {found.run_id for found in later}


def model(ledger: Ledger, version: int, sha256: str = "aa") -> object:
    return ledger.models.record(
        version, path=f"/m/{version}", sha256=sha256, fingerprint="ff", trained_until=T0, metrics={"ndcg": 0.1}
    )


def test_a_model_version_never_changes(ledger):
    assert model(ledger, 1) == model(ledger, 1)
    with pytest.raises(LedgerError, match="version 1 is recorded already, with another sha256"):
        model(ledger, 1, "bb")
    model(ledger, 2)
    assert [found.version for found in ledger.models.find()] == [1, 2]
    assert ledger.models.find()[0].trained_until == T0


def test_promotions_are_kept_in_order(ledger):
    assert ledger.models.promoted_version() is None
    with pytest.raises(TranslatorNotFound):
        ledger.models.promote(1, cause="x")
    model(ledger, 1)
    model(ledger, 2)
    for version in (1, 1, 2, 1):
        ledger.models.promote(version, cause="because")
    assert [step.version for step in ledger.models.promotions()] == [1, 2, 1]
    assert ledger.models.promoted_version() == 1


def test_a_dataset_version_never_changes(ledger):
    fields = {"path": "/d", "rows": 5, "cutoff": None, "manifest": {"a": T0}}
    first = ledger.datasets.record("set", 1, fingerprint="f", **fields)
    assert ledger.datasets.record("set", 1, fingerprint="f", **fields) == first
    with pytest.raises(LedgerError, match="another fingerprint"):
        ledger.datasets.record("set", 1, fingerprint="g", **fields)
    ledger.datasets.record("other", 1, fingerprint="h", **fields)
    assert [found.name for found in ledger.datasets.find()] == ["other", "set"]
    assert [found.name for found in ledger.datasets.find("set")] == ["set"]


def test_a_model_on_a_dataset_is_recorded_once(ledger):
    fields = {"path": "/d", "rows": 5, "cutoff": None, "manifest": {}}
    with pytest.raises(TrainingSetError, match="training set set has no version\n"):
        ledger.datasets.record_use("set", model="ranker", model_version="1")
    for version in (1, 2):
        ledger.datasets.record("set", version, fingerprint=str(version), **fields)
    first = ledger.datasets.record_use("set", 1, model="ranker", model_version="2024-05-01")
    again = ledger.datasets.record_use("set", 1, model="ranker", model_version="2024-05-01")
    assert (first.created, again.created, again.created_at) == (True, False, first.created_at)
    assert ledger.datasets.record_use("set", model="ranker", model_version="2024-05-01").dataset_version == 2
    found = [(one.model, one.model_version, one.dataset, one.dataset_version) for one in ledger.datasets.uses()]
    assert found == [("ranker", "2024-05-01", "set", version) for version in (1, 2)]
    changes = [(c.key, c.to_state, c.cause) for c in ledger.changes.find(subject="dataset") if c.to_state == "used"]
    assert changes == [(f"set/{version}", "used", "by ranker 2024-05-01") for version in (1, 2)]
    with pytest.raises(TrainingSetError, match="has no version 3; there are 1, 2"):
        ledger.datasets.record_use("set", 3, model="ranker", model_version="1")
    for model, version in (("", "1"), ("ranker", "x" * 101), ("ranker\n", "1")):
        with pytest.raises(LedgerError, match="is no name or version of a model"):
            ledger.datasets.record_use("set", 1, model=model, model_version=version)


def test_all_that_has_a_state_has_a_history(ledger):
    run_id = validated(ledger)
    ledger.runs.record_partitions(run_id, [(0, {"rows": 5, "sha256": "a"})])
    ledger.runs.record_partitions(run_id, [(0, {"rows": 5, "sha256": "a"})])
    ledger.runs.record_partitions(run_id, [(0, {"rows": 6, "sha256": "b"})])
    intent = ledger.publications.record_intent(run_id, base_version=3, rows=6, replaced={})
    ledger.publications.record_intent(run_id, base_version=4, rows=6, replaced={})
    ledger.publications.confirm(run_id, attempt=intent.attempt, delta_version=5, rows=6, cause="landed")
    ledger.publications.record_rollback(run_id, attempt=intent.attempt, delta_version=6, cause="wrong")
    changes = ledger.changes.find(run_id)
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
    ledger.models.record(1, **model)
    ledger.models.record(1, **model)
    ledger.models.promote(1, cause="best")
    ledger.datasets.record("set", 1, path="p", fingerprint="f", rows=1, cutoff=None, manifest={})
    assert [(c.key, c.to_state) for c in ledger.changes.find(subject="model")] == [
        ("translator/1", "recorded"),
        ("translator", "version 1"),
    ]
    assert [(c.key, c.to_state) for c in ledger.changes.find(subject="dataset")] == [("set/1", "recorded")]
