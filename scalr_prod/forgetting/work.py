# SPDX-License-Identifier: Apache-2.0
"""The order in which users or items leave: first the tombstones, so that nothing comes back; then lake, home, stores; last the proof."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import Table, id_type_of
from scalr_prod.duck import staging_folder
from scalr_prod.errors import ForgettingError, LeaseHeld
from scalr_prod.feast_store.forgotten import forget_entities
from scalr_prod.forgetting.files import forget_in_files
from scalr_prod.forgetting.report import ForgetReport
from scalr_prod.forgetting.tables import HELD, MADE_OF_ITEMS, TABLES, forget_rows, held_of, purge, rows_of
from scalr_prod.forgetting.traces import Ids, Items, Users
from scalr_prod.ingest.usermap import UserMap
from scalr_prod.ledger import Ledger
from scalr_prod.tombstones import Tombstone, Tombstones

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.lake import Lake
    from scalr_prod.settings import Settings
    from scalr_prod.tombstones import Kind

__all__ = ["forget_ids"]

logger = logging.getLogger(__name__)

_KINDS: Final[dict[Kind, type[Ids]]] = {"user": Users, "item": Items}
#: An ingest that was under way may commit once more; one that begins later knows the tombstones.
_ROUNDS: Final = 3


def forget_ids(settings: Settings, asked: Sequence[int | str], kind: Kind) -> ForgetReport:
    """See `scalr_prod.forgetting`."""
    from scalr_prod.binding import open_own

    lake = open_own(settings)
    ids = _typed(settings, lake, asked, kind)
    if kind == "user":
        ids = _by_every_id(settings, ids)
    _refuse_switched_off(lake)
    with Tombstones.changing(settings) as stones, Ledger.open(settings) as ledger:
        _refuse_at_work(ledger)
        runs = {run.run_id for run in ledger.runs()}
        known = [one for one in ids if (stone := stones.of(kind).get(stones.digest(one, kind))) is not None and stone.done]
        pending = [one for one in ids if one not in set(known)]
        for one in pending:
            _intend(lake, ledger, stones, one, kind)
        removed = _remove(settings, lake, _KINDS[kind](ids), whole=bool(pending))
        _refuse_at_work(ledger)
        if {run.run_id for run in ledger.runs()} - runs:
            raise LeaseHeld(
                f"a run was begun while {kind}s were forgotten, and may have read their events",
                where=ledger.address,
                next_step="repeat the command",
            )
        counts = {name: count for name, count in sorted(removed.items()) if count}
        for one in pending:
            _conclude(ledger, stones, one, kind, counts, together=len(pending))
        return _report(settings, stones, kind, ids, known, counts)


def _typed(settings: Settings, lake: Lake, asked: Sequence[int | str], kind: Kind) -> list[int | str]:
    """The ids in the type that the lake has them in."""
    ids = list(dict.fromkeys(map(str, asked)))
    if not ids or not all(map(str.strip, ids)):
        raise ForgettingError(
            f"no {kind} is named, or an id is empty",
            where=f"{kind}s",
            next_step=f"name {kind}s, or a file with an id in each line",
        )
    table = next((table for table in HELD[kind] if lake.exists(table)), None)
    if table is None or id_type_of(lake.schema(table), _KINDS[kind].column) == "string":
        _refuse_padded(settings, lake, ids, kind)
        return [*ids]
    # As the log has them: int() takes 12_5 for 125, and digits of other scripts.
    if strange := [one for one in ids if not re.fullmatch(r"-?[0-9]{1,19}", one)]:
        raise ForgettingError(
            f"{strange[0]!r} is no integer; the lake's {kind} ids are integers",
            where=lake.uri(table),
            next_step=f"name {kind}s by the ids that the log has",
        )
    return [*dict.fromkeys(map(int, ids))]


def _refuse_padded(settings: Settings, lake: Lake, ids: Sequence[str], kind: Kind) -> None:
    """An id with blanks around it, as a file written by hand may have one, names somebody else than the id without them, or nobody.

    Raises:
        ForgettingError: It names nobody.
    """
    padded = [one for one in ids if one != one.strip()]
    if not padded:
        return
    known = set(Tombstones.open(settings).held(padded, kind)).union(
        *(held_of(lake, table, _KINDS[kind](padded)) for table in HELD[kind])
    )
    unknown = [one for one in padded if one not in known]
    if unknown:
        raise ForgettingError(
            f"blanks stand before or after an id, and the lake has no such {kind}: {unknown[0]!r} ({len(unknown)} in all)",
            where=f"{kind}s",
            next_step=f"name {kind}s exactly as the log has them",
        )


def _by_every_id(settings: Settings, ids: list[int | str]) -> list[int | str]:
    """The ids, and those by which the lake would hold the same people if the map of users were another one."""
    user_map = UserMap.read(settings)
    return ids if user_map is None else [*ids, *user_map.same_people(ids)]


def _refuse_switched_off(lake: Lake) -> None:
    view = Table.SYNTHETIC_TARGET_EVENTS
    if lake.exists(view) and lake.aside(view) is not None:
        raise ForgettingError(
            "publication is switched off: the files of the feature view, which would come back with the rows, are set aside",
            where=lake.uri(view),
            next_step="switch it on, forget, and switch it off again: scalr publication enable",
        )


def _refuse_at_work(ledger: Ledger) -> None:
    held = ledger.at_work()
    if held:
        run_id, owner = next(iter(held.items()))
        raise LeaseHeld(
            f"{owner} works on this run, which may have read events that are to be forgotten",
            where=ledger.address,
            next_step="wait for it to end, or stop it, then repeat the command",
        ).at(run_id=run_id)


def _intend(lake: Lake, ledger: Ledger, stones: Tombstones, one: int | str, kind: Kind) -> None:
    """Write the tombstone, and which translators learned from a user, before the events are gone."""
    digest = stones.digest(one, kind)
    if digest in stones.of(kind):  # the command was cut off
        return
    # A translator that knows an item is stale with the item's events, and is not let propose it.
    learned = kind == "user" and any(rows_of(lake, table, Users([one])) for table in HELD[kind])
    versions = tuple(found.version for found in ledger.model_versions()) if learned else ()
    stones.put(Tombstone(digest, datetime.now(UTC), versions), kind)


def _remove(settings: Settings, lake: Lake, ids: Ids, *, whole: bool) -> Counter[str]:
    """Remove users or items from everywhere.

    Args:
        settings: The project's settings.
        lake: Its lake.
        ids: Who, or what.
        whole: Whether former versions of tables go although the current ones do not hold them.
    """
    tables, removed = TABLES[ids.kind], Counter[str]()
    with staging_folder(settings, "forget"):
        pass  # what killed processes had staged goes by this
    for round_ in range(_ROUNDS):
        everything = whole and round_ == 0
        found = {table: forget_rows(lake, table, ids) for table in tables}
        if ids.kind == "item" and (everything or any(found.values())):
            found |= _rebuilt(settings, lake)
        before = datetime.now(UTC)
        old = [table for table in found if lake.exists(table) and (found[table] or everything)]
        removed += Counter({table.value: count for table, count in found.items() if table in tables})
        removed["files of tables"] += sum(purge(lake, table, before=before) for table in old)
        removed += forget_in_files(settings, ids, parts=bool(old))
        if ids.kind == "item":
            _refill(settings)
        removed["online store"] += forget_entities(settings, ids.column, ids.ids)
        if not any(rows_of(lake, table, ids) for table in tables):
            return removed
    raise ForgettingError(
        f"another process goes on adding events of the {ids.kind}s",
        where=lake.root,
        next_step="stop what reads logs into the lake, then repeat the command",
    )


def _rebuilt(settings: Settings, lake: Lake) -> dict[Table, int]:
    """Build histories and statistics from the events that are left, where there were any; gives the tables, with whether they were."""
    there = [table for table in MADE_OF_ITEMS if lake.exists(table) and lake.dataset(table).count_rows()]
    if there:
        from scalr_prod.histories import build_histories

        build_histories(settings)
    return dict.fromkeys(there, 1)


def _refill(settings: Settings) -> None:
    """Let the online store follow the tables where it was ever filled: users' histories there hold items."""
    from scalr_prod.feast_store import apply_feature_repo, materialize
    from scalr_prod.feast_store.filled import was_filled

    if was_filled(settings):
        apply_feature_repo(settings)
        materialize(settings)


def _conclude(ledger: Ledger, stones: Tombstones, one: int | str, kind: Kind, counts: dict[str, int], *, together: int) -> None:
    digest = stones.digest(one, kind)
    if digest not in {change.key for change in ledger.history(subject="forgotten")}:
        ledger.record_forgotten(digest, cause=json.dumps({f"{kind}s": together, "removed": counts}))
    stones.finish(digest, counts, kind)


def _report(
    settings: Settings,
    stones: Tombstones,
    kind: Kind,
    ids: Sequence[int | str],
    known: Sequence[int | str],
    counts: dict[str, int],
) -> ForgetReport:
    versions = sorted({version for one in ids for version in stones.of(kind)[stones.digest(one, kind)].versions})
    limits = [found[1] for version in versions if (found := stones.retrain_by(settings, version)) is not None]
    if versions:
        logger.info("translator versions %s learned from these users: train a new one", ", ".join(map(str, versions)))
    users, items = (len(ids), 0) if kind == "user" else (0, len(ids))
    return ForgetReport(users, items, len(known), counts, versions, min(limits, default=None))
