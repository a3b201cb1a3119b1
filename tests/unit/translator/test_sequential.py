"""The sequential estimator: its training data, optimizer and kernels, and inference as in training."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, LENGTH, SETTINGS, make_log

from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.estimators import attention, lazy_adamw, pretraining, sampled_softmax, sequential
from scalr_prod.translator.estimators.window_index import TrainingWindows, WindowIndex, index_source_windows, windows_per_batch

#: Windows and places of all events of three windows.
EVERY = torch.arange(3).repeat_interleave(LENGTH), torch.arange(LENGTH).repeat(3)


@pytest.fixture(scope="module")
def pairs() -> TrainingSlice:
    torch.set_num_threads(1)
    return TrainingSlice.from_log(make_log(), 80 * DAY, SETTINGS)


def test_windows_hold_each_target_event_after_its_last_source_event(pairs):
    windows = TrainingWindows.from_pairs(pairs)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for window in windows.iter_epoch(16, generator):
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

    found, changed = (attention.window_states(p, one, days, EVERY).unflatten(0, (3, -1)) for one in (items, other))
    torch.testing.assert_close(found[:, :6], changed[:, :6], rtol=0, atol=0)
    assert not torch.allclose(found[:, 6:], changed[:, 6:])


def test_inference_computes_the_training_state(pairs):
    p = sequential.fit(pairs, sequential.share(pairs))
    items = torch.tensor([[0, 0, 3, 5, 1, 2, 7, 5, 4, 6]])
    days = torch.tensor([[0.0, 0, 0, 1, 1, 5, 30, 31, 90, 400]])
    trained = attention.window_states(p, items, days, (torch.tensor([0]), torch.tensor([9])))
    batch = ContextBatch(items, days[:, -1:] - days, torch.tensor([0]), torch.tensor([0]), torch.tensor([pairs.n_target]))
    found = sequential.score(p, batch, torch.zeros(pairs.n_target))
    torch.testing.assert_close(found, trained @ p["target"].T, rtol=1e-5, atol=1e-6)


def test_source_windows_hold_every_source_event_of_the_slice_once(pairs):
    windows = index_source_windows(pairs)
    items, days = windows.read(torch.arange(len(windows)))
    source = pairs.log.source
    counts = source.time < pairs.until
    known = pairs.source_index[source.item[counts]]
    np.testing.assert_array_equal(np.sort(items[items > 0]), np.sort(known[known > 0]))
    assert (days.diff(dim=1)[items[:, :-1] > 0] >= 0).all()
    # A user's windows follow one another, the latest first, and it ends with the user's last event.
    first = int(source.user[counts][0])
    mine = pairs.source_index[source.item[counts & (source.user == first)]]
    np.testing.assert_array_equal(items[0][-min(len(mine), LENGTH) :], mine[-LENGTH:])
    np.testing.assert_array_equal(windows.known_event_counts(), (items > 0).sum(1))
    np.testing.assert_array_equal(windows.item_counts()[1:], np.bincount(items.flatten(), minlength=pairs.n_source + 1)[1:])


@pytest.mark.long
@pytest.mark.slow
def test_pretraining_learns_the_next_source_item(pairs, monkeypatch):
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

    def keep(state, vectors, labels, negatives, drawn_offsets):
        kept.update(state=state.detach(), vectors=vectors.detach().clone(), label=labels.items)
        return loss(state, vectors, labels, negatives, drawn_offsets)

    loss = sampled_softmax.sampled_softmax_loss
    monkeypatch.setattr(sampled_softmax, "sampled_softmax_loss", keep)
    nobody = replace(follows, held_out=np.ones_like(pairs.held_out))
    parameters = sequential.share(nobody)
    # Rows of the table stand in order; all twelve items are in every batch.
    nearest = (kept["state"] @ kept["vectors"][1:13].T).argmax(1) + 1
    assert (nearest == kept["label"]).float().mean() > 0.8
    again = sequential.share(follows)
    assert all(torch.equal(parameters[name], again[name]) for name in parameters), "target events teach it nothing"


def test_pretraining_respects_the_event_limit(pairs, monkeypatch):
    """Whole windows, of all users, until the events are that many; with enough of them, all windows in the order they always had."""
    seen = []

    def keep(parameters, items, days, asked, generator):
        seen.append(int((items > 0).sum()))
        return states(parameters, items, days, asked, generator)

    states = attention.window_states
    monkeypatch.setattr(attention, "window_states", keep)
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


def test_the_number_of_batches_is_limited_and_no_window_repeats_before_all_were_read(pairs, monkeypatch, caplog):
    seen = []

    def keep(index, windows):
        seen.extend(windows.tolist())
        return read(index, windows)

    read = WindowIndex.read
    monkeypatch.setattr(WindowIndex, "read", keep)
    settings = pairs.settings.model_copy(update={"batch_size": 16, "epochs": 2})
    windows, size = TrainingWindows.from_pairs(pairs), windows_per_batch(16)
    count = len(windows.index)
    batches = -(-count // size)
    shared, fitted = sequential.share(pairs), {}
    # Windows that are read for the initial vectors, in the first and in the second epoch.
    expected = {
        batches - 1: [(batches - 1) * size] * 2 + [0],
        batches + 1: [count, count, size],
        2 * batches: [count] * 3,
        100 * batches: [count] * 3,
    }
    caplog.set_level("INFO", "scalr_prod")
    for most, parts in expected.items():
        seen.clear()
        caplog.clear()
        fitted[most] = sequential.fit(replace(pairs, settings=settings.model_copy(update={"sequential_steps": most})), shared)
        assert len(seen) == sum(parts)
        assert (f"takes {most} of {2 * batches} steps" in caplog.text) == (most < 2 * batches)
        for end, length in zip(np.cumsum(parts), parts, strict=True):
            assert len(set(seen[end - length : end])) == length
    assert all(torch.equal(fitted[2 * batches][name], fitted[100 * batches][name]) for name in shared)
    assert not torch.equal(fitted[2 * batches]["target"], fitted[batches + 1]["target"])


@pytest.mark.parametrize("moments", [1, 5])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_loss_matches_a_softmax_choice_by_choice(moments, weighed):
    """Draws of a choice's own label are ignored; some labels are drawn several times."""
    generator = torch.Generator().manual_seed(0)
    items, dim, choices = 300, 16, 60
    state, vectors = (torch.randn(n, dim, generator=generator).requires_grad_() for n in (choices, items))
    offsets = torch.randn(moments, sampled_softmax.NEGATIVES_PER_BATCH, generator=generator).requires_grad_()
    moment = torch.randint(0, moments, (choices,), generator=generator) if moments > 1 else None
    label = torch.randint(0, items, (choices,), generator=generator)
    weight = torch.rand(choices, generator=generator) if weighed else None
    negatives = sampled_softmax.Negatives.sample(torch.ones(items) / items, generator)
    own = torch.randn(choices, generator=generator).requires_grad_()
    losses = []
    for b in range(choices):
        positive = state[b] @ vectors[label[b]] + own[b]
        row = 0 if moment is None else moment[b]
        others = negatives.items != label[b]
        logits = state[b] @ vectors[negatives.items].T + offsets[row] - negatives.log_expected
        loss = torch.cat([positive[None], logits[others]]).double().logsumexp(0) - positive
        losses.append(loss if weight is None else loss * weight[b])
    assert all((negatives.items == one).any() for one in label[:5]), "labels are drawn"
    labels = sampled_softmax.Labels(label, own, moment, weight)
    expected = torch.stack(losses).mean()
    found = sampled_softmax.sampled_softmax_loss(state, vectors, labels, negatives, offsets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    learned = (state, vectors, offsets, own)
    for gradient, by_choice in zip(torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned), strict=True):
        torch.testing.assert_close(gradient, by_choice, rtol=1e-4, atol=1e-6)


def test_the_loss_of_an_empty_batch_is_zero():
    negatives = sampled_softmax.Negatives.sample(torch.ones(3) / 3, torch.Generator())
    labels = sampled_softmax.Labels(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    offsets = torch.zeros(1, sampled_softmax.NEGATIVES_PER_BATCH)
    assert sampled_softmax.sampled_softmax_loss(torch.zeros(0, 4), torch.zeros(3, 4), labels, negatives, offsets) == 0


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("dim", [6, 64])
def test_compiled_attention_matches_the_reference(dim, hidden, monkeypatch):
    """And so are its gradients, over windows without an event, with one, with unknown ones between others, and longer than a register."""
    generator = torch.Generator().manual_seed(0)
    learnt = {"source": torch.randn(50, dim, generator=generator), **attention.initial_weights(dim, generator)}
    learnt["age_bias"] = torch.randn(learnt["age_bias"].shape, generator=generator)
    learnt["narrow"] = 0.2 * torch.randn(learnt["narrow"].shape, generator=generator)
    for tensor in learnt.values():
        tensor.requires_grad_()
    length = 70
    begins = torch.tensor([length, length - 1, 0, 3, 38, 60])
    items = torch.randint(0, 50, (len(begins), length), generator=generator) * (torch.arange(length) >= begins[:, None])
    items[1, -1] = 7
    days = (torch.rand(items.shape, generator=generator) * 20).cumsum(1)
    row, place = (one.flatten() for one in torch.meshgrid(torch.arange(len(begins)), torch.arange(0, length, 3), indexing="ij"))
    asked = torch.cat([row, torch.tensor([1, 1])]), torch.cat([place, torch.tensor([length - 1, length - 1])])
    assert (items[asked] == 0).any()
    slope = torch.randn(len(asked[0]), dim, generator=generator)

    def found() -> list[torch.Tensor]:
        states = attention.window_states(learnt, items, days, asked, torch.Generator().manual_seed(1) if hidden else None)
        return [states, *torch.autograd.grad((states * slope).sum(), list(learnt.values()))]

    assert attention.load_kernels() is not None, "numba is a dependency"
    compiled = found()
    monkeypatch.setattr(attention, "load_kernels", lambda: None)
    plain = found()
    assert (plain[0][items[asked] == 0] == 0).all()
    for mine, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()) + 1e-6)


def test_lazy_adamw_matches_torch_adamw():
    """Some rows are in every batch, some in a few, one in none: torch's AdamW, which moves all of them each time, is the reference."""
    steps, rows, dim = 120, 60, 8

    def start() -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(rows, dim, generator=generator), torch.randn(dim, generator=generator), generator

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = 2 + ((rows - 2) * torch.rand(12, generator=generator) ** 3).long()
        return wanted, torch.randn(12, generator=generator)

    table, slope, generator = start()
    learner = lazy_adamw.LazyAdamW({"slope": slope}, {"table": table}, steps=steps, rate=1e-2, decay=0.1)
    for _ in range(steps):
        wanted, said = batch(generator)
        values, (place,) = learner.tables["table"].gather(wanted)
        learner.step((values[place] @ learner.dense["slope"] - said).square().mean())
    table, slope, generator = start()
    before = table.clone()
    optimizer = torch.optim.AdamW([table.requires_grad_(), slope.requires_grad_()], lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps + 1)
    for _ in range(steps):
        wanted, said = batch(generator)
        optimizer.zero_grad()
        (table[wanted] @ slope - said).square().mean().backward()
        optimizer.step()
        schedule.step()
    found = learner.final_parameters()
    assert (table - before).abs().amax(1).min() > 1e-3, "every row is moved, if only by its decay"
    torch.testing.assert_close(found["table"], table.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["slope"], slope.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 3, 7, 10, 121])
def test_the_schedule_matches_torch(steps):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert lazy_adamw.one_cycle_schedule(step, steps, 3e-3) == (group["lr"], group["betas"][0])
        if step < steps - 1:
            optimizer.step()
            schedule.step()


@pytest.mark.slow
@pytest.mark.long  # imports torch in a process of its own, which takes longer than the rest of the file
def test_training_does_not_import_the_torch_compiler():
    """The compiler would take 70 MB and a second in every training process, and is not used."""
    program = """
import sys
import torch
from scalr_prod.translator.estimators.lazy_adamw import LazyAdamW
learner = LazyAdamW({"slope": torch.ones(4)}, {"table": torch.ones(5, 4)}, steps=2, rate=1e-2, decay=0.1)
for _ in range(2):
    values, (place,) = learner.tables["table"].gather(torch.tensor([1, 2]))
    learner.step((values[place] @ learner.dense["slope"]).square().mean())
assert (learner.final_parameters()["slope"] < 1).all(), "it learned"
print(sorted(name for name in sys.modules if name in {"torch._dynamo", "torch._inductor"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_deferred_updates_stay_finite_after_moments_vanish():
    owed = lazy_adamw._DeferredUpdates(decay=0.1, max_steps=2)
    owed._since[0, 2:] = 0.0  # as after a million steps
    owed.add(1e-2, 0.9)
    owed.add(1e-2, 0.9)
    assert np.isfinite(owed.since(np.arange(3))).all()
    assert owed.since(np.array([0]))[0, 1] == 0


def test_deferred_updates_of_many_steps_match_the_full_history(monkeypatch):
    """Whatever the number of steps: the same as where each step reckons with every one before it, to the last digits."""
    steps = 3 * lazy_adamw._MOMENTUM_STEPS
    few, every = lazy_adamw._DeferredUpdates(0.01, steps), lazy_adamw._DeferredUpdates(0.01, steps)
    asked = np.arange(steps + 1)
    for number in range(steps):
        rate, beta_1 = lazy_adamw.one_cycle_schedule(number, steps, 3e-3)
        few.add(rate, beta_1)
        monkeypatch.setattr(lazy_adamw, "_MOMENTUM_STEPS", steps)
        every.add(rate, beta_1)
        monkeypatch.undo()
        if number % 1_500 == 0 or number == steps - 1:
            found = few.since(asked[: number + 2])
            monkeypatch.setattr(lazy_adamw, "_MOMENTUM_STEPS", steps)
            expected = every.since(asked[: number + 2])
            monkeypatch.undo()
            np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-38)
    assert (found != expected).mean() < 0.01
    assert 0 < expected[0, 0] < 1 - 1e-4
    assert few.rates == every.rates
