# SPDX-License-Identifier: Apache-2.0
"""Leases on runs, so that two drivers never work on the same run."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import threading
import time
import uuid
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from scalr_prod.core.logging import bind_log_context
from scalr_prod.errors import LeaseHeld, LeaseLost, LedgerError
from scalr_prod.ledger.orm_tables import RunRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy.orm import Session

    from scalr_prod.ledger.change_log import ChangeLog
    from scalr_prod.ledger.runs import RunRepository
    from scalr_prod.ledger.tenancy import ProjectScope


logger = logging.getLogger(__name__)

_TTL_S: Final = 60.0
_POLL_S: Final = 0.2


class Lease:
    """A lease held by this process; `check` verifies that it is still valid.

    Args:
        run_id: The run.
        owner: The holder.
        ttl_s: Seconds until the lease expires unless renewed.
        renew: Renews it in the ledger; raises `LeaseLost` if another driver has taken over the run.
    """

    def __init__(self, run_id: str, owner: str, ttl_s: float, renew: Callable[[], object]) -> None:
        self.run_id = run_id
        self.owner = owner
        self._ttl_s = ttl_s
        self._renew = renew
        self._held_until = time.monotonic() + ttl_s
        self._lost: LeaseLost | None = None

    @property
    def is_lost(self) -> bool:
        """Whether another driver is known to have taken over the run."""
        return self._lost is not None

    @property
    def is_expired(self) -> bool:
        """Whether the lease has expired, so that another driver may have taken over the run."""
        return time.monotonic() >= self._held_until

    def check(self) -> None:
        """Verify the lease before a step that must not be done twice; an expired lease is renewed if the run is still free.

        Raises:
            LeaseLost: Another driver has taken over the run.
            LedgerError: The lease has expired, and the ledger cannot be reached to renew it.
        """
        if self._lost is None and self.is_expired:
            self.renew()
        if self._lost is not None:
            raise self._lost

    def renew(self) -> None:
        """Extend the lease by ``ttl_s`` seconds; a loss is remembered, not raised.

        Raises:
            LedgerError: The ledger cannot be reached; the lease keeps its old expiry.
        """
        started = time.monotonic()
        try:
            self._renew()
        except LeaseLost as error:
            self._lost = error
        else:
            self._held_until = started + self._ttl_s

    def keep_renewing(self, stop: threading.Event) -> None:
        """Renew every third of ``ttl_s`` until ``stop`` is set or the lease is lost; retry sooner after a failure."""
        pause_s = self._ttl_s / 3
        while not self.is_lost and not stop.wait(pause_s):
            try:
                self.renew()
                pause_s = self._ttl_s / 3
            except LedgerError as error:
                pause_s = self._ttl_s / 12
                logger.warning("the lease on %s could not be renewed, trying again: %s", self.run_id, error.found)


class LeaseRepository:
    """Leases in the ledger. Times are the database's, so that drivers' clocks need not agree."""

    def __init__(self, scope: ProjectScope, runs: RunRepository, changes: ChangeLog) -> None:
        self._scope = scope
        self._database = scope.database
        self._runs = runs
        self._changes = changes

    @contextlib.contextmanager
    def hold(self, run_id: str, *, owner: str | None = None, ttl_s: float = _TTL_S, wait_s: float = 0.0) -> Iterator[Lease]:
        """Hold the run's lease for the block, renewed in the background.

        If the holder has died on this machine (same boot, same PID namespace), its lease is taken over at once. Otherwise it stays until
        ``ttl_s`` seconds after its last renewal.

        Args:
            run_id: The run.
            owner: The holder; default: this process, by host, process id and a random token.
            ttl_s: Seconds until the lease expires unless renewed.
            wait_s: Seconds to wait for another driver to release it.

        Raises:
            LedgerError: Another driver holds it; names the driver and the expiry.
        """
        owner = owner or _this_process()
        give_up = time.monotonic() + wait_s
        while True:
            try:
                held = Lease(run_id, owner, ttl_s, partial(self.renew, run_id, owner, ttl_s=ttl_s))
                self.acquire(run_id, owner, ttl_s=ttl_s)
                break
            except LeaseHeld:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(_POLL_S)
        stop = threading.Event()
        keeper = threading.Thread(
            target=bind_log_context(held.keep_renewing), args=(stop,), name=f"lease {run_id}", daemon=True
        )
        keeper.start()
        try:
            yield held
        finally:
            stop.set()
            keeper.join()
            self.release(run_id, owner)

    def active(self) -> dict[str, str]:
        """Return the project's active leases: holder by run."""
        query = sa.select(RunRow).where(RunRow.lease_owner.is_not(None))
        with self._database.read_session() as session:
            now = self._database.now(session)
            held = session.scalars(query.where(RunRow.project_id == self._scope.project_id(session)))
            return {
                row.run_id: row.lease_owner
                for row in held
                if row.lease_owner and row.lease_expires_at and row.lease_expires_at > now and not _is_dead(row.lease_owner)
            }

    def acquire(self, run_id: str, owner: str, *, ttl_s: float = _TTL_S) -> datetime:
        """Acquire a lease that is free, expired, or the owner's already; returns its expiry (UTC).

        Raises:
            LedgerError: Another driver holds it, or a driver on another machine holds any lease of a SQLite ledger.
        """
        with self._database.write_session() as session:
            row = self._runs.load_row(session, run_id, lock=True)
            now = self._database.now(session)
            if self._database.is_sqlite:
                self._ensure_one_machine(session, now)
            others = row.lease_owner is not None and row.lease_owner != owner and not _is_dead(row.lease_owner)
            if others and row.lease_expires_at is not None and row.lease_expires_at > now:
                raise LeaseHeld(
                    f"{row.lease_owner} holds the run's lease until {row.lease_expires_at.isoformat(timespec='seconds')} at least",
                    where=self._database.address,
                    next_step="wait for it to end; if it died, its lease expires by itself",
                ).add_context(run_id=run_id)
            if row.lease_owner is not None and row.lease_owner != owner:
                cause = "its process has exited" if _is_dead(row.lease_owner) else f"it expired at {row.lease_expires_at}"
                self._changes.add(session, "lease", run_id, row.lease_owner, owner, cause=f"taken over: {cause}", run_id=run_id)
            row.lease_owner, row.lease_expires_at = owner, now + timedelta(seconds=ttl_s)
            return row.lease_expires_at

    def _ensure_one_machine(self, session: Session, now: datetime) -> None:
        """Refuse to work while another machine does on a SQLite ledger, since SQLite's locks do not hold on most shared file systems.

        Raises:
            LeaseHeld: A driver on another machine holds a lease.
        """
        held = session.scalars(sa.select(RunRow.lease_owner).where(RunRow.lease_expires_at > now))
        if other := next((owner for owner in held if owner and _is_elsewhere(owner)), None):
            raise LeaseHeld(
                f"machine {other.rsplit(':', 3)[0]} is at work with this SQLite ledger, whose locks are for one machine",
                where=self._database.address,
                next_step="wait until it is done; to work on several machines at once, set [ledger] url and [feast] registry to PostgreSQL",
            )

    def renew(self, run_id: str, owner: str, *, ttl_s: float = _TTL_S) -> datetime:
        """Extend a lease, even an expired one if nobody else has taken over the run; returns its expiry (UTC).

        Raises:
            LeaseLost: The owner no longer holds it.
        """
        with self._database.write_session() as session:
            until = self._database.now(session) + timedelta(seconds=ttl_s)
            if not self._set_lease(session, run_id, owner, owner, until):
                raise LeaseLost(
                    "the lease on this run was lost: another driver has taken it over",
                    where=self._database.address,
                    next_step=f"see who holds it: scalr runs show {run_id}",
                ).add_context(run_id=run_id)
            return until

    def release(self, run_id: str, owner: str) -> bool:
        """Release a lease; returns False if the owner no longer held it."""
        with self._database.write_session() as session:
            return self._set_lease(session, run_id, owner, None, None)

    def _set_lease(self, session: Session, run_id: str, held_by: str, owner: str | None, until: datetime | None) -> bool:
        change = (
            sa.update(RunRow)
            .where(RunRow.project_id == self._scope.project_id(session), RunRow.run_id == run_id, RunRow.lease_owner == held_by)
            .values(lease_owner=owner, lease_expires_at=until)
        )
        result = session.execute(change)
        return bool(result.rowcount)  # type: ignore[attr-defined]  # an update's result is a CursorResult


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{_machine_id()}:{uuid.uuid4().hex[:8]}"


def _machine_id() -> str:
    """Identify the boot and PID namespace of this machine (a container has its own namespace) as BOOT-SPACE; "-" where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return "-"
    return "-".join(hashlib.sha256(part.encode()).hexdigest()[:8] for part in (boot, str(space)))


def _is_elsewhere(owner: str) -> bool:
    """Return whether an owner is a process of a machine with another boot; False for containers of this machine and in doubt."""
    parts, own = owner.rsplit(":", 3), _machine_id()
    known = len(parts) == 4 and "-" in parts[2].strip("-") and own != "-"  # noqa: PLR2004 - the parts of `_this_process`
    return known and parts[2].partition("-")[0] != own.partition("-")[0]


def _is_dead(owner: str) -> bool:
    """Return whether an owner was a process of this machine that has exited; False for other machines and in doubt."""
    parts = owner.rsplit(":", 3)
    if len(parts) != 4 or parts[2] == "-" or parts[2] != _machine_id() or not parts[1].isdigit():  # noqa: PLR2004 - the parts of `_this_process`
        return False
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
