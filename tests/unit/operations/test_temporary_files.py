"""Which folders of temporary files `scalr maintain` removes: those that killed processes left, and no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from scalr_prod import Project
from scalr_prod.operations.retention import abandoned_folders

DAY = 86_400
#: A process with a listener of multiprocessing's, as a driver has, that is killed.
KILLED = """
import multiprocessing.connection, os, signal
listener = multiprocessing.connection.Listener(family="AF_UNIX")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(monkeypatch):
    # Not below tmp_path: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def age(folder, days=2):
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - days * DAY,) * 2, follow_symlinks=False)


def scratch(temporary, name):
    folder = temporary / name
    folder.mkdir()
    (folder / "spill").write_bytes(b"x" * 10)
    return folder


@pytest.fixture
def killed(temporary):
    """What a killed process left, two days ago."""
    subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"TMPDIR": str(temporary)}, check=False)
    (listener,) = temporary.glob("pymp-*")
    feast = temporary / "feast_metrics_0pyc507m"
    feast.mkdir()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (feast / f"gauge_liveall_{process.pid}.db").touch()
    triton = temporary / "scalr-triton-lnfinjal"
    triton.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{triton}/grpc:1")
    folders = [listener, feast, triton, scratch(temporary, "scalr-doctor-aaaaaaaa"), scratch(temporary, "scalr-aaaaaaaa")]
    for folder in folders:
        age(folder)
    return sorted(folders)


def test_what_killed_processes_left_goes(settings, killed):
    with Project(settings) as project:
        for dry_run in (True, False):
            assert all(folder.exists() for folder in killed)
            report = project.maintain(dry_run=dry_run)
            found = [one.name for one in report.removed if one.kind == "temporary_folder"]
            assert found == [str(folder) for folder in killed]
        assert not any(folder.exists() for folder in killed)
        assert project.maintain().removed == []


def test_what_is_young_or_another_s_stays(killed, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(os, "getuid", lambda: os.geteuid() + 1)
        assert list(abandoned_folders()) == []
    for folder in killed:
        age(folder, days=0.5)
    assert list(abandoned_folders()) == []


def test_what_a_process_uses_stays(temporary):
    with ExitStack() as stack:
        for name in ("pymp-aaaaaaaa", "scalr-triton-aaaaaaaa"):
            folder = temporary / name
            folder.mkdir()
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(f"{folder}/s")
            server.listen()
            age(folder)
            assert list(abandoned_folders()) == []
    (temporary / "feast_metrics_aaaaaaaa").mkdir()
    (temporary / "feast_metrics_aaaaaaaa" / f"counter_{os.getpid()}.db").touch()
    (temporary / "pymp-bbbbbbbb").mkdir()  # nothing tells whose it is
    scratch(temporary, "pymp-cccccccc")
    scratch(temporary, "scalr-notes")
    scratch(temporary, "scalr-feast-somebody")
    elsewhere = scratch(temporary, "elsewhere")
    (temporary / "scalr-dddddddd").symlink_to(elsewhere)
    (temporary / "scalr-eeeeeeee").write_bytes(b"")
    for folder in temporary.glob("*"):
        age(folder)
    assert [folder.name for folder in abandoned_folders() if not folder.name.startswith(("pymp-aaaa", "scalr-triton"))] == []


def test_a_server_does_not_notice_that_it_was_looked_at(temporary):
    folder = temporary / "pymp-aaaaaaaa"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/s")
        server.listen()
        server.settimeout(0.2)
        age(folder)
        assert list(abandoned_folders()) == []
        with pytest.raises(TimeoutError):
            server.accept()
