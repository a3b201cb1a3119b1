"""What a process has held, and gives back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
from scalr_prod.core.memory import release_memory, peak_memory_mb

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20

blocks = [bytes(2000) for _ in range(100_000)]
last = blocks[-1]  # above all others, so that the C library keeps what is below it
most = held()
del blocks
release_memory()
print(most - held(), peak_memory_mb() >= most)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is glibc")
def test_what_is_free_goes_back_to_the_system_though_a_block_above_it_is_in_use():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    given, told = done.stdout.split()
    assert int(given) > 150
    assert told == "True"


@pytest.mark.parametrize("module", ["integrations.airflow.dags", "project"])
def test_what_steers_a_project_imports_no_numpy(module):
    """Airflow parses DAGs again and again."""
    program = f"import sys, scalr_prod.{module}; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
