"""The package and its command start at once: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "pandas", "feast", "dask", "distributed", "great_expectations", "duckdb", "tritonclient", "sqlalchemy")


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*sorted(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    assert loaded_after("import scalr_prod") == set()


def test_the_command_line_imports_nothing_heavy():
    assert loaded_after("import scalr_prod.apps.cli") == set()


def test_every_room_can_be_imported_without_the_heavy_libraries():
    rooms = ("ingest", "histories", "lake", "project", "publication", "pipeline", "training_set", "config")
    assert loaded_after("\n".join(f"import scalr_prod.{room}" for room in rooms)) == set()
