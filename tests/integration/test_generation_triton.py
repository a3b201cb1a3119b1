"""The same events come out of a real Triton as out of the module in the workers' own processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ServerUnreachable
from scalr_prod.generation import generate, plan_run
from scalr_prod.ledger import run_folder
from scalr_prod.reporting.ui.drawing import SamplingThread
from scalr_prod.serving import ensure_serving
from scalr_prod.serving.local_server.server_state import read_record

pytestmark = [pytest.mark.slow, pytest.mark.triton]
#: Starts a second server; the message is that of test_triton_server.py, "nobody home".
long = pytest.mark.long


@pytest.fixture(scope="module")
def config(trained_home, tmp_path_factory) -> Path:
    from scalr_prod.features import apply_feature_repo

    folder = tmp_path_factory.mktemp("triton") / "project"
    shutil.copytree(trained_home.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)
    path = folder / trained_home.name
    apply_feature_repo(load_settings(path))
    return path


def project(config: Path, scorer: str, *, workers: int, **generation):
    return load_settings(
        config,
        generation=generation,
        compute={"workers": workers},
        serving={"scorer": scorer, "threads": 2, "deadline_s": 30},
    )


def candidates(settings, run_id: str) -> pd.DataFrame:
    rows = pd.read_parquet(run_folder(settings.home, run_id) / "candidates")
    return rows.sort_values("event_id", ignore_index=True)


def test_triton_and_the_module_in_process_give_the_same_events(config):
    local = project(config, "local", workers=1, batch_size=1024, partitions=3)
    spec = plan_run(local, version=1)
    first = generate(local, spec)
    rows = candidates(local, spec.run_id)

    served = project(config, "triton", workers=2, batch_size=64, partitions=6)
    assert plan_run(served, version=1) == spec
    shutil.rmtree(run_folder(local.home, spec.run_id))
    user = rows["user_id"].value_counts().idxmax()
    with SamplingThread(served) as drawing:  # what `scalr ui` draws with: it starts Triton, which the run uses too
        shown = drawing.translate(spec, user, None)
        second = generate(served, spec)
    assert read_record(served) is None, "and stops it"
    assert second.parts_made == 6
    drawn = {event.event["event_id"]: event.probability["published"] for one in shown for event in one.drawn}
    own = rows[(rows["user_id"] == user) & (rows["event_timestamp"] >= min(one.at for one in shown))]
    assert drawn == pytest.approx(dict(zip(own["event_id"], own["probability"], strict=True)), abs=1e-5)
    assert len(drawn) > 5
    pd.testing.assert_frame_equal(candidates(served, spec.run_id), rows, rtol=0, atol=1e-5)
    assert (second.events, second.dropped, second.items) == (first.events, first.dropped, first.items)


@long
def test_without_a_server_the_run_stops_in_one_sentence_and_can_go_on(config):
    settings = project(config, "triton", workers=1, partitions=2, seed=5)
    spec = plan_run(settings, version=1)
    with pytest.raises(ServerUnreachable, match="scalr triton start"):
        generate(settings, spec)
    with ensure_serving(settings, 1):
        assert generate(settings, spec).events > 0
