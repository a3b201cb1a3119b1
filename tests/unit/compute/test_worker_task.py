"""Tasks in Dask workers: errors that say where they arose."""

from __future__ import annotations

import socket

import pytest

from scalr_prod.compute import run_worker_task
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ComputeError

DOMAINS = '[domains.source]\nname = "s"\nevents = "s"\n[domains.target]\nname = "t"\nevents = "t"\n'


def unreadable():
    raise OSError("Generic S3 error:\n  no credentials")


def test_an_operating_system_error_names_the_workers_machine_and_what_to_check(tmp_path):
    (tmp_path / "scalr.toml").write_text(DOMAINS)
    settings = load_settings(tmp_path / "scalr.toml", compute={"dask": "tcp://scheduler:8786"})
    with pytest.raises(
        ComputeError, match=f"a worker on {socket.gethostname()} failed: OSError: Generic S3 error: no credentials"
    ) as caught:
        run_worker_task(settings, {}, unreadable)
    assert "credentials" in caught.value.next_step
    assert caught.value.__cause__ is None


def test_in_a_process_of_this_machine_it_stays_as_it_is(tmp_path):
    (tmp_path / "scalr.toml").write_text(DOMAINS)
    with pytest.raises(OSError, match="no credentials"):
        run_worker_task(load_settings(tmp_path / "scalr.toml"), {}, unreadable)
