"""Shortlists: which items they hold, and draws from them by compiled, plain and float64 code."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.small_translator import equal, make_contexts
from support.translator_log import DAY, METADATA, SETTINGS, calibration, make_log

from scalr_prod.translator import shortlist
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import NO_ITEM, Contexts
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.requests import SampleRequest
from scalr_prod.translator.trainer import fit_parameter_sets

SIZE, ITEMS = 12, 88


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    """88 target items in blocks of 12, the last of which holds 4."""
    torch.set_num_threads(1)
    pairs = TrainingSlice.from_log(make_log(target_items=90), 90 * DAY, SETTINGS)
    fold = pairs.log.fold
    tensors = (
        fit_parameter_sets(pairs, {-1: np.zeros(len(fold), bool), 0: fold == 0, 1: fold == 1}, lambda _: None) | calibration()
    )
    metadata = METADATA | {"n_source": str(pairs.n_source)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortlist, "_MIN_BLOCK_SIZE", SIZE)
        modules = [TranslatorModule(tensors, metadata, reference=reference) for reference in (False, True)]
        made = SimpleNamespace(pairs=pairs, tensors=tensors, metadata=metadata, fused=modules[0], reference=modules[1])
        made.lists = modules[0]._shortlists
        assert modules[0].n_target == ITEMS
        yield made


def all_probabilities(module: TranslatorModule, contexts: Contexts) -> np.ndarray:
    """Return P of every item: float [B, N]."""
    found = np.empty((len(contexts), module.n_target))
    for rows, (p,) in module.distributions(contexts):
        found[rows] = p.numpy()
    return found


def shortlist_mask(module: TranslatorModule, contexts: Contexts, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask of each context's shortlist, bool [B, N], and its estimated share of P; one context at a time."""
    found, share = np.zeros((len(contexts), module.n_target), bool), np.zeros(len(contexts))
    for row in range(len(contexts)):
        one = contexts.take(np.array([row]))
        mixture = module.parameter_set(int(one.fold[0]))
        summary = mixture.encode(ContextBatch.from_contexts(one, module.first_seen), ("popularity", "mixture"))
        lists = module._shortlists.select(mixture, summary, SampleRequest(1, 1.0, 0.0, "mixture", count))
        found[row, module._shortlists.item_order.numpy()] = np.repeat(lists.blocks[0].numpy(), SIZE)[: module.n_target]
        share[row] = lists.catalogue_share["mixture"][0]
    return found, share


def test_blocks_hold_every_item_once(world):
    order, lists = world.lists.item_order.numpy(), world.lists
    assert (lists.block_size, lists.n_blocks) == (SIZE, 8)
    np.testing.assert_array_equal(np.sort(order), np.arange(ITEMS))
    for block in np.split(order, range(SIZE, ITEMS, SIZE)):
        assert (np.diff(block) > 0).all()


@pytest.mark.parametrize(
    ("count", "k", "temperature", "min_lift"), [(5, 4, 1.0, 0.0), (13, 9, 0.3, 0.5), (40, 20, 1.0, 1.0), (70, 6, 2.0, 0.0)]
)
def test_compiled_draws_match_the_reference(world, count, k, temperature, min_lift):
    contexts = make_contexts(world, 600, seed=count, exclude=5)
    how = {"temperature": temperature, "min_lift": min_lift, "shortlist": count}
    assert world.fused._shortlist_executor is not None
    assert world.reference._shortlist_executor is None
    found = world.fused.sample(contexts, k, **how)
    equal(found, world.reference.sample(contexts, k, **how))
    assert (found.items != NO_ITEM).any()


def test_draws_are_from_the_shortlist_and_p_sums_to_its_share(world):
    contexts = make_contexts(world, 60, seed=3, exclude=4)
    contexts = replace(contexts, event_time=contexts.event_time + 10 * DAY, history_end=contexts.history_end + 10 * DAY)
    (listed, share), p = shortlist_mask(world.fused, contexts, 20), all_probabilities(world.reference, contexts)
    seen = world.pairs.first_seen < contexts.event_time[:, None]
    assert ((listed & seen).sum(1) >= np.minimum(seen.sum(1), 20)).all()
    assert (listed.sum(1) <= 20 + SIZE + SIZE).all(), "whole blocks, and one of them may be the short one"
    drawn = world.fused.sample(contexts, 20, shortlist=20)
    for row in range(len(contexts)):
        there = drawn.items[row] != NO_ITEM
        possible = np.flatnonzero(listed[row] & (p[row] > 0))
        assert there.sum() == min(len(possible), 20)
        assert set(drawn.items[row][there]) <= set(possible)
        expected = share[row] * p[row, drawn.items[row][there]] / p[row, possible].sum()
        np.testing.assert_allclose(drawn.probabilities[row][there], expected, rtol=1e-4)


def test_probabilities_estimate_those_of_the_whole_catalogue(world):
    """The estimated share of a shortlist is close to the true one, for P and the prior, so that lifts stay correct."""
    contexts = make_contexts(world, 500, seed=8)
    contexts = replace(contexts, event_time=contexts.event_time % (20 * DAY) + 80 * DAY)
    contexts = replace(contexts, history_end=contexts.event_time - 1)
    drawn = world.fused.sample(contexts, 1, shortlist=30)
    p, prior = world.fused.score(contexts, drawn.items)
    off = np.log(drawn.probabilities / p), np.log(drawn.prior / prior), np.log(drawn.probabilities / drawn.prior * prior / p)
    assert max(np.abs(one).mean() for one in off) < 0.15
    assert max(abs(one.mean()) for one in off) < 0.1


def test_shortlists_depend_on_the_temperature(world):
    """Towards temperature 0 a shortlist should hold the most probable item, not most of P."""
    contexts = make_contexts(world, 1_000, seed=11)
    contexts = replace(contexts, event_time=contexts.event_time % (20 * DAY) + 80 * DAY)
    contexts = replace(contexts, history_end=contexts.event_time - 1)
    held = []
    for temperature in (1.0, 0.2, 0.02):
        found, expected = (world.fused.sample(contexts, 1, temperature=temperature, shortlist=n) for n in (24, None))
        held.append((found.items == expected.items).mean())
    assert held[0] < held[1]
    assert held[2] > 0.75


def test_shortlists_hold_as_many_eligible_items_as_draws(world):
    """Also in the catalogue's first week, in which no item was seen before; and a shortlist holds at least k items."""
    contexts = make_contexts(world, 2_000, seed=9, exclude=30)
    contexts = replace(contexts, event_time=contexts.event_time % (14 * DAY) + 1)
    contexts = replace(contexts, history_end=contexts.event_time - 1)
    later = replace(contexts, event_time=contexts.event_time + 60 * DAY, history_end=contexts.history_end + 60 * DAY)
    for asked, k, count in ((contexts, 1, 1), (contexts, 12, 5), (later, 10, 10), (later, 5, 5)):
        found, expected = world.fused.sample(asked, k, shortlist=count), world.fused.sample(asked, k)
        np.testing.assert_array_equal((found.items != NO_ITEM).sum(1), (expected.items != NO_ITEM).sum(1))


def test_a_shortlist_of_all_blocks_is_the_whole_catalogue(world):
    contexts = make_contexts(world, 200, seed=4, exclude=3)
    expected = world.fused.sample(contexts, 5)
    for count in (ITEMS, ITEMS - 1, 1000):  # the second one in its own order
        equal(world.fused.sample(contexts, 5, shortlist=count), expected)


def test_draws_do_not_depend_on_the_other_rows(world):
    contexts = make_contexts(world, 300, seed=5, exclude=3)
    expected = world.fused.sample(contexts, 4, shortlist=24)
    world.lists._popularity_cache.clear()  # else nothing would be worked out again
    some = np.random.default_rng(0).permutation(300)[:40]
    equal(world.fused.sample(contexts.take(some), 4, shortlist=24), expected.take(some))
    world.lists._popularity_cache.clear()
    alone = world.fused.sample(contexts.take(some[:1]), 4, shortlist=24)
    np.testing.assert_array_equal(alone.items, expected.items[some[:1]])


def test_a_shortlist_fits_its_own_context(world):
    """It holds more of P than another context's shortlist, and far more than as many random items."""
    contexts = make_contexts(world, 400, seed=6)
    contexts = replace(contexts, event_time=contexts.event_time % (20 * DAY) + 80 * DAY)
    contexts = replace(contexts, history_end=contexts.event_time - 1)
    p, (listed, _) = all_probabilities(world.reference, contexts), shortlist_mask(world.fused, contexts, 24)
    held = (p * listed).sum(1).mean()
    of_others = np.mean([(p * np.roll(listed, by, 0)).sum(1).mean() for by in (1, 50, 200)])
    assert held > 1.08 * of_others
    assert held > 1.5 * 24 / ITEMS


@pytest.mark.long
def test_block_scores_use_popularity_at_the_start_of_the_week(world):
    """Events of the week, and later ones, do not count."""
    contexts = make_contexts(world, 50, seed=7)
    week = 7 * DAY
    contexts = replace(contexts, event_time=contexts.event_time % week + 8 * week)
    contexts = replace(contexts, history_end=contexts.event_time - 1)
    mixture, batch = world.reference.parameter_set(-1), ContextBatch.from_contexts(contexts, world.reference.first_seen)
    eligible = world.lists._count_eligible(batch.eligible)
    before = world.lists._popularity_scores(mixture, "mixture", batch.time, eligible, 1.0)
    past = replace(mixture, popularity=mixture.popularity | popularity.fit(replace(world.pairs, popularity_until=8 * week)))
    lists = replace(world.lists, _popularity_cache=type(world.lists._popularity_cache)())
    torch.testing.assert_close(lists._popularity_scores(past, "mixture", batch.time, eligible, 1.0), before)


def test_blocks_without_eligible_items_are_not_selected(world):
    contexts = make_contexts(world, 40, seed=10)
    contexts = replace(contexts, event_time=np.full(40, world.pairs.first_seen[2] + 1), fold=np.full(40, -1, np.int32))
    mixture, batch = world.reference.parameter_set(-1), ContextBatch.from_contexts(contexts, world.reference.first_seen)
    lists = world.lists.select(
        mixture, mixture.encode(batch, ("popularity", "mixture")), SampleRequest(1, 1.0, 0.0, "mixture", 80)
    )
    seen = world.lists._count_eligible(batch.eligible) > 0
    assert torch.equal(lists.blocks, seen)
    assert 0 < seen.sum() < seen.numel()
    assert (lists.catalogue_share["mixture"] == 1).all()


def test_estimators_without_vectors_do_not_score_while_blocks_are_built(world):
    def score(*_):
        pytest.fail("scored")

    mixture = world.reference.parameter_set(-1)
    other = replace(mixture, estimators=mixture.estimators | {"other": SimpleNamespace(score=score)})
    weights = {member: of_each | {"other": 1.0} for member, of_each in mixture.calibration.items()}
    other = replace(other, calibration=weights, parameters=mixture.parameters | {"other": {}})
    lists = shortlist.ShortlistIndex.from_mixture(other, world.pairs.n_source, torch.from_numpy(world.pairs.first_seen))
    assert torch.equal(lists.item_order, world.lists.item_order)


def test_without_product_estimators_blocks_group_equally_popular_items(world):
    mixture = world.reference.parameter_set(-1)
    alone = mixture.calibration["mixture"] | dict.fromkeys(mixture.estimators, 0.0)
    alone = replace(mixture, calibration=mixture.calibration | {"mixture": alone})
    lists = shortlist.ShortlistIndex.from_mixture(alone, world.pairs.n_source, torch.from_numpy(world.pairs.first_seen))
    np.testing.assert_array_equal(np.sort(lists.item_order.numpy()), np.arange(ITEMS))
    logits = torch.cat([shortlist._popularity_logits(alone, "mixture", torch.tensor([day * DAY])) for day in (30, 60, 90)])

    def spread(order: torch.Tensor) -> float:
        """Variance within blocks, of all variance."""
        parts = logits[:, order].split(SIZE, 1)
        return float(
            sum(part.var(1, correction=0).sum() * part.shape[1] for part in parts) / (logits.var(1, correction=0).sum() * ITEMS)
        )

    assert spread(lists.item_order) < 0.6 * spread(torch.randperm(ITEMS, generator=torch.Generator().manual_seed(0)))


def test_mean_cache_distinguishes_estimators_with_temporary_vectors(world):
    """Estimators of other packages may compute vectors on each call, whose memory is then reused."""

    def fresh(factor: float) -> SimpleNamespace:
        return SimpleNamespace(user=None, vectors=lambda parameters: parameters["x"] * factor)

    mixture = world.reference.parameter_set(-1)
    names = [f"other_{number}" for number in range(8)]
    made = dict(zip(names, map(fresh, range(1, 9)), strict=True))
    own = {name: {"x": torch.ones(ITEMS, 3)} for name in names}
    lists = replace(world.lists, _mean_cache={})
    found = lists._block_means(replace(mixture, estimators=made, parameters=own))
    assert [float(found[name][0, 0]) for name in names] == list(range(1, 9))


def test_warm_up_builds_the_shortlist_index(world):
    made = TranslatorModule(world.tensors, world.metadata)
    beats = []
    made.on_progress = lambda: beats.append(1)
    made.warm_up()
    assert "_shortlists" not in vars(made)
    made.warm_up(shortlists=True)
    assert {"_shortlists", "_shortlist_executor"} <= set(vars(made))
    assert beats, "a server's watchdog sees progress"
    plain = TranslatorModule(world.tensors, world.metadata, reference=True)
    plain.warm_up(shortlists=True)
    assert "_shortlists" in vars(plain)
