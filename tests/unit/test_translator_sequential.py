"""The sequential estimator: what it is trained on, and that it asks as it was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from translator_world import DAY, LENGTH, SETTINGS, make_log

from scalr_prod.translator.batch import Batch
from scalr_prod.translator.estimators import attention, pretraining, sampled_softmax, sequential
from scalr_prod.translator.estimators.windows import Windows, source_windows
from scalr_prod.translator.pairs import Pairs


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    torch.set_num_threads(1)
    return Pairs.of(make_log(), 80 * DAY, SETTINGS)


def test_windows_hold_each_target_event_after_its_last_source_event(pairs):
    windows = Windows.of(pairs)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for window in windows.epoch(16, generator):
        for row, place, item, time in zip(window.row, window.place, window.item, window.time, strict=True):
            upto = window.items[row, : place + 1]
            seen.append((tuple(upto[upto > 0].tolist()[-3:]), int(item), int(time)))
    expected = []
    for row in pairs.target_rows():
        history = pairs.log.history[row]
        if history[-1] < 0:
            continue
        user, time = pairs.log.target.user[row], pairs.log.target.time[row]
        source = pairs.log.source
        # A window may begin later than the history does: compare the ends, as far as the window reaches.
        mine = np.flatnonzero((source.user == user) & (source.time < pairs.until))
        back = (mine[-1] - history[-1]) % LENGTH
        upto = mine[mine <= history[-1]][-(LENGTH - back) :]
        known = pairs.source_index[source.item[upto]]
        expected.append((tuple(known[known > 0].tolist()[-3:]), int(pairs.target_index[pairs.log.target.item[row]]), int(time)))
    assert sorted(seen) == sorted(expected)
    assert len(seen) > 100


def test_sequential_never_looks_ahead(pairs):
    p = sequential.fit(pairs, sequential.share(pairs))
    random = torch.Generator().manual_seed(1)
    items = torch.randint(1, pairs.n_source + 1, (3, LENGTH), generator=random)
    days = torch.rand(3, LENGTH, generator=random).cumsum(1) * 20
    other = items.clone()
    other[:, 6:] = torch.randint(1, pairs.n_source + 1, (3, LENGTH - 6), generator=random)

    found, changed = attention.states(p, items, days), attention.states(p, other, days)
    torch.testing.assert_close(found[:, :6], changed[:, :6], rtol=0, atol=0)
    assert not torch.allclose(found[:, 6:], changed[:, 6:])


def test_sequential_asks_for_the_same_state_as_it_was_trained_on(pairs):
    p = sequential.fit(pairs, sequential.share(pairs))
    items = torch.tensor([[0, 0, 3, 5, 1, 2, 7, 5, 4, 6]])
    days = torch.tensor([[0.0, 0, 0, 1, 1, 5, 30, 31, 90, 400]])
    trained = attention.states(p, items, days)[:, -1]
    batch = Batch(items, days[:, -1:] - days, torch.tensor([0]), torch.tensor([0]), torch.tensor([pairs.n_target]))
    found = sequential.score(p, batch, torch.zeros(pairs.n_target))
    torch.testing.assert_close(found, trained @ p["target"].T, rtol=1e-5, atol=1e-6)


def test_source_windows_hold_every_source_event_of_the_slice_once(pairs):
    items, days = source_windows(pairs)
    source = pairs.log.source
    counts = source.time < pairs.until
    known = pairs.source_index[source.item[counts]]
    np.testing.assert_array_equal(np.sort(items[items > 0]), np.sort(known[known > 0]))
    assert (days.diff(dim=1)[items[:, :-1] > 0] >= 0).all()
    # A user's windows follow one another, the latest first, and it ends with the user's last event.
    first = int(source.user[counts][0])
    mine = pairs.source_index[source.item[counts & (source.user == first)]]
    np.testing.assert_array_equal(items[0][-min(len(mine), LENGTH) :], mine[-LENGTH:])


def test_what_comes_next_in_the_source_domain_is_learned_before_any_target_event(pairs, monkeypatch):
    """A log in which source item i is always followed by i + 1: after pretraining the state of i is nearest to what follows."""
    step = np.arange(len(pairs.log.source)) - np.searchsorted(pairs.log.source.user, pairs.log.source.user)
    item = ((step + pairs.log.source.user) % 12).astype(np.int32)
    follows = replace(pairs, log=replace(pairs.log, source=replace(pairs.log.source, item=item)))
    follows = replace(
        follows, source_index=np.where(np.arange(len(pairs.source_index)) < 12, np.arange(len(pairs.source_index)) + 1, 0)
    )
    monkeypatch.setattr(pretraining, "EPOCHS", 50)
    monkeypatch.setattr(pretraining, "LEARNING_RATE", 1e-2)
    kept = {}

    def keep(state, vectors, label, negatives, **offsets):
        kept.update(state=state.detach(), vectors=vectors.detach().clone(), label=label)
        return loss(state, vectors, label, negatives, **offsets)

    loss = sampled_softmax.loss
    monkeypatch.setattr(sampled_softmax, "loss", keep)
    nobody = replace(follows, held_out=np.ones_like(pairs.held_out))
    parameters = sequential.share(nobody)
    nearest = (kept["state"] @ kept["vectors"][1:13].T).argmax(1) + 1
    assert (nearest == kept["label"]).float().mean() > 0.8
    again = sequential.share(follows)
    assert all(torch.equal(parameters[name], again[name]) for name in parameters), "target events teach it nothing"


def test_pretraining_takes_no_more_source_events_than_it_is_given(pairs, monkeypatch):
    """Whole windows, of all users, until the events are that many; with enough of them, all windows in the order they always had."""
    seen = []

    def keep(parameters, items, days, generator):
        seen.append(int((items > 0).sum()))
        return states(parameters, items, days, generator)

    states = attention.states
    monkeypatch.setattr(attention, "states", keep)
    everything = sequential.share(pairs)
    told = sum(seen) // pretraining.EPOCHS
    found = {}
    for most in (told // 3, told, 1):
        seen.clear()
        some = replace(pairs, settings=pairs.settings.model_copy(update={"pretraining_events": most}))
        found[most] = sequential.share(some)
        assert sum(seen) % pretraining.EPOCHS == 0
        if most > 1:
            assert most - LENGTH < sum(seen) // pretraining.EPOCHS <= most
    assert all(torch.equal(everything[name], found[told][name]) for name in everything)
    assert not torch.equal(everything["source"], found[told // 3]["source"])


@pytest.mark.parametrize("of_each", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_loss_in_blocks_is_that_of_plain_operations(of_each, weighed):
    """To the bit, and so are its gradients: a translator does not depend on how large the blocks are."""
    generator = torch.Generator().manual_seed(0)
    choices, items, dim = 2 * sampled_softmax._ROWS + 7, 300, 16
    state, vectors = (torch.randn(n, dim, generator=generator).requires_grad_() for n in (choices, items))
    offset = torch.randn(choices if of_each else 1, items, generator=generator).requires_grad_()
    label = torch.randint(0, items, (choices,), generator=generator)
    weight = torch.rand(choices, generator=generator) if weighed else None
    negatives = sampled_softmax.Negatives.drawn(torch.ones(items) / items, generator)
    own = torch.randn(choices, 1, generator=generator)

    def others(chosen):
        return offset[:, chosen] if of_each else offset[0, chosen]

    positive = (state * vectors[label]).sum(1, keepdim=True) + own
    logits = (
        state @ torch.nn.functional.embedding(negatives.items, vectors).T + others(negatives.items) - negatives.log_expected
    )
    logits = logits.masked_fill(negatives.items == label[:, None], -torch.inf)
    plain = torch.cat([positive, logits], 1).logsumexp(1) - positive[:, 0]
    plain = (plain if weight is None else plain * weight).mean()
    found = sampled_softmax.loss(state, vectors, label, negatives, own=own, others=others, weight=weight)
    assert torch.equal(found, plain)
    learnt = [state, vectors, offset]
    for mine, theirs in zip(torch.autograd.grad(found, learnt), torch.autograd.grad(plain, learnt), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dim", [6, 64])
def test_compiled_attention_is_that_of_tensor_operations(dim, monkeypatch):
    """To the bit, and so are its gradients; a window may begin with nothing, and events may be hidden."""
    generator = torch.Generator().manual_seed(0)
    learnt = {"source": torch.randn(50, dim, generator=generator), **attention.initial(dim, generator)}
    learnt["age_bias"] = torch.randn(learnt["age_bias"].shape, generator=generator)
    for tensor in learnt.values():
        tensor.requires_grad_()
    items = torch.randint(1, 50, (9, LENGTH), generator=generator) * (torch.arange(LENGTH) >= torch.arange(9)[:, None])
    days = (torch.rand(9, LENGTH, generator=generator) * 20).cumsum(1)

    def found() -> list[torch.Tensor]:
        states = attention.states(learnt, items, days, torch.Generator().manual_seed(1))
        return [states, *torch.autograd.grad(states.square().sum(), list(learnt.values()))]

    assert attention.kernels() is not None, "numba is a dependency"
    compiled = found()
    monkeypatch.setattr(attention, "kernels", lambda: None)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(compiled, found(), strict=True))
