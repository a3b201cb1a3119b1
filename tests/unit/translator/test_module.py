"""The module's distributions, draws without replacement, and independence of draws from the batch."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.examples import sweep
from support.small_translator import EXECUTIONS, equal, make_contexts, make_world
from support.translator_log import DAY, calibration_table

from scalr_prod.errors import InvalidRequest, TranslatorError, TranslatorNotFound
from scalr_prod.translator import counter_rng
from scalr_prod.translator import module as module_file
from scalr_prod.translator.calibration import CALIBRATION_TABLES
from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT
from scalr_prod.translator.data.contexts import ALL_USERS, COLD_USERS, NO_ITEM, Contexts, Samples
from scalr_prod.translator.kernels import executor, self_test
from scalr_prod.translator.module import METADATA_KEY, TranslatorModule


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    return make_world()


@pytest.mark.parametrize("name", ["days_1", "backoff"])
def test_an_incompatible_version_is_refused(world, name):
    """A later one may weigh what this one does not know; a former one mixed in a share of popularity."""
    other = [*BUILTIN_LAYOUT.weights[:-1], name]
    with pytest.raises(ValueError, match=name):
        TranslatorModule(world.tensors, world.metadata | {"weights": json.dumps(other)})


def test_traits_modify_the_mixture_only(world):
    contexts = make_contexts(world, 40)
    straight = calibration_table()
    straight[:, [place for place, name in enumerate(BUILTIN_LAYOUT.weights) if "_by_" in name]] = 0
    plain = TranslatorModule(world.tensors | dict.fromkeys(CALIBRATION_TABLES, straight), world.metadata)
    every = np.tile(np.arange(world.pairs.n_target, dtype=np.int32), (40, 1))
    for member in BUILTIN_LAYOUT.components:
        (found, prior), (expected, same) = (module.score(contexts, every, component=member) for module in (world.module, plain))
        np.testing.assert_array_equal(prior, same)
        assert (np.abs(found - expected).max() > 0.01) == (member == "mixture")


def test_probabilities_sum_to_one_over_the_items_seen_before(world):
    contexts = make_contexts(world, 50)
    every = np.tile(np.arange(world.pairs.n_target, dtype=np.int32), (50, 1))
    eligible = world.pairs.first_seen[None] < contexts.event_time[:, None]
    for member in BUILTIN_LAYOUT.components:
        p, prior = world.module.score(contexts, every, component=member)
        assert (p[~eligible] == 0).all()
        assert (prior[~eligible] == 0).all()
        for found in (p, prior):
            np.testing.assert_allclose(found.sum(1)[eligible.any(1)], 1, rtol=1e-5)
        assert (p[eligible] > 0).all()


def test_draws_are_eligible_distinct_and_not_excluded(world):
    contexts = make_contexts(world, 300, exclude=6)
    drawn = world.module.sample(contexts, 5)
    for row, items in enumerate(drawn.items):
        there = items[items != NO_ITEM]
        assert len(set(there)) == len(there)
        assert (world.pairs.first_seen[there] < contexts.event_time[row]).all()
        assert not set(there) & set(contexts.exclude[row])
        possible = int((world.pairs.first_seen < contexts.event_time[row]).sum())
        assert len(there) >= min(5, possible - 6)


def test_missing_draws_are_no_item(world):
    contexts = replace(make_contexts(world, 4), event_time=np.full(4, world.pairs.first_seen[0] + 1))
    possible = int((world.pairs.first_seen <= world.pairs.first_seen[0]).sum())
    drawn = world.module.sample(contexts, possible + 3)
    assert (drawn.items[:, :possible] >= 0).all()
    assert (drawn.items[:, possible:] == NO_ITEM).all()
    assert (drawn.probabilities[:, possible:] == 0).all()
    before = replace(contexts, event_time=np.full(4, world.pairs.first_seen[0]))
    assert (world.module.sample(before, 2).items == NO_ITEM).all()
    wide = world.module.sample(make_contexts(world, 2), world.pairs.n_target + 5)
    assert wide.items.shape == (2, world.pairs.n_target + 5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_match_probabilities(world, temperature):
    """Chi-squared of 20 000 first draws against P^(1/T); the keys are fixed, so this either holds or does not."""
    draws = 20_000
    one = replace(make_contexts(world, 1, seed=3), event_time=np.array([100 * DAY]))
    many = replace(one.take(np.zeros(draws, dtype=np.int64)), noise_key=np.arange(draws))
    drawn = world.module.sample(many, 1, temperature=temperature)
    every = np.arange(world.pairs.n_target, dtype=np.int32)[None]
    p = world.module.score(one, every)[0][0].astype(float) ** (1 / temperature)
    expected = draws * p / p.sum()
    found = np.bincount(drawn.items[:, 0], minlength=len(p))
    large = expected >= 5
    tail = max(expected[~large].sum(), 1e-9)
    statistic = ((found - expected)[large] ** 2 / expected[large]).sum() + (found[~large].sum() - tail) ** 2 / max(tail, 5)
    freedom = large.sum()
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_second_draws_follow_the_renormalised_distribution(world):
    draws = 20_000
    one = replace(make_contexts(world, 1, seed=4), event_time=np.array([100 * DAY]))
    many = replace(one.take(np.zeros(draws, dtype=np.int64)), noise_key=np.arange(draws) + 10**9)
    drawn = world.module.sample(many, 2).items
    p = world.module.score(one, np.arange(world.pairs.n_target, dtype=np.int32)[None])[0][0].astype(float)
    first = int(np.argmax(p))
    rest = drawn[drawn[:, 0] == first, 1]
    expected = len(rest) * np.delete(p, first) / (1 - p[first])
    found = np.delete(np.bincount(rest, minlength=len(p)), first)
    large = expected >= 5
    statistic = ((found - expected)[large] ** 2 / expected[large]).sum()
    assert len(rest) > 500
    assert statistic < large.sum() + 4 * (2 * large.sum()) ** 0.5


def test_noise_is_uniform_and_independent_of_neighbouring_keys():
    words = counter_rng.key_words(np.arange(400))
    variates = torch.exp(-counter_rng.exponential(words, counter_rng.item_words(500), torch.float64)).numpy()
    counts = np.histogram(variates, bins=50, range=(0, 1))[0]
    assert ((counts - 4000) ** 2 / 4000).sum() < 49 + 4 * 98**0.5
    for one, other in ((variates[:-1], variates[1:]), (variates[:, :-1], variates[:, 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01
    assert len(np.unique(variates)) > 0.9999 * variates.size


@pytest.mark.parametrize("step", [1, 7, 64])
def test_draws_do_not_depend_on_the_batch(world, step):
    contexts = make_contexts(world, 192, exclude=3)
    whole = world.module.sample(contexts, 4, min_lift=1.0)
    parts = [world.module.sample(contexts.slice(at, at + step), 4, min_lift=1.0) for at in range(0, 192, step)]
    equal(whole, Samples.concat(parts))
    order = np.random.default_rng(1).permutation(192)
    equal(whole.take(order), world.module.sample(contexts.take(order), 4, min_lift=1.0))


def test_draws_do_not_depend_on_padding(world):
    contexts = make_contexts(world, 40, exclude=2)
    wider = Contexts.concat([contexts, replace(make_contexts(world, 1, exclude=9))]).slice(0, 40)
    equal(world.module.sample(contexts, 3), world.module.sample(wider, 3))


def test_draws_do_not_depend_on_the_number_of_threads(world):
    contexts = make_contexts(world, 128)
    one = world.module.sample(contexts, 4)
    torch.set_num_threads(2)
    try:
        equal(one, world.module.sample(contexts, 4))
    finally:
        torch.set_num_threads(1)


def test_progress_is_reported_for_each_group_of_rows(world, monkeypatch):
    """A server uses it to detect that a long batch makes progress."""
    monkeypatch.setattr(module_file, "_CHUNK", 4 * world.module.n_target)
    monkeypatch.setattr(executor, "MAX_CONTEXTS", 4)
    for threads, name in itertools.product((1, 3), EXECUTIONS):
        module, told = TranslatorModule(world.tensors, world.metadata, threads=threads, reference=name == "reference"), []
        module.on_progress = lambda told=told: told.append(None)
        contexts = replace(make_contexts(world, 30), fold=np.full(30, -1, dtype=np.int32))
        module.sample(contexts, 3)
        assert len(told) == 8
        module.score(contexts, np.zeros((30, 1), dtype=np.int32))
        assert len(told) == 16


def test_a_low_temperature_gives_the_most_probable(world):
    contexts = make_contexts(world, 60)
    every = np.tile(np.arange(world.pairs.n_target, dtype=np.int32), (60, 1))
    p = world.module.score(contexts, every)[0]
    drawn = world.module.sample(contexts, 3, temperature=1e-4)
    best = -np.sort(-p, axis=1)[:, :3]
    np.testing.assert_allclose(np.where(drawn.items >= 0, drawn.probabilities, 0), best, rtol=1e-3)


def test_min_lift_removes_draws_that_popularity_explains(world):
    contexts = make_contexts(world, 200)
    free, kept = world.module.sample(contexts, 4), world.module.sample(contexts, 4, min_lift=1.5)
    low = free.probabilities < 1.5 * free.prior
    np.testing.assert_array_equal(kept.items, np.where(low, NO_ITEM, free.items))
    np.testing.assert_allclose(kept.probabilities, free.probabilities, rtol=1e-5)
    assert 0.05 < low.mean() < 0.95


def test_scores_equal_the_probabilities_of_draws(world):
    contexts = make_contexts(world, 100)
    drawn = world.module.sample(contexts, 4)
    p, prior = world.module.score(contexts, drawn.items)
    np.testing.assert_allclose(p, drawn.probabilities, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(prior, drawn.prior, rtol=1e-5, atol=1e-9)
    nothing = np.full((100, 2), NO_ITEM, dtype=np.int32)
    assert not world.module.score(contexts, nothing)[0].any()


def test_each_row_uses_its_own_fold(world):
    contexts = make_contexts(world, 30)
    mixed = world.module.score(contexts, np.zeros((30, 1), dtype=np.int32))[0]
    for fold in (-1, 0, 1):
        alone = replace(contexts, fold=np.full(30, fold, dtype=np.int32))
        only = world.module.score(alone, np.zeros((30, 1), dtype=np.int32))[0]
        np.testing.assert_allclose(mixed[contexts.fold == fold], only[contexts.fold == fold], rtol=1e-5)
        assert not np.allclose(mixed[contexts.fold != fold], only[contexts.fold != fold])
    with pytest.raises(InvalidRequest, match="has fold 2; this translator has 2"):
        world.module.sample(replace(contexts, fold=np.full(30, 2, dtype=np.int32)), 1)


def test_cold_users_use_all_users_parameters_with_held_out_weights(world):
    other = calibration_table() * 0.5
    module = TranslatorModule(world.tensors | {CALIBRATION_TABLES[1]: other}, world.metadata)
    alike = TranslatorModule(world.tensors | {CALIBRATION_TABLES[0]: other}, world.metadata)
    contexts = replace(make_contexts(world, 30), fold=np.full(30, COLD_USERS, dtype=np.int32))
    everybody = replace(contexts, fold=np.full(30, ALL_USERS, dtype=np.int32))
    found, want = module.sample(contexts, 5), alike.sample(everybody, 5)
    equal(found, want)
    assert not np.array_equal(found.probabilities, module.sample(everybody, 5).probabilities)
    with pytest.raises(InvalidRequest, match="has fold -3"):
        module.sample(replace(contexts, fold=np.full(30, -3, dtype=np.int32)), 1)


@pytest.mark.parametrize(("k", "temperature"), [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_invalid_requests_are_refused(world, k, temperature):
    with pytest.raises(InvalidRequest, match="must be ≥ 1"):
        world.module.sample(make_contexts(world, 1), k, temperature=temperature)


def test_an_empty_batch_gives_an_empty_result(world):
    empty = make_contexts(world, 4).slice(0, 0)
    assert world.module.sample(empty, 3).items.shape == (0, 3)
    assert world.module.score(empty, np.zeros((0, 2), dtype=np.int32))[0].shape == (0, 2)


@pytest.fixture
def folder(world, tmp_path) -> Path:
    save(tmp_path, world.tensors, world.metadata)
    return tmp_path


def save(folder: Path, tensors: dict, metadata: dict) -> None:
    import hashlib

    from safetensors.torch import save_file

    path = folder / "translator.safetensors"
    described = {METADATA_KEY: json.dumps(metadata)}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, described)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"sha256": digest}))


def test_a_loaded_module_equals_the_saved_one(world, folder):
    contexts = make_contexts(world, 50, exclude=2)
    loaded = TranslatorModule.load(folder)
    one, other = world.module.sample(contexts, 4), loaded.sample(contexts, 4)
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_a_damaged_file_is_refused(folder):
    path = folder / "translator.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(TranslatorError, match="checksum") as caught:
        TranslatorModule.load(folder)
    assert "scalr translator train" in str(caught.value)


def test_a_version_with_former_popularity_tensors_is_refused(world, tmp_path):
    """Former releases stored other tensors."""
    former = {name: tensor for name, tensor in world.tensors.items() if name != "shared/popularity/next"}
    save(tmp_path, former | {"shared/popularity/instants": torch.zeros(3, dtype=torch.int64)}, world.metadata)
    with pytest.raises(TranslatorError, match=r"shared/popularity/next.*another release") as caught:
        TranslatorModule.load(tmp_path)
    assert "scalr translator train" in str(caught.value)


def test_missing_and_damaged_files_raise_different_errors(folder, tmp_path):
    with pytest.raises(TranslatorNotFound, match="folder has no translator"):
        TranslatorModule.load(tmp_path / "elsewhere")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(TranslatorError, match="cannot be used"):
        TranslatorModule.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("lacks", sweep(["numba", "a compiler"], keep=1))
def test_the_module_imports_only_torch_numpy_and_safetensors(world, folder, lacks):
    """Nothing else has to be there: without numba, which the serving environment has, the plain code answers, and says so once."""
    more = {"numba"} if lacks == "numba" else set()
    program = f"""
        import sys
        refused = {{"pandas", "pyarrow", "scipy", "pydantic", "feast", "dask", "sqlalchemy", "duckdb", "deltalake", "rich"}} | {more}
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in refused:
                    raise ImportError(f"{{name}} is not in the serving environment")
        sys.meta_path.insert(0, Refuse())
        import numpy as np
        from scalr_prod.translator.data.contexts import Contexts
        from scalr_prod.translator.module import METADATA_KEY, TranslatorModule
        contexts = Contexts(
            np.ones((2, 3), np.int32), np.zeros((2, 3), np.float32), np.full(2, 2**59), np.full(2, 2**60),
            np.array([-1, 0], np.int32), np.arange(2), np.empty((2, 0), np.int32),
        )
        for _ in range(2):
            module = TranslatorModule.load({str(folder)!r})
            module.warm_up()
            print(*module.sample(contexts, 2).items.ravel())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | ({"NUMBA_DISABLE_JIT": "1"} if lacks == "a compiler" else {}),
    )
    assert done.returncode == 0, done.stderr
    contexts = Contexts(
        np.ones((2, 3), np.int32),
        np.zeros((2, 3), np.float32),
        np.full(2, 2**59),
        np.full(2, 2**60),
        np.array([-1, 0], np.int32),
        np.arange(2),
        np.empty((2, 0), np.int32),
    )
    expected = " ".join(map(str, world.module.sample(contexts, 2).items.ravel()))
    assert done.stdout.splitlines() == [expected] * 2
    assert done.stderr.count("several times slower") == 1
    assert ("numba is not" if lacks == "numba" else "NUMBA_DISABLE_JIT is set") in done.stderr


def test_without_compiled_code_the_reference_is_used(world, monkeypatch, caplog):
    """Whatever the compiler raises: it was tried again with nothing kept on disk, and one warning says why it is slow."""
    tries = []

    def fail(self, *arguments):
        tries.append(self)
        raise RuntimeError("no such processor")

    monkeypatch.setattr(self_test.FusedExecutor, "draw", fail)
    monkeypatch.setattr(self_test.compile_cache, "clear", lambda: tries.append("emptied"))
    module_file._warn_not_compiled.cache_clear()
    contexts, expected = make_contexts(world, 20), world.modules["reference"].sample(make_contexts(world, 20), 3)
    for _ in range(2):
        found = TranslatorModule(world.tensors, world.metadata).sample(contexts, 3)
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert [one == "emptied" for one in tries] == [False, True, False] * 2
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "RuntimeError: no such processor" in warning.getMessage()
    module_file._warn_not_compiled.cache_clear()
