"""Estimators of other packages: scored exactly, calibrated by name, and part of the version that was trained with them."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.small_translator import equal, make_contexts
from support.translator_log import DAY, SETTINGS, make_log

from scalr_prod.errors import TranslatorError
from scalr_prod.plugins import ESTIMATORS
from scalr_prod.translator import calibration_table as layouts
from scalr_prod.translator import estimators as rooms
from scalr_prod.translator.calibration import CALIBRATION_TABLES, CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT, CalibrationLayout
from scalr_prod.translator.data.contexts import ALL_USERS
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels
from scalr_prod.translator.estimators import scored_estimators
from scalr_prod.translator.estimators.bundled_source import (
    LoadedEstimators,
    bundle_sources,
    load_bundled_estimators,
    load_estimator,
)
from scalr_prod.translator.module import METADATA_KEY, TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets, weights_metadata

NAME = "their_estimator:Together"
SOURCE = '''
"""How often the users of a source item chose a target item, as they are counted."""

import torch


class Together:
    version = 1

    def share(self, pairs):
        return {}

    def fit(self, pairs, shared):
        import numpy as np

        counts = (pairs.source_matrix().T @ pairs.target_matrix()).toarray()
        return {"counts": torch.from_numpy(np.log1p(counts).astype("float32"))}

    def score(self, parameters, batch, log_prior):
        known = (batch.items > 0)[:, :, None]
        return (parameters["counts"][batch.items].to(log_prior.dtype) * known).sum(1)
'''
PRODUCT = """
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import pandas

try:
    import a_module_that_is_not_there
except ImportError:
    a_module_that_is_not_there = None


class Together:
    version = 1

    def share(self, pairs):
        return {"basis": torch.eye(pairs.n_source + 1, dtype=torch.float64)[:, 1:]}

    def fit(self, pairs, shared):
        counts = (pairs.source_matrix().T @ pairs.target_matrix()).toarray()
        return {"target": torch.from_numpy(counts[1:].T.astype("float32")).contiguous()}

    def user(self, parameters, batch):
        return parameters["basis"][batch.items].sum(1)

    def vectors(self, parameters):
        return parameters["target"]
"""

LOCAL = """
def make():
    class Together:
        version = 1
        share = fit = score = make
    return Together


Together = make()
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Write the module of an estimator of another package."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str = SOURCE):
        sys.modules.pop("their_estimator", None)
        (tmp_path / "their_estimator.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("their_estimator", None)


def test_estimators_travel_to_a_worker_that_lacks_their_package(theirs):
    theirs()
    pickled = pickle.dumps(LoadedEstimators.from_names(["linear", NAME]))
    theirs("class Together: ...")
    found = pickle.loads(pickled)  # noqa: S301 - pickled above
    assert list(found) == ["linear", NAME]
    assert found["linear"] is load_estimator("linear")
    assert found[NAME].version == 1


def trained(estimators=("popularity", "linear", NAME)) -> SimpleNamespace:
    torch.set_num_threads(1)
    settings = SETTINGS.model_copy(update={"estimators": estimators})
    pairs = TrainingSlice.from_log(make_log(target_items=60), 90 * DAY, settings)
    fold = pairs.log.fold
    tensors = fit_parameter_sets(pairs, {-1: np.zeros(len(fold), bool), 0: fold == 0, 1: fold == 1}, lambda _: None)
    project = SimpleNamespace(translator=settings, histories=SimpleNamespace(length=10))
    metadata = weights_metadata(project, pairs, 2)
    module = TranslatorModule(tensors | uncalibrated_tables(CalibrationLayout.from_metadata(metadata)), metadata)
    rows = np.flatnonzero((pairs.log.target.time >= 60 * DAY) & (pairs.log.target.time < 90 * DAY))
    contexts, labels = contexts_and_labels(
        pairs.log, rows, source_index=pairs.source_index, target_index=pairs.target_index, fold=ALL_USERS
    )
    tensors |= calibrate(module, CalibrationEvents(contexts, labels, np.zeros(len(rows), bool)), seed=0)
    return SimpleNamespace(pairs=pairs, tensors=tensors, metadata=metadata, module=TranslatorModule(tensors, metadata))


@pytest.mark.parametrize("source", [SOURCE, PRODUCT], ids=["scores", "products"])
def test_a_plugin_is_calibrated_and_its_draws_do_not_depend_on_the_batch(theirs, source):
    theirs(source)
    world = trained(("popularity", "topics", NAME))
    weights = world.module.parameter_set(-1).calibration
    assert weights["mixture"][NAME] > 0
    assert weights[NAME][NAME] > 0
    assert weights["mixture"]["linear"] == weights["topics"][NAME] == 0
    assert world.module.estimators == ["topics", NAME]
    contexts = make_contexts(world, 64, exclude=3)
    whole = world.module.sample(contexts, 5)
    for rows in np.arange(64).reshape(8, 8):
        equal(world.module.sample(contexts.take(rows), 5), whole.take(rows))
    alone = world.module.sample(contexts, 5, component=NAME)
    assert (alone.items != whole.items).any()


def test_draws_with_a_plugin_equal_float64(theirs, monkeypatch):
    """Scores whose size lets float32 move a key by a per cent: every draw is as exact arithmetic makes it."""
    theirs(SOURCE.replace(".sum(1)", ".sum(1) + 100_000"))
    world = trained(("popularity", NAME))
    contexts = make_contexts(world, 300)
    found = world.module.sample(contexts, 4)
    from scalr_prod.translator import module as module_file

    real = module_file.sample_topk
    monkeypatch.setattr(module_file, "sample_topk", lambda *arguments: real(*arguments[:-1], torch.float64))
    exact = world.module.sample(contexts, 4)
    np.testing.assert_array_equal(found.items, exact.items)


def test_a_version_loads_after_a_built_in_estimator_was_added(monkeypatch):
    world = trained(("popularity", "linear"))
    assert "members" not in world.metadata
    contexts = make_contexts(world, 40)
    before = world.module.sample(contexts, 4)
    former = world.module.parameter_set(-1).calibration
    ours = ("newest", *rooms.BUILTIN_ESTIMATORS)
    for room in (rooms, layouts):
        monkeypatch.setattr(room, "BUILTIN_ESTIMATORS", ours)
    module = TranslatorModule(world.tensors, world.metadata)
    found = module.parameter_set(-1).calibration
    assert {member: {name: found[member][name] for name in row} for member, row in former.items()} == former
    assert not any(row["newest"] for row in found.values())
    equal(module.sample(contexts, 4), before)
    assert CalibrationLayout.from_estimators(()).components[2] == "newest"
    assert json.loads(CalibrationLayout.from_estimators(()).to_metadata()["members"])[2] == "newest", (
        "rows other than the former ones are named"
    )


def test_tables_are_read_by_name():
    stored = CalibrationLayout(("popularity", "mixture"), ("days_20", "count"))
    found = stored.weights_by_name(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), BUILTIN_LAYOUT)
    assert (found["mixture"]["count"], found["mixture"]["days_20"], found["popularity"]["count"]) == (4.0, 3.0, 2.0)
    assert not any(found["linear"].values())
    assert tuple(found) == BUILTIN_LAYOUT.components
    with pytest.raises(ValueError, match="weighs their_own, which"):
        CalibrationLayout(("mixture",), ("their_own",)).weights_by_name(torch.ones(1, 1), BUILTIN_LAYOUT)


def test_metadata_of_built_in_estimators_is_unchanged():
    """Their file's bytes are part of a run's id."""
    described = CalibrationLayout.from_estimators(("popularity", "linear")).to_metadata()
    assert set(described) == {"weights"}
    assert json.loads(described["weights"])[:6] == ["frequency", "topics", "linear", "factorisation", "sequential", "count"]


def test_a_bundled_plugin_scores_the_same_after_edit_or_removal(theirs, tmp_path):
    theirs()
    world = trained()
    (one,) = bundle_sources(["popularity", NAME]).values()
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / one.file_name).write_bytes(one.source)
    theirs("raise RuntimeError")
    travelled = load_bundled_estimators(folder, json.loads(world.metadata["carried"]))
    module = TranslatorModule(world.tensors, world.metadata, bundled_estimators=travelled)
    contexts = make_contexts(world, 30)
    equal(module.sample(contexts, 4), world.module.sample(contexts, 4))
    (folder / one.file_name).write_bytes(one.source + b"\n")
    with pytest.raises(ValueError, match="checksum mismatch"):
        load_bundled_estimators(folder, json.loads(world.metadata["carried"]))


def test_a_bundled_plugin_runs_only_from_a_trusted_folder(theirs, tmp_path):
    theirs(SOURCE + f"\n\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    world = trained()
    (one,) = bundle_sources(["popularity", NAME]).values()
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / one.file_name).write_bytes(one.source.replace(b"'w').close()", b"'w').close() "))
    changed = hashlib.sha256((folder / one.file_name).read_bytes()).hexdigest()
    described = {name: facts | {"sha256": changed} for name, facts in json.loads(world.metadata["carried"]).items()}
    metadata = world.metadata | {"carried": json.dumps(described)}
    tensors = {name: tensor.contiguous() for name, tensor in world.tensors.items()}
    save_file(tensors, folder / "translator.safetensors", {METADATA_KEY: json.dumps(metadata)})
    facts = {"version": 1, "sha256": hashlib.sha256((folder / "translator.safetensors").read_bytes()).hexdigest()}
    (tmp_path / "ran").unlink()
    for manifest, trusted in ((facts | {"carried": described}, False), (facts, True)):
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(TranslatorError, match=r"does not run|name different"):
            TranslatorModule.load(folder, trusted=trusted)
    assert not (tmp_path / "ran").exists()
    (folder / "manifest.json").write_text(json.dumps(facts | {"carried": described}))
    module = TranslatorModule.load(folder, trusted=True)
    assert (tmp_path / "ran").exists()
    contexts = make_contexts(world, 30)
    equal(module.sample(contexts, 4), world.module.sample(contexts, 4))


def test_training_uses_the_current_source_file(theirs):
    theirs()
    first = load_estimator(NAME)
    theirs(SOURCE.replace("version = 1", "version = 2"))
    sys.modules["their_estimator"] = SimpleNamespace(Together=type(first), __name__="their_estimator")
    sys.modules.pop("their_estimator")
    assert (first.version, load_estimator(NAME).version) == (1, 2)
    assert bundle_sources([NAME])[NAME].file_name != bundle_sources([NAME])[NAME].sha256
    assert load_estimator(NAME) is not first


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SOURCE.replace("import torch", "import torch\nimport pandas as pd"), "imports pandas at module level"),
        (SOURCE.replace("import torch", "import torch\nfrom scipy import sparse"), "imports scipy"),
        (SOURCE.replace("import torch", "import torch\nfrom scalr_prod.lake import Lake"), "imports scalr_prod.lake"),
        (SOURCE.replace("import torch", "import torch\nfrom scalr_prod import lake"), "imports scalr_prod.lake"),
        (SOURCE.replace("version = 1", "edition = 1"), "has no attribute version"),
        (SOURCE.replace("def score", "def scores"), r"has no method score\(parameters, batch, log_prior\)"),
        (SOURCE.replace("def score", "def user"), r"has no method vectors\(parameters\)"),
        (SOURCE.replace("class Together", "class Other"), "there is no estimator 'their_estimator:Together'"),
        (LOCAL, "top level of a file"),
        (SOURCE + "\n)", "cannot be imported: SyntaxError"),
        ("raise RuntimeError('broken')", "cannot be imported: RuntimeError: broken"),
        ("if __name__ != 'their_estimator':\n    raise SystemExit(0)\n" + SOURCE, "does not load on its own: SystemExit"),
    ],
)  # fmt: skip
def test_an_unusable_plugin_is_refused_before_fitting(theirs, source, said):
    theirs(source)
    with pytest.raises(TranslatorError, match=said):
        bundle_sources(["popularity", NAME])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SOURCE.replace("np.log1p(counts)", "np.log(counts)"), "not finite"),
        (SOURCE.replace(".sum(1)", ".sum(1).float()"), "returned torch.float32"),
        (SOURCE.replace(".sum(1)", ".sum(1)[:, :2]"), r"float64 \[\d+, 2\]"),
        (SOURCE.replace("return {}", "return {}['x']"), "could not be fitted: KeyError"),
        (SOURCE.replace("np.log1p(counts)", "np.nothing(counts)"), "could not be fitted: AttributeError"),
        (SOURCE.replace('{"counts": torch', '{"counts": 3, "x": torch'), "could not be fitted"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_failing_plugin_is_named_in_the_error(theirs, source, said):
    theirs(source)
    with pytest.raises(TranslatorError, match=said) as caught:
        trained()
    assert NAME in str(caught.value)


def test_reserved_plugin_names_are_refused(theirs, tmp_path, monkeypatch):
    theirs()
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    points = "".join(f"{name} = their_estimator:Together\n" for name in ("count", "together"))
    (info / "entry_points.txt").write_text(f"[scalr_prod.estimators]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ESTIMATORS.find_problem("count") is None
    with pytest.raises(TranslatorError, match="an estimator cannot be named 'count'"):
        bundle_sources(["count"])
    assert set(bundle_sources(["together"])) == {"together"}
    assert scored_estimators(["together", "sequential", "popularity", "linear"]) == ("linear", "sequential", "together")
    assert CALIBRATION_TABLES[0].startswith("shared/")
