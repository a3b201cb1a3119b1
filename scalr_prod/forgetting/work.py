# SPDX-License-Identifier: Apache-2.0
"""The order in which users leave: first the tombstones, so that nothing comes back; then the lake, home, stores; last the proof."""

from __future__ import annotations

import json
import logging
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import USER_ID, Table, id_type_of
from scalr_prod.duck import staging_folder
from scalr_prod.errors import ForgettingError, LeaseHeld
from scalr_prod.feast_store.forgotten import forget_entities
from scalr_prod.forgetting.files import forget_in_files
from scalr_prod.forgetting.report import ForgetReport
from scalr_prod.forgetting.tables import OF_USERS, forget_rows, purge, rows_of
from scalr_prod.forgetting.traces import Users
from scalr_prod.ingest.usermap import UserMap
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.tombstones import Tombstone, Tombstones

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.settings import Settings

__all__ = ["forget_users"]

logger = logging.getLogger(__name__)

_EVENTS: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
#: An ingest that was under way may commit once more; one that begins later knows the tombstones.
_ROUNDS: Final = 3


def forget_users(settings: Settings, asked: Sequence[int | str]) -> ForgetReport:
    """See `scalr_prod.forgetting.forget`."""
    from scalr_prod.binding import check_domains

    lake = Lake.open(settings)
    check_domains(settings, lake)
    ids = _by_every_id(settings, _typed(lake, asked))
    _refuse_switched_off(lake)
    with Tombstones.changing(settings) as stones, Ledger.open(settings) as ledger:
        _refuse_at_work(ledger)
        runs = {run.run_id for run in ledger.runs()}
        known = [one for one in ids if (stone := stones.users.get(stones.digest(one))) is not None and stone.done]
        pending = [one for one in ids if one not in set(known)]
        for one in pending:
            _intend(lake, ledger, stones, one)
        removed = _remove(settings, lake, Users(ids), whole=bool(pending))
        _refuse_at_work(ledger)
        if {run.run_id for run in ledger.runs()} - runs:
            raise LeaseHeld(
                "a run was begun while users were forgotten, and may have read their events",
                where=ledger.address,
                next_step="repeat the command",
            )
        counts = {name: count for name, count in sorted(removed.items()) if count}
        for one in pending:
            _conclude(ledger, stones, one, counts, together=len(pending))
        return _report(settings, stones, ids, known, counts)


def _typed(lake: Lake, asked: Sequence[int | str]) -> list[int | str]:
    """The ids in the type that the lake has users in."""
    ids = list(dict.fromkeys(str(one).strip() for one in asked))
    if not ids or not all(ids):
        raise ForgettingError(
            "no user is named, or an id is empty", where="users", next_step="name users, or a file with an id in each line"
        )
    table = next((table for table in _EVENTS if lake.exists(table)), None)
    if table is None or id_type_of(lake.schema(table), USER_ID) == "string":
        return [*ids]
    try:
        return [*dict.fromkeys(int(one) for one in ids)]
    except ValueError as error:
        raise ForgettingError(
            "an id is no integer; the lake's user ids are integers",
            where=lake.uri(table),
            next_step="name users by the ids that the log has",
        ) from error


def _by_every_id(settings: Settings, ids: list[int | str]) -> list[int | str]:
    """The ids, and those by which the lake would hold the same people if the map of users were another one."""
    user_map = UserMap.read(settings)
    return ids if user_map is None else [*ids, *user_map.same_people(ids)]


def _refuse_switched_off(lake: Lake) -> None:
    view = Table.SYNTHETIC_TARGET_EVENTS
    if lake.exists(view) and lake.aside(view) is not None:
        raise ForgettingError(
            "publication is switched off: the files of the feature view, which would come back with the users, are set aside",
            where=lake.uri(view),
            next_step="switch it on, forget, and switch it off again: scalr publication enable",
        )


def _refuse_at_work(ledger: Ledger) -> None:
    held = ledger.at_work()
    if held:
        run_id, owner = next(iter(held.items()))
        raise LeaseHeld(
            f"{owner} works on this run, which may have read events of the users",
            where=ledger.address,
            next_step="wait for it to end, or stop it, then repeat the command",
        ).at(run_id=run_id)


def _intend(lake: Lake, ledger: Ledger, stones: Tombstones, user: int | str) -> None:
    """Write the tombstone, and which translators learned from the user, before the events are gone."""
    digest = stones.digest(user)
    if digest in stones.users:  # the command was cut off
        return
    learned = any(rows_of(lake, table, Users([user])) for table in _EVENTS)
    versions = tuple(one.version for one in ledger.model_versions()) if learned else ()
    stones.put(Tombstone(digest, datetime.now(UTC), versions))


def _remove(settings: Settings, lake: Lake, users: Users, *, whole: bool) -> Counter[str]:
    """Remove the users from everywhere.

    Args:
        settings: The project's settings.
        lake: Its lake.
        users: Who.
        whole: Whether former versions of tables go although the current ones do not hold the users.
    """
    removed: Counter[str] = Counter()
    with staging_folder(settings, "forget"):
        pass  # what killed processes had staged goes by this
    for round_ in range(_ROUNDS):
        found = {table: forget_rows(lake, table, users) for table in OF_USERS}
        before = datetime.now(UTC)
        old = [table for table in OF_USERS if lake.exists(table) and (found[table] or (whole and round_ == 0))]
        removed += Counter({table.value: count for table, count in found.items()})
        removed["files of tables"] += sum(purge(lake, table, before=before) for table in old)
        removed += forget_in_files(settings, users, parts=bool(old))
        removed["online store"] += forget_entities(settings, users.ids)
        if not any(rows_of(lake, table, users) for table in OF_USERS):
            return removed
    raise ForgettingError(
        "another process goes on adding events of the users",
        where=lake.root,
        next_step="stop what reads logs into the lake, then repeat the command",
    )


def _conclude(ledger: Ledger, stones: Tombstones, user: int | str, counts: dict[str, int], *, together: int) -> None:
    digest = stones.digest(user)
    if digest not in {change.key for change in ledger.history(subject="forgotten")}:
        ledger.record_forgotten(digest, cause=json.dumps({"users": together, "removed": counts}))
    stones.finish(digest, counts)


def _report(
    settings: Settings, stones: Tombstones, ids: Sequence[int | str], known: Sequence[int | str], counts: dict[str, int]
) -> ForgetReport:
    versions = sorted({version for one in ids for version in stones.users[stones.digest(one)].versions})
    limits = [found[1] for version in versions if (found := stones.retrain_by(settings, version)) is not None]
    if versions:
        logger.info("translator versions %s learned from these users: train a new one", ", ".join(map(str, versions)))
    return ForgetReport(len(ids), len(known), counts, versions, min(limits, default=None))
