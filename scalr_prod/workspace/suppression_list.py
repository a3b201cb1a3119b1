# SPDX-License-Identifier: Apache-2.0
"""Suppression list: keyed hashes of erased users and target items, so that no log, run or copy brings them back.

The list is in ``<home>/forgotten``. Its random key is created at first use, in a file beside it that only the owner can read: without the
key, the ids cannot be found by hashing candidates.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

from scalr_prod.core.atomic_io import atomic_path, sync_folder
from scalr_prod.core.file_lock import file_lock
from scalr_prod.errors import ForgettingError, TranslatorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from scalr_prod.config import Settings


#: Kind of an id: a user, or an item of the target domain.
SuppressedKind = Literal["user", "item"]

_FOLDER: Final = "forgotten"
_SECRET: Final = "secret"  # noqa: S105 - a file's name
_FILE: Final = "tombstones.json"
_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class SuppressedId:
    """One erased user or item.

    Attributes:
        digest: Keyed hash of the id.
        at: Time of the request (UTC).
        versions: Translator versions that existed then, if there were events of the user to learn from.
        done: Whether the erasure is complete; if not, it was interrupted, and the same command continues it.
        removed: Number of removed rows, files or entries, by place.
        datasets: Versions of training sets that held rows of the user, by name.
    """

    digest: str
    at: datetime
    versions: tuple[int, ...] = ()
    done: bool = False
    removed: dict[str, int] = field(default_factory=dict)
    datasets: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that the file holds."""
        return {
            "at": self.at.isoformat(),
            "versions": list(self.versions),
            "done": self.done,
            "removed": dict(self.removed),
            "datasets": {name: list(versions) for name, versions in sorted(self.datasets.items())},
        }


class RetrainingDeadline(NamedTuple):
    """Until when runs may use a translator version that learned from users who were erased since.

    Attributes:
        users: Number of these users.
        at: From then on, runs refuse the version (UTC).
    """

    users: int
    at: datetime


class SuppressionList:
    """The erased users and items of a project.

    Args:
        folder: Folder of the list.
        key: Key of the hashes; empty if nobody was ever erased.
        users: Users by hash.
        items: Items by hash.
    """

    def __init__(self, folder: Path, key: bytes, users: dict[str, SuppressedId], items: dict[str, SuppressedId]) -> None:
        self.folder, self._key, self.users, self.items = folder, key, users, items

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Read a project's list; empty if nobody was erased.

        Raises:
            ForgettingError: The list or its key cannot be read.
        """
        folder = settings.home / _FOLDER
        try:
            content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            users, items = _read(content["users"]), _read(content.get("items", {}))  # earlier versions had no items
        except FileNotFoundError:
            return cls(folder, _key_of(folder, needed=False), {}, {})
        except (OSError, ValueError, KeyError) as error:
            raise ForgettingError(
                f"the list of erased users cannot be read: {error}",
                where=str(folder / _FILE),
                next_step="restore the file from a copy; without it, a log could bring erased users back",
            ) from error
        return cls(folder, _key_of(folder, needed=bool(users or items)), users, items)

    @classmethod
    @contextmanager
    def open_for_update(cls, settings: Settings) -> Iterator[Self]:
        """Open a project's list for update within the block, by one process at a time; creates the key if missing.

        Raises:
            ForgettingError: As for `open`; or another process is updating it.
        """
        from scalr_prod.workspace.ownership import claim_home

        claim_home(settings)
        folder = settings.home / _FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        busy = ForgettingError(
            "another process is erasing users",
            where=str(folder / ".lock"),
            next_step="wait for it to end, then run the command again",
        )
        with file_lock(folder / ".lock", busy):
            if not (folder / _SECRET).exists() and not (folder / _FILE).exists():
                _write(folder / _SECRET, secrets.token_hex(_KEY_BYTES))
            yield cls.open(settings)

    def digest(self, identifier: int | str, kind: SuppressedKind = "user") -> str:
        """Return the keyed hash of an id, 64 hex digits; 7 and '7' hash alike."""
        return hmac.digest(self._key, f"{kind}:{identifier}".encode(), "sha256").hex()

    def entries(self, kind: SuppressedKind) -> dict[str, SuppressedId]:
        """Return the users or the items by hash."""
        return self.users if kind == "user" else self.items

    def suppressed_ids(self, ids: Iterable[int | str], kind: SuppressedKind = "user") -> list[int | str]:
        """Return those of the ids that were erased."""
        known = self.entries(kind)
        return [identifier for identifier in ids if self.digest(identifier, kind) in known] if known else []

    def update(self, entries: Iterable[SuppressedId], kind: SuppressedKind = "user") -> None:
        """Add or change entries, all or none; they are on disk when this returns."""
        self.entries(kind).update({entry.digest: entry for entry in entries})
        content = {
            name: {digest: entry.to_json() for digest, entry in sorted(listed.items())}
            for name, listed in (("users", self.users), ("items", self.items))
        }
        _write(self.folder / _FILE, json.dumps(content, indent=1))

    def retraining_deadline(self, version: int, *, grace_days: float) -> RetrainingDeadline | None:
        """Return until when runs may use a translator version that learned from erased users, or None if it learned from none."""
        requested = [entry.at for entry in self.users.values() if version in entry.versions]
        if not requested:
            return None
        grace = min(timedelta(days=grace_days), datetime.max.replace(tzinfo=UTC) - min(requested))
        return RetrainingDeadline(len(requested), min(requested) + grace)


def ensure_retrained_in_time(settings: Settings, version: int) -> None:
    """Check that a run may still use a translator version that may have learned from users erased since.

    Raises:
        TranslatorError: The grace period for training a new version (``[forgetting] grace_days``) is over.
    """
    deadline = SuppressionList.open(settings).retraining_deadline(version, grace_days=settings.forgetting.grace_days)
    if deadline is None or datetime.now(UTC) < deadline.at:
        return
    raise TranslatorError(
        f"translator version {version} learned from {deadline.users} users who were erased since; runs could use it until "
        f"{deadline.at.isoformat(timespec='seconds')}",
        where="[forgetting] grace_days",
        next_step="train a new version: scalr translator train",
    )


def _read(entries: dict[str, Any]) -> dict[str, SuppressedId]:
    return {
        digest: SuppressedId(
            digest,
            datetime.fromisoformat(entry["at"]),
            tuple(entry["versions"]),
            entry["done"],
            entry["removed"],
            # Entries of earlier versions of the package have none.
            {name: tuple(versions) for name, versions in entry.get("datasets", {}).items()},
        )
        for digest, entry in entries.items()
    }


def _key_of(folder: Path, *, needed: bool) -> bytes:
    try:
        return bytes.fromhex((folder / _SECRET).read_text(encoding="ascii"))
    except FileNotFoundError as error:
        if not needed:
            return b""
        raise _no_key(folder, "the key of the hashes is missing") from error
    except (OSError, ValueError) as error:
        raise _no_key(folder, f"the key of the hashes cannot be read: {error}") from error


def _no_key(folder: Path, reason: str) -> ForgettingError:
    return ForgettingError(
        reason,
        where=str(folder / _SECRET),
        next_step="restore the file from a copy; without it, erased users in a log cannot be recognised",
    )


def _write(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner alone; it is on disk afterwards."""
    with (
        atomic_path(path) as unfinished,
        os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
