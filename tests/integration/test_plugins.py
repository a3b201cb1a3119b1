"""A log reader, a gate rule, a model and an estimator from outside of the package: one file each, and the pipeline runs with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from support import warm
from support.lakes import mark_home

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import TranslatorError
from scalr_prod.evaluation import EvaluationRequest, evaluate
from scalr_prod.generation import generate, plan_run
from scalr_prod.lake import Lake
from scalr_prod.ledger import run_folder
from scalr_prod.schemas import Table
from scalr_prod.serving import ensure_serving
from scalr_prod.translator import load_version, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand")]
#: A whole run with another kind of plug-in; units test what each may be, and one run here finds its plug-in.
long = pytest.mark.long

LEAN = """
estimators = ["popularity", "linear"]
[generation]
partitions = 1
[compute]
workers = 1
[serving]
scorer = "local"
threads = 1
[quality]
min_information = 0
max_bucket_distance = 1.0
"""


SCALR = Path(sys.executable).with_name("scalr")


def run(config: Path, outside: Path) -> tuple[int, dict, str]:
    """`scalr run` with a folder on its Python path: exit code, the report, what it says on stderr."""
    done = warm.run([SCALR, "run", "--config", config, "--json"], env={**os.environ, "PYTHONPATH": str(outside)})
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Write a module into a folder of its own on the Python path."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    written: list[str] = []

    def write(name: str, text: str) -> Path:
        written.append(name)
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        return folder

    yield write
    for name in written:
        sys.modules.pop(name, None)


@long
def test_a_log_reader(make_project, tmp_path, outside):
    folder = outside(
        "xml_logs",
        '''
        """Logs of one XML element an event."""

        import xml.etree.ElementTree as ElementTree

        import pyarrow as pa

        from scalr_prod.ingest import Batch


        class XmlReader:
            def read(self, source):
                events = list(ElementTree.parse(source.location).getroot())
                names = sorted({name for event in events for name in event.attrib})
                columns = [pa.array([event.get(name) for event in events]) for name in names]
                yield Batch(source.location, 0, pa.RecordBatch.from_arrays(columns, names), untyped=True)
        ''',
    )
    settings = make_project(tmp_path / "logs", LEAN, users=100)
    frame = pd.read_parquet(tmp_path / "logs" / "t.parquet")
    rows = frame.assign(timestamp=frame["timestamp"].map(lambda t: t.isoformat()), extra="x").to_dict("records")
    events = "".join("<event " + " ".join(f'{key}="{value}"' for key, value in row.items()) + "/>" for row in rows)
    (tmp_path / "logs" / "t.xml").write_text(f"<log>{events}</log>")
    config = tmp_path / "logs" / "scalr.toml"
    config.write_text(config.read_text().replace('events = "t.parquet"', 'events = "t.xml"\nformat = "xml_logs:XmlReader"'))
    code, report, said = run(config, folder)
    assert code == 0, said
    read = report["stages"]["ingest"]["target"]
    assert (read["rows_read"], read["users_read"]) == (len(frame), frame["user_id"].nunique())
    assert report["stages"]["publish"]["rows"] > 0
    kept = Lake.open(settings).read(Table.TARGET_EVENTS, columns=["user_id", "item_id", "event_timestamp"]).to_pandas()
    order = ["user_id", "event_timestamp", "item_id"]
    expected = frame.rename(columns={"timestamp": "event_timestamp"})[kept.columns]
    pd.testing.assert_frame_equal(
        kept.sort_values(order, ignore_index=True), expected.sort_values(order, ignore_index=True), check_dtype=False
    )


@long
def test_a_gate_rule(make_project, tmp_path, outside):
    folder = outside(
        "house_rules",
        '''
        """Nobody is proposed an item at night, and no item takes all."""

        from scalr_prod.quality import FigureRule, RowRule


        class HouseRules:
            version = 4

            def rules(self, run):
                largest = "SELECT max(n) / sum(n) FROM (SELECT count(*) AS n FROM judged WHERE accepted GROUP BY item_id)"
                return [
                    RowRule("not_at_night", "no event before 6 o'clock", "hour(c.event_timestamp AT TIME ZONE 'UTC') >= 6"),
                    FigureRule("no_item_takes_all", "no item has over half of the events", "largest", high=0.5, query=largest),
                ]
        ''',
    )
    quality = 'rules = ["house_rules:HouseRules"]\npolicy = "quarantine"\nmax_quarantine_share = 1.0\n'
    settings = make_project(tmp_path / "logs", LEAN + quality, users=100)
    code, report, said = run(tmp_path / "logs" / "scalr.toml", folder)
    assert code == 0, said
    gate = report["stages"]["validate"]
    outcomes = {rule["rule"]: rule for rule in gate["rules"]}
    assert outcomes["not_at_night"]["failed"] == gate["quarantined"] > 0
    assert outcomes["no_item_takes_all"]["success"]
    assert 0 < outcomes["no_item_takes_all"]["observed"] == gate["figures"]["largest"] <= 0.5
    assert gate["rule_set"]["house_rules:HouseRules"].startswith("4+")
    assert (
        json.loads((run_folder(settings.home, report["run_id"]) / "gate.json").read_text())["inputs"]["rules"]
        == gate["rule_set"]
    )
    published = Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    assert len(published) == gate["accepted"] > 0
    assert (published["event_timestamp"].dt.hour >= 6).all()


@long
def test_a_model(make_project, tmp_path, outside):
    outside(
        "my_models",
        '''
        """What users of the same first letter chose, for want of a better idea."""

        import numpy as np

        from scalr_prod.evaluation import Hyperparameter


        class Popular:
            search_space = (Hyperparameter("power", (1.0, 0.5), high=1.0),)

            def __init__(self, power=1.0):
                self.power = power

            def fit(self, events, *, seed):
                self.counts = (events.popularity() ** self.power).astype(np.float32)

            def score(self, users):
                return np.tile(self.counts, (len(users), 1))
        ''',
    )
    downstream = (
        '[downstream]\nmodels = ["my_models:Popular"]\nseeds = 1\nvolumes = [2]\ntemperatures = [0.5]\nweights = [0.3]\n'
    )
    settings = make_project(tmp_path / "logs", LEAN + downstream)
    report = evaluate(settings, EvaluationRequest(cutoff=datetime(2024, 6, 1, tzinfo=UTC), arms=("real", "real+scalr")))
    assert {row["model"] for row in report.to_json()["arms"]} == {"my_models:Popular"}
    rows = {row["name"]: row for row in report.to_json()["arms"]}
    assert rows["real"]["metrics"]["ndcg"] > 0
    assert report.verdict["models"][0]["model"] == "my_models:Popular"
    tried = report.choices["my_models:Popular"]["arms"]["real"]
    assert set(tried["options"]) == {"power"}


ESTIMATOR = '''
"""How often the users of a source item chose a target item, as they are counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Together:
    depth: int = 20
    version = 1

    def share(self, pairs):
        return {}

    def fit(self, pairs, shared):
        import numpy as np
        from scipy import sparse

        counts = sparse.csr_matrix(pairs.source_matrix().T @ pairs.target_matrix()).toarray()
        return {"counts": torch.from_numpy(np.log1p(counts).astype("float32"))}

    def score(self, parameters, batch, log_prior):
        items = batch.items[:, -self.depth :]
        return (parameters["counts"][items].to(log_prior.dtype) * (items > 0)[:, :, None]).sum(1)
'''


@pytest.fixture
def together(outside):
    """An estimator that another distribution brings, as pip installs it."""
    folder = outside("together", ESTIMATOR)
    info = folder / "scalr_together-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scalr-together\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scalr_prod.estimators]\ntogether = together:Together\n")
    return folder / "together.py"


def published(settings) -> pd.DataFrame:
    rows = Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    return rows.sort_values("event_id", ignore_index=True)


@long
@pytest.mark.triton
def test_an_estimator(make_project, tmp_path, together, monkeypatch):
    """By its entry point, in the workers' own processes, in a real Triton, and after it was uninstalled."""
    monkeypatch.delenv("SCALR_COMPUTE__DASK")
    lean = LEAN.replace('["popularity", "linear"]', '["popularity", "linear", "together"]')
    settings = make_project(tmp_path / "logs", lean)
    code, report, said = run(tmp_path / "logs" / "scalr.toml", together.parent)
    assert code == 0, said
    metrics = report["stages"]["translator"]["metrics"]["all"]
    assert set(metrics) == {"mixture", "popularity", "linear", "together"}
    assert metrics["together"]["nll"] < metrics["popularity"]["nll"]
    rows = published(settings)
    assert len(rows) == report["stages"]["publish"]["rows"] > 0
    first = load_version(settings)
    assert [path.read_text() for path in first.path.glob("estimator_*.py")] == [together.read_text()]

    assert train(settings).reused
    together.write_text(together.read_text().replace("depth: int = 20", "depth: int = 3"))
    assert not train(settings).reused, "another source is another estimator"
    assert not train(
        load_settings(tmp_path / "logs" / "scalr.toml", translator={"estimators": ["popularity", "linear"]})
    ).reused

    other = load_settings(tmp_path / "logs" / "scalr.toml", project={"home": str(tmp_path / "other")})
    mark_home(other)
    shutil.copytree(settings.home / "models", other.home / "models")
    with pytest.raises(TranslatorError, match="no record that it was trained here"):
        load_version(other, first.version)

    together.write_text("raise RuntimeError('the installed one is not asked')")
    served = load_settings(tmp_path / "logs" / "scalr.toml", serving={"scorer": "triton"})
    with ensure_serving(served, first.version):
        shutil.rmtree(run_folder(settings.home, report["run_id"]))
        generate(served, plan_run(served, version=first.version))
    again = pd.read_parquet(run_folder(served.home, report["run_id"]) / "candidates").sort_values("event_id", ignore_index=True)
    again = again[again["event_id"].isin(rows["event_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[rows.columns], rows, rtol=0, atol=1e-5, check_dtype=False)


@long
def test_an_estimator_that_triton_could_not_load_is_refused_before_training(make_project, tmp_path, together):
    together.write_text(together.read_text().replace("import torch", "import pandas\nimport torch"))
    settings = make_project(tmp_path / "logs", LEAN.replace('"linear"]', '"linear", "together"]'))
    code, _, said = run(tmp_path / "logs" / "scalr.toml", together.parent)
    assert code == 1
    assert re.search(r"together cannot be bundled .*imports pandas", said)
    assert not (settings.home / "models").exists()
