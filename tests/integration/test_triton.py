"""A real Triton server from the serving environment, with a trained translator."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.triton_home import contexts, family, project

from scalr_prod.config.settings import load_settings
from scalr_prod.core.directory_marker import read_marker
from scalr_prod.errors import (
    ModelNotReady,
    ModelVersionMismatch,
    ProjectsMixed,
    RequestTooLarge,
    ScalrError,
    ScoringError,
    ServingError,
    TranslatorNotFound,
)
from scalr_prod.serving import (
    ensure_serving,
    promote,
    rollback,
    served_version,
    start_triton,
    stop_triton,
    triton_status,
)
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.client.address import secret_file
from scalr_prod.serving.client.latency import LatencyHistogram
from scalr_prod.serving.local_server.server_state import read_record
from scalr_prod.serving.model_control import load_versions, loaded_versions
from scalr_prod.translator import TranslatorModule, load_version
from scalr_prod.translator.data.contexts import Contexts

pytestmark = [pytest.mark.triton, pytest.mark.slow]
#: Waits for Triton to load versions or for clients; the same server answers the other tests.
long = pytest.mark.long

SAME = 1e-5


@pytest.fixture(scope="module")
def served(tmp_path_factory, trained_home):
    """A home whose server runs and holds versions 1 and 2."""
    settings = project(tmp_path_factory.mktemp("served") / "logs", trained_home)
    with ensure_serving(settings, 1):  # one server for all: each promotion would start its own, and stop it
        promote(settings, 1)
        promote(settings, 2)
        assert start_triton(settings).versions == [1, 2]  # it is there to stay now
    yield settings
    record = read_record(settings)
    stop_triton(settings)
    assert not family(record.name)
    assert not list(Path("/dev/shm").glob(f"{record.name}*"))  # noqa: S108 - where the server keeps it


@pytest.fixture(scope="module")
def local(served):
    return open_scorer(served.model_copy(update={"serving": served.serving.model_copy(update={"scorer": "local"})}), 2)


@pytest.mark.parametrize("exclude", [0, 1, 7])
def test_samples_are_those_of_the_module_in_this_process(served, local, exclude):
    asked = contexts(300, exclude=exclude)
    with open_scorer(served, 2) as scorer:
        answer = scorer.sample(asked, 8, temperature=0.7, min_lift=1.0)
    expected = local.sample(asked, 8, temperature=0.7, min_lift=1.0)
    assert np.array_equal(answer.items, expected.items)
    assert (answer.items >= 0).any()
    assert np.abs(answer.probabilities - expected.probabilities).max() < SAME
    assert np.abs(answer.prior - expected.prior).max() < SAME


def test_shortlists_are_made_in_the_server_as_in_this_process(served, local):
    asked = contexts(300, exclude=3)
    with open_scorer(served, 2) as scorer:
        answer, whole = scorer.sample(asked, 4, shortlist=40), scorer.sample(asked, 4)
    expected = local.sample(asked, 4, shortlist=40)
    assert np.array_equal(answer.items, expected.items)
    assert np.abs(answer.probabilities - expected.probabilities).max() < SAME
    assert not np.array_equal(answer.items, whole.items)


def test_the_server_runs_what_was_compiled_and_draws_as_the_plain_code(served):
    asked, candidates = contexts(300, seed=5), np.random.default_rng(5).integers(-1, 100, (300, 4), dtype=np.int32)
    plain = TranslatorModule.load(load_version(served, 2).path, reference=True)
    with open_scorer(served, 2) as scorer:
        answer, scores = scorer.sample(asked, 8), scorer.score(asked, candidates)
    expected = plain.sample(asked, 8)
    assert np.array_equal(answer.items, expected.items)
    np.testing.assert_allclose(answer.probabilities, expected.probabilities, rtol=SAME)
    for got, wanted in zip(scores, plain.score(asked, candidates), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=SAME)
    log = Path(read_record(served).log).read_text()
    assert "translator" in log  # the model's process writes there
    assert "several times slower" not in log


@long
def test_the_time_to_each_answer_is_counted(served):
    latencies = LatencyHistogram()
    with open_scorer(served, 2, latencies=latencies) as scorer:
        latencies.drain()
        started = time.perf_counter()
        for _ in scorer.sample_stream([contexts(20)] * 5, 4):
            time.sleep(0.6)  # the answers to come arrive meanwhile
        whole = time.perf_counter() - started - 5 * 0.6
    found = latencies.drain()
    assert sum(found["counts"]) == 5
    assert 0 < found["seconds"] <= whole + 2 * 0.6  # two are on their way at a time


def test_named_candidates_are_scored(served, local):
    asked, candidates = contexts(200), np.random.default_rng(1).integers(-1, 100, (200, 9), dtype=np.int32)
    with open_scorer(served, 2) as scorer:
        answer = scorer.score(asked, candidates)
        assert scorer.score(asked, candidates[:, :0])[0].shape == (200, 0)
    for got, expected in zip(answer, local.score(asked, candidates), strict=True):
        assert got.max() > 0
        assert np.abs(got - expected).max() < SAME


def test_a_stream_answers_in_order_whatever_the_sizes_and_widths(served, local):
    batches = [contexts(n, exclude=e, seed=n) for n, e in ((256, 3), (1, 0), (0, 2), (2500, 1), (40, 9))]
    with open_scorer(served, 2) as scorer:
        answers = list(scorer.sample_stream(iter(batches), 4))
    assert [len(answer) for answer in answers] == [256, 1, 0, 2500, 40]
    for batch, answer in zip(batches, answers, strict=True):
        assert np.array_equal(answer.items, local.sample(batch, 4).items)


def test_many_clients_are_batched_together_and_each_gets_its_own(served, local):
    asked = [contexts(20 + n, exclude=n, seed=n) for n in range(8)]
    candidates = np.arange(20 * 5, dtype=np.int32).reshape(20, 5)
    found: dict[int, object] = {}

    def client(number: int) -> None:
        with open_scorer(served, 2) as scorer:
            found[number] = [scorer.sample(asked[number], 1 + number % 2) for _ in range(5)]
            found[100 + number] = scorer.score(asked[number].slice(0, 20), candidates)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        expected = local.sample(asked[number], 1 + number % 2)
        assert all(np.array_equal(answer.items, expected.items) for answer in found[number])
        assert np.abs(found[100 + number][0] - local.score(asked[number].slice(0, 20), candidates)[0]).max() < SAME


def test_a_request_over_the_limit_travels_in_parts_and_a_row_over_it_not_at_all(served, local):
    row = 50 * 8 + 20 + 12 + 12
    small = served.model_copy(update={"serving": served.serving.model_copy(update={"max_request_mb": row * 10.5 / 2**20})})
    asked = contexts(64)
    with open_scorer(small, 2) as scorer:
        assert np.array_equal(scorer.sample(asked, 3).items, local.sample(asked, 3).items)
        with pytest.raises(RequestTooLarge, match="max_request_mb"):
            scorer.score(asked, np.zeros((64, 5000), np.int32))


def test_what_the_server_refuses_is_told_with_its_reason(served):
    asked = contexts(5)
    wrong = Contexts(**{**vars(asked), "fold": np.full(5, 9, np.int32)})
    with open_scorer(served, 2) as scorer:
        with pytest.raises(ScoringError, match="fold 9; this translator has 2"):
            scorer.sample(wrong, 2)
        assert len(scorer.sample(asked, 2)) == 5


def test_a_scorer_stays_in_its_process(served):
    with open_scorer(served, 2) as scorer, pytest.raises(TypeError, match="open one in each"):
        pickle.dumps(scorer)


def test_another_version_than_the_pinned_one_is_refused(served, trained_home, tmp_path):
    with pytest.raises(ModelNotReady, match="version 9"):
        open_scorer(served, 9)
    # Another home's version 1 is another model under the same number.
    other = project(tmp_path / "logs", trained_home, url=triton_status(served).url, model_name=served.served_model)
    manifest = other.home / "models" / "translator" / "1" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sha256": "ab" * 32}))
    with pytest.raises(ModelVersionMismatch, match="a different model"):
        open_scorer(other, 1)


def test_promote_and_roll_back(served):
    assert served_version(served) == 2
    assert triton_status(served).versions == [1, 2]
    back = rollback(served)
    assert (back.version, back.former, served_version(served)) == (1, 2, 1)
    with pytest.raises(ServingError, match="no version was served before"):
        rollback(served)
    with pytest.raises(TranslatorNotFound):
        promote(served, 7)
    assert promote(served).version == 2
    assert triton_status(served).versions == [1, 2]


@long
def test_a_version_that_cannot_answer_is_not_promoted_and_the_others_stay(served):
    models = served.home / "models" / "translator"
    shutil.copytree(models / "2", models / "3")
    manifest = json.loads((models / "3" / "manifest.json").read_text())
    (models / "3" / "manifest.json").write_text(json.dumps(manifest | {"version": 3, "sha256": "00" * 32}))
    try:
        with pytest.raises(ServingError, match="checksum"):
            promote(served, 3)
    finally:
        shutil.rmtree(models / "3")
    assert served_version(served) == 2
    assert triton_status(served).versions == [1, 2]
    with open_scorer(served, 2) as scorer:
        assert len(scorer.sample(contexts(3), 2)) == 3


def test_a_run_uses_the_server_that_runs_and_leaves_it(served):
    pid = triton_status(served).pid
    with ensure_serving(served, 1):
        assert triton_status(served).pid == pid
    assert triton_status(served).pid == pid


@long
def test_an_address_in_the_settings_is_used_as_it_is(served, trained_home, tmp_path):
    url, header = triton_status(served).url, f"scalr={secret_file(served).read_text()}"
    remote = project(tmp_path / "logs", trained_home, url=url, header=header, repository=str(served.model_repository))
    with ensure_serving(remote, 2), open_scorer(remote, 2) as scorer:
        assert scorer.version == 2
    apart = project(tmp_path / "logs", trained_home, url=url, header=header, model_name="other")
    with pytest.raises(ScalrError, match="could not load other"), ensure_serving(apart, 2):
        pass
    for act in (start_triton, stop_triton):
        with pytest.raises(ServingError, match="remove url"):
            act(remote)


@long
def test_two_projects_on_one_server_have_a_model_each(served, trained_home, tmp_path):
    """Their versions have the same numbers, and are not the same."""
    url, header = triton_status(served).url, f"scalr={secret_file(served).read_text()}"
    shared = {"url": url, "header": header, "repository": str(served.model_repository), "threads": 1}
    root = tmp_path / "logs"
    shutil.copytree(trained_home.parent, root)
    former = read_marker(served.home).project
    first = project(tmp_path / "same", trained_home, **shared)
    renamed = {"name": "other", "formerly": former}
    second = load_settings(root / trained_home.name, serving=shared, project=renamed)
    models = root / ".scalr" / "models" / "translator"
    (models / "1").rename(models / "x")
    (models / "2").rename(models / "1")
    (models / "x").rename(models / "2")
    for version in ("1", "2"):
        manifest = models / version / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": int(version)}))
    assert (first.served_model, second.served_model) == (f"translator_{former}", "translator_other")
    for version in (1, 2):
        with ensure_serving(first, version), ensure_serving(second, version):
            with open_scorer(first, version) as mine, open_scorer(second, version) as others:
                same = [scorer.sample(contexts(50), 3).items for scorer in (mine, others)]
            with open_scorer(served, 3 - version) as own:
                assert np.array_equal(own.sample(contexts(50), 3).items, same[1])
        assert not np.array_equal(*same)
    taken = load_settings(
        root / trained_home.name, serving=shared | {"model_name": first.served_model}, project=renamed | {"formerly": None}
    )
    before = {path: path.read_bytes() for path in served.model_repository.rglob("*") if path.is_file()}
    with pytest.raises(ProjectsMixed, match=f"project '{former}'"), ensure_serving(taken, 2):
        pass
    assert {path: path.read_bytes() for path in served.model_repository.rglob("*") if path.is_file()} == before


@long
def test_versions_are_promoted_and_rolled_back_under_load_and_no_request_fails(served):
    """Some clients ask whatever is served, each time anew; others stay with the version that a run is pinned to."""
    asked = [contexts(16, seed=seed) for seed in range(4)]
    plain = served.model_copy(update={"serving": served.serving.model_copy(update={"scorer": "local"})})
    expected = {version: [open_scorer(plain, version).sample(one, 4).items for one in asked] for version in (1, 2)}
    assert not any(np.array_equal(*items) for items in zip(*expected.values(), strict=True))
    over, failed, answers = threading.Event(), [], Counter()

    def told(client: str, number: int, version: int, items: np.ndarray) -> None:
        fits = [one for one in (1, 2) if np.array_equal(items, expected[one][number])]
        answers[client, *fits] += 1
        if fits != [version]:
            failed.append(f"{client} asked version {version} and got an answer of {fits}")

    def following(number: int) -> None:
        while not over.is_set():
            try:
                version = served_version(served)
                with open_scorer(served, version) as scorer:
                    told("following", number, version, scorer.sample(asked[number], 4).items)
            except ScalrError as error:
                failed.append(str(error))

    def pinned(number: int) -> None:
        with open_scorer(served, 1) as scorer:
            while not over.is_set():
                try:
                    told("pinned", number, 1, scorer.sample(asked[number], 4).items)
                except ScalrError as error:
                    failed.append(str(error))

    assert rollback(served).version == 1  # not promoted, so that the history is afterwards what the other tests find
    load_versions(served, [1], needed=1)  # so that the other one is loaded while requests come
    assert loaded_versions(served) == [1]
    clients = [threading.Thread(target=work, args=(number,)) for number in range(2) for work in (following, pinned)]
    for client in clients:
        client.start()
    try:
        for _ in range(3):
            promote(served, 2)
            assert served_version(served) == 2
            before, until = answers["following", 2], time.monotonic() + 30
            while answers["following", 2] < before + 3 and not failed and time.monotonic() < until:
                time.sleep(0.02)
            assert rollback(served).version == 1
    finally:
        over.set()
        for client in clients:
            client.join()
        promote(served, 2)
    assert not failed
    assert answers.keys() == {("following", 1), ("following", 2), ("pinned", 1)}
    assert loaded_versions(served) == [1, 2]
