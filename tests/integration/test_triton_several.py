"""Two real Triton servers behind one list of addresses: a run is shared out, promotions reach both, and one may be lost."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial

import numpy as np
import pandas as pd
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ServerUnreachable, ServingError
from scalr_prod.generation import generate, plan_run
from scalr_prod.ledger import run_folder
from scalr_prod.serving import promote, rollback, served_version, serving_checks, start_triton, stop_triton, triton_status
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.client.address import secret_file
from scalr_prod.serving.client.security import Security
from scalr_prod.serving.client.transport import Channel
from scalr_prod.serving.local_server import launch
from scalr_prod.serving.local_server.server_state import read_record
from scalr_prod.serving.model_control import versions_by_server
from scalr_prod.translator.data.contexts import Contexts

pytestmark = [pytest.mark.triton, pytest.mark.long]

JULY = 1_719_792_000_000_000


def contexts(rows: int, seed: int) -> Contexts:
    random = np.random.default_rng(seed)
    time = JULY + random.integers(0, 10**12, rows)
    return Contexts(
        history_items=random.integers(0, 100, (rows, 20), dtype=np.int32),
        history_ages=random.random((rows, 20), dtype=np.float32) * 50,
        history_end=time - random.integers(0, 10**11, rows),
        event_time=time,
        fold=random.integers(-1, 2, rows, dtype=np.int32),
        noise_key=random.integers(-(2**62), 2**62, rows),
        exclude=random.integers(-1, 100, (rows, 3), dtype=np.int32),
    )


def copied(folder, trained, **sections):
    from scalr_prod.features import apply_feature_repo

    shutil.copytree(trained.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)
    settings = load_settings(folder / trained.name, **sections)
    apply_feature_repo(settings)
    return settings


def keep(secret, settings):
    secret_file(settings).write_text(secret)
    return secret


def rows_of(settings, spec):
    rows = pd.read_parquet(run_folder(settings.home, spec.run_id) / "candidates")
    return rows.sort_values("event_id", ignore_index=True)


def answered(settings, url):
    with Channel(url, Security.for_control(settings)) as channel:
        return channel.answered_requests(settings.served_model, 5.0)


@pytest.fixture(scope="module")
def servers(tmp_path_factory, trained_home):
    """Two servers that read one model repository and ask for one secret: their homes."""
    root = tmp_path_factory.mktemp("several")
    serving = {"repository": str(root / "repository"), "threads": 1}
    homes = [copied(root / name, trained_home, serving=serving) for name in ("first", "second")]
    start_triton(homes[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_new_secret", partial(keep, secret_file(homes[0]).read_text()))
        start_triton(homes[1])
    yield homes
    for home in homes:
        stop_triton(home)


def test_a_run_is_shared_out_promotions_reach_both_and_one_may_be_lost(servers, trained_home, tmp_path):
    urls = [triton_status(home).url for home in servers]
    serving = {"url": ",".join(urls), "header": f"scalr={secret_file(servers[0]).read_text()}", "deadline_s": 30}
    serving["repository"] = str(servers[0].model_repository)
    both = copied(tmp_path / "both", trained_home, serving=serving, compute={"workers": 2}, generation={"partitions": 4})
    local = both.model_copy(update={"serving": both.serving.model_copy(update={"scorer": "local", "threads": 1})})

    assert promote(both, 1).loaded == [1]
    assert promote(both, 2).loaded == [1, 2]
    assert rollback(both).loaded == [1, 2]
    assert versions_by_server(both) == {url: [1, 2] for url in urls}
    status = triton_status(both)
    assert (status.running, status.versions, status.url) == (True, [1, 2], ", ".join(urls))
    assert all(check.ok for check in serving_checks(both))

    spec = plan_run(both, version=1)
    before = [answered(both, url) for url in urls]
    generate(both, spec)
    shares = [answered(both, url) - had for url, had in zip(urls, before, strict=True)]
    shown = rows_of(both, spec)
    shutil.rmtree(run_folder(both.home, spec.run_id))
    generate(local, spec)
    pd.testing.assert_frame_equal(shown, rows_of(local, spec), rtol=0, atol=1e-5)
    assert min(shares) > 3, shares  # more than who it is

    asked = [contexts(20, seed) for seed in range(8)]
    with open_scorer(local, 1) as alone:
        expected = [alone.sample(one, 4).items for one in asked]
    with open_scorer(both, 1, server_index=1) as scorer:
        stream = scorer.sample_stream(asked, 4)
        found = [next(stream).items]
        os.killpg(read_record(servers[1]).pid, signal.SIGKILL)
        found += [samples.items for samples in stream]
    assert all(np.array_equal(*items) for items in zip(found, expected, strict=True))

    status = triton_status(both)
    assert (status.running, urls[1] in status.detail, urls[0] in status.detail) == (False, True, False)
    (check,) = serving_checks(both)
    assert (check.ok, urls[1] in check.found) == (False, True)
    with pytest.raises((ServerUnreachable, ServingError), match=urls[1]):
        promote(both, 2)
    assert served_version(both) == 1
