"""Each estimator against a plain implementation of its formula; and data that must not influence its parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from support.translator_log import DAY, METADATA, SETTINGS, calibration, make_log, with_weights

from scalr_prod.config.sections import TranslatorSettings
from scalr_prod.core.memmap import DiskMatrix
from scalr_prod.errors import TranslatorError
from scalr_prod.translator import training_budget
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.event_log import EventLog
from scalr_prod.translator.data.training_pairs import TrainingSlice, VocabularyCoverage, contexts_and_labels
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS, factorisation, frequency, linear, popularity
from scalr_prod.translator.estimators.bundled_source import load_estimator
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets, fit_shared


@pytest.fixture(scope="module")
def log() -> EventLog:
    torch.set_num_threads(1)
    return make_log()


@pytest.fixture(scope="module")
def pairs(log) -> TrainingSlice:
    return TrainingSlice.from_log(log, 80 * DAY, SETTINGS)


def batch_of(pairs: TrainingSlice, rows: np.ndarray) -> tuple[ContextBatch, np.ndarray]:
    contexts, labels = contexts_and_labels(pairs.log, rows, source_index=pairs.source_index, target_index=pairs.target_index)
    return ContextBatch.from_contexts(contexts, torch.from_numpy(pairs.first_seen)), labels


def later_rows(pairs: TrainingSlice) -> np.ndarray:
    return np.flatnonzero((pairs.log.target.time >= pairs.until) & (pairs.log.history[:, -1] >= 0))


def sets_of(pairs: TrainingSlice, user: int) -> tuple[set[int], set[int]]:
    source, target = pairs.log.source, pairs.log.target
    mine = (source.user == user) & (source.time < pairs.until)
    hers = (target.user == user) & (target.time < pairs.until) & ~pairs.held_out[target.user]
    return set(pairs.source_index[source.item[mine]]) - {0}, set(pairs.target_index[target.item[hers]]) - {-1}


def test_vocabulary_is_in_order_of_first_appearance(pairs):
    target = pairs.log.target
    for item in range(len(target.ids)):
        times = target.time[(target.item == item) & (target.time < pairs.until)]
        if len(times):
            assert pairs.first_seen[pairs.target_index[item]] == times.min()
        else:
            assert pairs.target_index[item] == -1
    assert (np.diff(pairs.first_seen) >= 0).all()


def test_vocabulary_keeps_the_most_frequent_items(log):
    few = TrainingSlice.from_log(log, 80 * DAY, TranslatorSettings(max_source_items=7, max_target_items=5))
    assert (few.n_source, few.n_target) == (7, 5)
    count = np.bincount(log.target.item[log.target.time < 80 * DAY], minlength=len(log.target.ids))
    assert count[few.target_index >= 0].min() >= count[few.target_index < 0].max()
    kept = int(count[few.target_index >= 0].sum())
    assert few.coverage()["target"] == VocabularyCoverage(items=24, kept=5, events=int(count.sum()), events_kept=kept)
    assert few.coverage()["source"].kept == 7


def test_a_large_enough_vocabulary_is_complete(pairs):
    assert all(domain.is_complete and domain.events == domain.events_kept for domain in pairs.coverage().values())


def test_too_little_training_data_raises(log):
    with pytest.raises(TranslatorError, match=r"source events begin on \d{4}-\d\d-\d\d, target events on") as caught:
        TrainingSlice.from_log(log, int(log.target.time.min()), SETTINGS)
    assert caught.value.next_step


def test_frequency_is_smoothed_co_occurrence(pairs):
    fitted = frequency.fit(pairs, {})
    log_prior = popularity.log_popularity(pairs).double()
    users = [sets_of(pairs, user) for user in range(len(pairs.log.users))]
    users = [(source, target) for source, target in users if target]
    batch, _ = batch_of(pairs, later_rows(pairs)[:6])
    found = frequency.score(fitted, batch, log_prior).exp()
    for row, items in enumerate(batch.items.tolist()):
        expected, weights = torch.zeros(pairs.n_target, dtype=torch.float64), 0.0
        for step, item in enumerate(reversed(items[-frequency.DEPTH :])):
            if not item:
                continue
            weight = frequency.DECAY**step
            having = [target for source, target in users if item in source]
            counts = torch.tensor([sum(i in target for target in having) for i in range(pairs.n_target)])
            smoothed = counts + frequency.SMOOTHING * log_prior.exp()
            expected += weight * smoothed / (len(having) + frequency.SMOOTHING)
            weights += weight
        torch.testing.assert_close(found[row], expected / weights, rtol=1e-5, atol=1e-9)


def test_frequency_of_an_unknown_history_is_popularity(pairs):
    log_prior = popularity.log_popularity(pairs)
    batch, _ = batch_of(pairs, later_rows(pairs)[:2])
    empty = replace(batch, items=torch.zeros_like(batch.items))
    torch.testing.assert_close(frequency.score(frequency.fit(pairs, {}), empty, log_prior), log_prior.expand(2, -1))


def test_linear_is_ridge_regression_on_the_principal_components(pairs):
    shared = linear.share(pairs)
    fitted = linear.fit(pairs, shared)
    z, y = [], []
    for user in range(len(pairs.log.users)):
        source, target = sets_of(pairs, user)
        if source and target:
            z.append(shared["basis"].double().numpy()[sorted(source)].sum(0) / len(source) ** 0.5)
            y.append(np.isin(np.arange(pairs.n_target), sorted(target)))
    z, y = np.array(z), np.array(y, dtype=float)
    ridge = linear.RIDGE * (z**2).sum() / len(z)
    expected = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ y)
    np.testing.assert_allclose(fitted["coefficients"].numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_the_source_basis_spans_the_leading_components(pairs, share, monkeypatch):
    """Those of all users, or of the users that were chosen because there are more cells than count."""
    x = pairs.source_matrix().toarray().astype(float)
    used, plain = [], linear.user_matrices
    monkeypatch.setattr(linear, "MAX_CELLS", share * x.sum())
    monkeypatch.setattr(linear, "user_matrices", lambda *args: used.append(args[2:]) or plain(*args))
    basis = linear.share(pairs)["basis"].double().numpy()
    damping = (x.sum(0) + 1) ** -linear.DAMPING
    if share < 1:
        ((chosen,),) = used  # read once
        assert share - 0.15 < chosen.mean() < share + 0.15
        x = x[chosen]
    x = x / np.maximum(x.sum(1, keepdims=True), 1) ** 0.5 * damping
    _, singular, rows = np.linalg.svd(x, full_matrices=False)
    found = basis / damping[:, None]
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-4)
    assert np.linalg.norm(x @ found) == pytest.approx(np.linalg.norm(singular[: found.shape[1]]), rel=1e-3)
    assert np.abs(rows[0] @ found[:, 0]) == pytest.approx(1, abs=1e-3)


def test_linear_does_not_depend_on_the_user_batch_size(pairs, monkeypatch):
    basis, coefficients = linear.share(pairs)["basis"], linear.fit(pairs, linear.share(pairs))["coefficients"]
    monkeypatch.setattr("scalr_prod.translator.data.training_pairs._USER_BATCH", 17)
    found = linear.share(pairs)["basis"]
    # Components are defined up to their sign.
    torch.testing.assert_close(found * (found * basis).sum(0).sign(), basis, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(linear.fit(pairs, {"basis": basis})["coefficients"], coefficients, rtol=1e-4, atol=1e-5)


def test_factorisation_decreases_its_loss(pairs):
    fitted = factorisation.fit(pairs, {})
    target, source = pairs.target_matrix().toarray(), pairs.source_matrix().toarray()
    preference = np.concatenate([target, source], axis=1).astype(float)
    confidence = 1 + factorisation.CONFIDENCE * np.concatenate([target, factorisation.SOURCE_WEIGHT * source], axis=1)
    items = torch.cat([fitted["target"], fitted["source"]]).double().numpy()

    def loss(vectors: np.ndarray) -> float:
        total = 0.0
        for row, weight in zip(preference, confidence, strict=True):
            system = (vectors.T * weight) @ vectors + factorisation.REGULARISATION * np.eye(vectors.shape[1])
            user = np.linalg.solve(system, vectors.T @ (weight * row))
            total += (weight * (row - vectors @ user) ** 2).sum() + factorisation.REGULARISATION * (user @ user)
        return total + factorisation.REGULARISATION * (vectors**2).sum()

    random = np.random.default_rng(0)
    fitted_loss = loss(items)
    assert fitted_loss < 0.8 * loss(np.zeros_like(items) + 1e-9)
    nearby = [loss(items + 0.02 * items.std() * random.standard_normal(items.shape)) for _ in range(5)]
    assert all(fitted_loss < other for other in nearby)


@pytest.mark.parametrize("rank", [20, 7])
def test_orthonormalise_handles_dependent_columns(rank):
    random = np.random.default_rng(0)
    columns = (random.standard_normal((300, rank)) @ random.standard_normal((rank, 20)) * np.logspace(0, -2, 20)).astype(
        np.float32
    )
    found = linear.orthonormalise(columns)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.T @ found, np.eye(20), atol=1e-5)
    np.testing.assert_allclose(found @ (found.T @ columns), columns, atol=1e-4 * np.abs(columns).max())


@pytest.mark.parametrize("dim", [4, 30, 64])
def test_chunked_products_are_bit_identical(dim):
    """To the bit, so that a translator does not depend on how large the parts are; one part may be of a single cell."""
    generator = torch.Generator().manual_seed(1)
    cells = 2 * (factorisation._CACHED_NUMBERS // dim) + 1
    v, y = torch.randn(70, dim, generator=generator), torch.randn(90, dim, generator=generator)
    row, column = (torch.randint(0, n, (cells,), generator=generator) for n in (70, 90))
    assert torch.equal(factorisation._products(v, row, y, column), (v[row] * y[column]).sum(1))
    nothing = row[:0]
    assert factorisation._products(v, nothing, y, nothing).shape == (0,)


@pytest.mark.parametrize("right", [None, np.linspace(0, 41, 1800, dtype=np.float32)])
@pytest.mark.parametrize("dim", [4, 30, 64])
def test_als_kernels_match_tensor_operations(dim, right, monkeypatch):
    """On processors whose sparse product joins multiplications with additions, up to the last bits."""
    assert factorisation.load_kernels() is not None, "numba is a dependency"
    cells = sparse.random(200, 90, 0.1, format="csr", dtype=np.float32, random_state=1)
    cells.data[:] = np.where(cells.data > 0.5, 40, 4)
    some = factorisation._Cells(cells.indptr.astype(np.int64), cells.indices, cells.data, right)
    items = torch.randn(90, dim, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(factorisation, "_CELLS", 300)
    found = []
    given = torch.randn(200, dim, generator=torch.Generator().manual_seed(2)).numpy()
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(factorisation, "load_kernels", lambda: None)
        with DiskMatrix(200, dim, np.float32, None) as users:
            products = factorisation._move_users(some, users, items)
            own, moved = torch.from_numpy(users.read(0, 200)), items.clone()
            torch.testing.assert_close(products, own.T @ own + factorisation.REGULARISATION * torch.eye(dim))
            users.write(0, given)
            factorisation._move_items(some, users, moved, products_of(given))
            found.append((own, moved))
    assert found[0][0].any(1).sum() > 150, "nearly all rows have a cell"
    assert (found[0][1] != items).any(1).all()
    (users_of_one, items_of_one), (users_of_other, items_of_other) = found
    torch.testing.assert_close(users_of_one, users_of_other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(items_of_one, items_of_other, rtol=1e-4, atol=1e-5)


def products_of(vectors: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(vectors.T @ vectors) + factorisation.REGULARISATION * torch.eye(vectors.shape[1])


@pytest.mark.parametrize("at_a_time", [17, 262_144])
@pytest.mark.parametrize("weighed", [False, True])
def test_item_updates_do_not_depend_on_the_chunk_size(pairs, at_a_time, weighed, monkeypatch):
    """Towards the minimum of what all their cells cost, given the users: more steps end where the exact solution is."""
    monkeypatch.setattr(factorisation, "_ITEMS", at_a_time)
    monkeypatch.setattr(factorisation, "_CG_STEPS", 60)
    monkeypatch.setattr("scalr_prod.translator.data.training_pairs._USER_BATCH", 17)
    if weighed:
        pairs = with_weights(pairs)
    cells, dim = factorisation._Cells.from_pairs(pairs), 8
    given = np.random.default_rng(0).standard_normal((len(pairs.log.users), dim)).astype(np.float32)
    items = torch.zeros(pairs.n_target + pairs.n_source + 1, dim)
    with DiskMatrix(len(given), dim, np.float32, None) as users:
        users.write(0, given)
        factorisation._move_items(cells, users, items, products_of(given))
    # A target cell of weight v is a mixture of an observed one and one that is not.
    seen = np.concatenate([pairs.target_matrix().toarray(), pairs.source_matrix().toarray()], axis=1)
    full = np.where(np.arange(seen.shape[1]) < pairs.n_target, 1, factorisation.SOURCE_WEIGHT) * factorisation.CONFIDENCE
    for item, own in enumerate(seen.T):
        system = (given.T * (1 + full[item] * own)) @ given + factorisation.REGULARISATION * np.eye(dim)
        exact = np.linalg.solve(system, given.T @ ((1 + full[item]) * own))
        np.testing.assert_allclose(items[item].numpy(), exact, atol=2e-4)
    assert ((seen > 0) & (seen < 1)).any() == weighed


def test_source_matrix_of_some_users_is_a_slice_of_the_full_matrix(pairs):
    whole, parts = pairs.source_matrix(), [slice(0, 17), slice(17, 18), slice(18, None)]
    assert len(pairs.log.users) > 20
    for users in parts:
        np.testing.assert_array_equal(pairs.source_matrix(users).toarray(), whole[users].toarray())
    assert pairs.source_matrix(slice(5, 5)).shape == (0, whole.shape[1])
    with pytest.raises(ValueError, match="range of consecutive users"):
        pairs.source_matrix(slice(0, 17, 2))


def test_user_counts_do_not_depend_on_the_batch_size(pairs, monkeypatch):
    whole = frequency.fit(pairs, {})
    monkeypatch.setattr("scalr_prod.translator.data.training_pairs._USER_BATCH", 17)
    some = frequency.fit(pairs, {})
    assert all(torch.equal(some[name], whole[name]) for name in whole)
    np.testing.assert_array_equal(pairs.source_user_counts(), np.asarray(pairs.source_matrix().sum(axis=0)).ravel())


def test_factorisation_user_vectors_solve_least_squares(pairs):
    fitted = factorisation.fit(pairs, {})
    batch, _ = batch_of(pairs, later_rows(pairs)[:5])
    found = factorisation.score(fitted, batch, torch.zeros(pairs.n_target, dtype=torch.float64))
    source, target = fitted["source"].double(), fitted["target"].double()
    weight = factorisation.CONFIDENCE * factorisation.SOURCE_WEIGHT
    for row, items in enumerate(batch.items.tolist()):
        confidence = torch.ones(len(source), dtype=torch.float64)
        preference = torch.zeros(len(source), dtype=torch.float64)
        for item in set(items) - {0}:
            confidence[item], preference[item] = 1 + weight, 1
        system = source.T @ (confidence[:, None] * source) + factorisation.REGULARISATION * torch.eye(source.shape[1])
        user = torch.linalg.solve(system, source.T @ (confidence * preference))
        torch.testing.assert_close(found[row], target @ user, rtol=1e-6, atol=1e-8)


def test_scores_of_unknown_histories_are_uninformative(pairs):
    batch, _ = batch_of(pairs, later_rows(pairs)[:2])
    empty = replace(batch, items=torch.zeros_like(batch.items))
    log_prior = popularity.log_popularity(pairs)
    for name in ("linear", "factorisation", "sequential"):
        estimator = load_estimator(name)
        shared = estimator.share(pairs)
        score = estimator.score(shared | estimator.fit(pairs, shared), empty, log_prior)
        torch.testing.assert_close(score, torch.zeros_like(score))


@pytest.mark.parametrize("name", BUILTIN_ESTIMATORS)
def test_estimators_learn_planted_preferences(pairs, name):
    estimator = load_estimator(name)
    held = pairs.without_users(pairs.log.fold == 0)
    shared = estimator.share(held)
    fitted = shared | estimator.fit(held, shared)
    log_prior = popularity.log_popularity(held)
    rows = later_rows(pairs)
    rows = rows[pairs.log.fold[pairs.log.target.user[rows]] == 0]
    batch, labels = batch_of(pairs, rows)
    scores = estimator.score(fitted, batch, log_prior)

    def mean_rank(values: torch.Tensor) -> float:
        own = values.gather(1, torch.from_numpy(labels.astype(np.int64))[:, None])
        return float((values > own).sum(1).float().mean())

    assert mean_rank(scores) < 0.65 * mean_rank(log_prior.expand_as(scores))


def test_held_out_users_do_not_influence_the_parameters(pairs):
    """Whatever fold 0's users did in the target domain, the parameters of fold 0 are the same to the last bit.

    Popularity as of an event is no parameter: what it may know is the matter of the next test.
    """
    log = pairs.log
    changed = log.target.item.copy()
    theirs = log.fold[log.target.user] == 0
    changed[theirs] = np.random.default_rng(5).permutation(changed[theirs])
    assert (changed != log.target.item).sum() > 100
    other = replace(pairs, log=replace(log, target=replace(log.target, item=changed)))
    held = {0: log.fold == 0, -1: np.zeros(len(log.users), bool)}
    ours, others = fit_parameter_sets(pairs, held, lambda _: None), fit_parameter_sets(other, held, lambda _: None)
    assert ours.keys() == others.keys()
    for name, tensor in ours.items():
        if not name.startswith(("-1/", "shared/popularity/")):
            assert torch.equal(tensor, others[name]), name
    for estimator in (
        "popularity/prior",
        "frequency/share",
        "linear/coefficients",
        "factorisation/target",
        "sequential/target",
    ):
        ours_all, others_all = ours[f"-1/{estimator}"], others[f"-1/{estimator}"]
        assert ours_all.shape != others_all.shape or not torch.equal(ours_all, others_all), estimator


def test_popularity_counts_held_out_users_only_before_the_event(pairs):
    """Popularity counts their events too, but only those strictly before what is asked."""
    log, moment = pairs.log, 50 * DAY
    theirs = log.fold[log.target.user] == 0
    held = {0: log.fold == 0}
    asked = np.flatnonzero(theirs & (log.target.time <= moment) & (log.target.time > moment - 20 * DAY))
    assert len(asked) > 20

    def answer(changed: np.ndarray) -> torch.Tensor:
        item = log.target.item.copy()
        item[changed] = np.random.default_rng(5).permutation(item[changed])
        assert (item != log.target.item).sum() > 50 or not changed.any()
        other = replace(pairs, log=replace(log, target=replace(log.target, item=item)))
        tensors = fit_parameter_sets(other, held, lambda _: None)
        tensors |= {name.replace("0/", "-1/", 1): tensor for name, tensor in tensors.items() if name.startswith("0/")}
        tensors |= calibration()
        module = TranslatorModule(tensors, METADATA | {"folds": "1", "n_source": str(pairs.n_source)})
        indices = {"source_index": pairs.source_index, "target_index": pairs.target_index}
        contexts, _ = contexts_and_labels(log, asked, fold=0, **indices)
        return torch.cat([p for _, (p,) in module.distributions(contexts)])

    undisturbed = answer(np.zeros_like(theirs))
    assert torch.equal(undisturbed, answer(theirs & (log.target.time >= moment)))
    earlier = answer(theirs & (log.target.time < moment - 20 * DAY))
    assert (earlier - undisturbed).abs().max() > 1e-3, "popularity of what came before must show, or this test shows nothing"


def test_later_events_do_not_influence_the_parameters(pairs):
    log = pairs.log
    random = np.random.default_rng(6)

    def shuffled(events: DomainEvents) -> DomainEvents:
        item = events.item.copy()
        later = events.time >= pairs.until
        item[later] = random.permutation(item[later])
        return replace(events, item=item)

    other = replace(pairs, log=replace(log, source=shuffled(log.source), target=shuffled(log.target)))
    nobody = {-1: np.zeros(len(log.users), bool)}
    ours, others = fit_parameter_sets(pairs, nobody, lambda _: None), fit_parameter_sets(other, nobody, lambda _: None)
    for name, tensor in ours.items():
        assert torch.equal(tensor, others[name]), name


def test_reported_work_adds_up_to_the_estimate(pairs):
    told: list[float] = []
    nobody = np.zeros(len(pairs.log.users), bool)
    (shared,) = fit_shared([pairs], on_progress=told.append)
    tables = sum(training_budget.estimate_shared_work(name, pairs) for name in ("popularity", "tastes"))
    assert sum(told) == pytest.approx(training_budget.estimate_training_work(pairs, 0) - tables)
    assert len(told) > 10, "pretraining tells how far it is"
    fit_parameter_sets(pairs, {-1: nobody, 0: nobody}, told.append, shared=shared)
    assert sum(told) == pytest.approx(training_budget.estimate_training_work(pairs, 2))
    events = pairs.log.source.time < pairs.until
    fewer = replace(pairs, settings=pairs.settings.model_copy(update={"pretraining_events": int(events.sum()) // 2}))
    assert training_budget.estimate_shared_work("sequential", fewer) == pytest.approx(
        training_budget.estimate_shared_work("sequential", pairs) / 2, rel=0.01
    )
