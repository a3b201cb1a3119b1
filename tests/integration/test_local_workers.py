"""Local Dask workers know the package, and import nothing of whoever started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.examples import sweep

#: Starts a cluster for each test; test_cluster.py and test_generation.py have workers of their own, and lose one.
pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_the_callers_main_module_is_not_imported_by_workers(project: Path):
    """A script without a guard, as a notebook's export or a scheduler's task runner is."""
    script = project.parent / "unguarded.py"
    script.write_text(f"""
import os
print("main runs in", os.getpid(), flush=True)
from scalr_prod.compute.cluster import open_cluster
from scalr_prod.config.settings import load_settings
settings = load_settings({str(project)!r}, compute={{"workers": 1}})
with open_cluster(settings, tasks=1) as cluster:
    print("worker", cluster._client.submit(os.getpid).result(), flush=True)
import __main__
assert __main__.__file__ == __file__
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("main runs in") == 1
    main, worker = (line.split()[-1] for line in done.stdout.splitlines())
    assert main != worker


def test_a_process_that_ends_while_its_workers_still_begin_is_silent(project):
    """Feast leaves a folder in the environment and removes it at exit, under whoever still imports Feast."""
    program = (
        "import sys, feast\n"
        "from scalr_prod.compute.cluster import preload_workers\n"
        "from scalr_prod.config.settings import load_settings\n"
        "preload_workers(load_settings(sys.argv[1]).compute)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(project)], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]


@pytest.mark.parametrize("after_s", sweep([2.0, 0.5, 4.0], keep=1))
def test_ctrl_c_while_workers_start_ends_in_order(project, after_s):
    """Dask's own end of a cluster that has only begun to start fails with a traceback, after the command has said what to do."""
    program = (
        "import signal, sys\n"
        "from scalr_prod.compute.cluster import open_cluster\n"
        "from scalr_prod.core.signals import Interrupted, graceful_shutdown\n"
        "from scalr_prod.config.settings import load_settings\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    with graceful_shutdown():\n"
        "        settings = load_settings(sys.argv[1], compute={'workers': 2})\n"
        "        print('begins', flush=True)\n"
        "        with open_cluster(settings, tasks=2):\n"
        "            print('open', flush=True)\n"
        "            signal.pause()\n"
        "except Interrupted as stopped:\n"
        "    print(stopped, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(project)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "stopped by SIGINT" in told
    assert errors == ""
