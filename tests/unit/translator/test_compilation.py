"""Compiled code: its cache, and machines on which nothing compiles."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from scalr_prod.translator.kernels import compile_cache, item_block
from scalr_prod.translator.kernels.compilation import compiled


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A cache folder for compiled code, not created yet."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compile_cache.folder.cache_clear()
    yield tmp_path
    compile_cache.folder.cache_clear()


def kept(base) -> list[str]:
    return sorted(file.name.rpartition(".")[2] for file in base.rglob("*.nb[ci]"))


def add(function) -> float:
    logits = np.zeros((1, 4), np.float32)
    function(logits, np.full((1, 4), np.e, np.float32), 3, np.float32(2))
    return float(logits.sum())


def test_functions_are_compiled_once_and_again_after_damage(base):
    assert add(compiled(item_block.add_log_products.py_func)) == pytest.approx(6)
    assert kept(base) == ["nbc", "nbi"]
    again = compiled(item_block.add_log_products.py_func)
    assert add(again) == pytest.approx(6)
    assert sum(again.stats.cache_hits.values()) == 1
    for file in base.rglob("*.nbi"):
        file.write_bytes(b"")  # as after a loss of power
    damaged = compiled(item_block.add_log_products.py_func)
    with pytest.raises(EOFError):
        add(damaged)
    compile_cache.clear()
    assert kept(base) == []
    assert add(damaged) == pytest.approx(6)
    assert kept(base) == ["nbc", "nbi"]


def test_cache_folder_depends_on_the_package_and_is_private(base, monkeypatch):
    place = compile_cache.folder()
    assert place is not None
    assert place.parent == base / "scalr_prod"
    assert place.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(compile_cache.metadata, "version", lambda name: f"another {name}")
    compile_cache.folder.cache_clear()
    other = compile_cache.folder()
    assert other is not None
    assert other != place


def no_folder(caplog) -> str:
    compile_cache.folder.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "scalr_prod"):
        assert compile_cache.folder() is None
    (record,) = caplog.records
    return record.getMessage()


def test_an_unsafe_folder_is_not_used(base, monkeypatch, caplog):
    place = compile_cache.folder()
    for shared in (place, place.parent):
        shared.chmod(0o770)
        assert f"{shared} is not a folder that only this user can write to" in no_folder(caplog)
        shared.chmod(0o700)
    owner = place.stat().st_uid
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: owner + 1)
        assert "not a folder that only this user can write to" in no_folder(caplog)
    place.rmdir()
    elsewhere = base / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    place.symlink_to(elsewhere)
    assert "not a folder that only this user can write to" in no_folder(caplog)


def test_without_a_writable_folder_each_process_compiles(base, monkeypatch, caplog):
    (base / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(base / "file"))
    assert "compiled code is not cached" in no_folder(caplog)
    assert add(compiled(item_block.add_log_products.py_func)) == pytest.approx(6)
    assert kept(base) == []


def test_folders_of_other_package_versions_are_deleted_after_a_month(base):
    place = compile_cache.folder()
    former, lately = "f" * 16, "a" * 16
    for name, days in ((former, 31), (lately, 29)):
        (place.parent / name).mkdir()
        (place.parent / name / "run.nbc").touch()
        then = time.time() - days * 86_400
        os.utime(place.parent / name, (then, then))
    os.utime(place, (0, 0))  # this one is asked for now
    compile_cache.folder.cache_clear()
    assert compile_cache.folder() == place
    assert sorted(other.name for other in place.parent.iterdir()) == sorted([place.name, lately])


def test_only_cache_folders_are_deleted(base):
    place = compile_cache.folder()
    ours, theirs = place.parent / ("0" * 16), place.parent / "lake"
    for old in (ours, theirs):
        old.mkdir()
        os.utime(old, (0, 0))
    compile_cache._drop_unused(place)
    assert (ours.exists(), theirs.exists()) == (False, True)


_TRAIN_AND_SCORE = """
import hashlib
import numpy as np
import torch
from support.translator_log import DAY, METADATA, SETTINGS, calibration, make_log
from scalr_prod.translator.data.contexts import ALL_USERS, Contexts
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets

def show(name, array):
    print(name, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())

torch.set_num_threads(1)
pairs = TrainingSlice.from_log(make_log(target_items=60), 90 * DAY, SETTINGS)
tensors = fit_parameter_sets(pairs, {ALL_USERS: np.zeros(len(pairs.log.fold), bool)}, lambda _: None)
for name, tensor in sorted(tensors.items()):
    show(name, tensor.numpy())
module = TranslatorModule(tensors | calibration(), METADATA | {"n_source": str(pairs.n_source), "folds": "0"})
random, rows = np.random.default_rng(0), 500
contexts = Contexts(
    history_items=random.integers(0, pairs.n_source + 1, (rows, 8)).astype(np.int32),
    history_ages=random.exponential(30, (rows, 8)).astype(np.float32),
    history_end=np.full(rows, 100 * DAY),
    event_time=np.full(rows, 100 * DAY + 1),
    fold=np.full(rows, ALL_USERS, np.int32),
    noise_key=np.arange(rows),
    exclude=np.empty((rows, 0), np.int32),
)
samples = module.sample(contexts, 4)
for name in ("items", "probabilities", "prior"):
    show(name, getattr(samples, name))
"""


@pytest.mark.long
def test_code_from_the_cache_rounds_as_the_code_that_was_just_compiled(tmp_path):
    """Else the first run on a machine has other probabilities than the second, by one unit in the last place."""
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    compiling, loading = (
        subprocess.run(
            [sys.executable, "-c", _TRAIN_AND_SCORE], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert "probabilities" in compiling
    assert compiling == loading
