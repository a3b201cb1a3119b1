# SPDX-License-Identifier: Apache-2.0
"""User ids of an ingest: of one common type, or mapped to the target log's ids by ``[users] map``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import BadValue
from scalr_prod.ingest.column_parsers import common_id_type
from scalr_prod.ingest.id_mapping import MAPPING_TABLE, UNMAPPED_PREFIX
from scalr_prod.ingest.rows import create_temp_table, scan_table, staged_rows_sql
from scalr_prod.ingest.suppression import exclude_suppressed
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Domain, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.ingest.append import StagedLog
    from scalr_prod.ingest.id_mapping import IdMapping
    from scalr_prod.ingest.staging import StagedEvents
    from scalr_prod.lake import Lake
    from scalr_prod.schemas import IdType
    from scalr_prod.workspace import SuppressionList


logger = logging.getLogger(__name__)

#: So many equal events of other users are no coincidence.
_MIN_MOVED: Final = 20

_SIDES: Final[tuple[Domain, ...]] = ("source", "target")


@dataclass(frozen=True)
class IdMappingCounts(Jsonable):
    """Counts of the source logs' mapped users.

    Attributes:
        pairs: Distinct pairs of the mapping.
        without: Its rows that lack an id on one side; they are ignored.
        mapped: Users of the source logs with a target id.
        unmapped: Users without one; the lake holds them as ``source:<id>``.
        merged: Target ids that several source ids of the logs map to.
    """

    pairs: int
    without: int
    mapped: int
    unmapped: int
    merged: int


class UserIdResolver:
    """Resolver of the user ids of an ingest's logs.

    Args:
        events: The staged logs, by side.
        lake_type: The type of the user ids in the lake, and the table that has it; None: the lake is empty.
        user_map: Mapping of source users to target users; None: the ids are shared.

    Attributes:
        id_type: Type of the ids in the lake.
        has_mapping: Whether source users are mapped to target users.
        mapping_counts: Counts of the source logs' mapped users; None without a mapping or a source log.

    Raises:
        BadValue: The id types are incompatible with one another, or with the lake.
    """

    def __init__(
        self, events: Mapping[Domain, Sequence[StagedEvents]], lake_type: tuple[IdType, str] | None, user_map: IdMapping | None
    ) -> None:
        self._events, self._map = events, user_map
        self.has_mapping = user_map is not None
        self.mapping_counts: IdMappingCounts | None = None
        if user_map is None:
            self.id_type = common_id_type(
                "user", [staged.user_ids for side in _SIDES for staged in events[side]], lake_type=lake_type
            )
            self.log_id_types: dict[Domain, IdType] = dict.fromkeys(_SIDES, self.id_type)
            return
        if lake_type and lake_type[0] != "string":
            raise BadValue(
                f"{lake_type[1]} contains int64 user ids; with a map they are text, since source users without a pair are "
                f"'{UNMAPPED_PREFIX}<id>'",
                where="[users]",
                next_step="start a new project home, or leave [users] out",
            )
        self.id_type = "string"
        ids = {"source": user_map.source_ids, "target": user_map.target_ids}
        self.log_id_types = {
            side: common_id_type("user", [*(staged.user_ids for staged in events[side]), ids[side]]) for side in _SIDES
        }

    def load_mapping(self, db: Any) -> None:
        """Load the mapping, if any, into DuckDB, and count the source logs' mapped users.

        Raises:
            BadValue: It maps a user to several ids.
        """
        if self._map is None:
            return
        pairs, without = self._map.create_table(db, self.log_id_types["source"], self.log_id_types["target"])
        kind = self.log_id_types["source"]
        logs = [staged_rows_sql(staged.files, {USER_ID: kind}) for staged in self._events["source"]]
        self.mapping_counts = _count(db, logs, pairs, without) if logs else None

    def exclude_suppressed(self, db: Any, suppressed: SuppressionList, query: str, domain: Domain) -> str:
        """Return a staged log's query with the lake's user ids, without the rows of erased users and items.

        Args:
            db: DuckDB connection that holds the mapping.
            suppressed: The suppression list.
            query: Query of all rows, with the log's own ids.
            domain: The log's side.
        """
        if self._map is None:
            return exclude_suppressed(db, suppressed, query, domain)
        if domain == "source":
            # Suppress users who were erased under their unmapped id, before the pair was known.
            query = exclude_suppressed(db, suppressed, query, domain, user_sql=_unmapped_id_sql())
            query = (
                f"SELECT log.* REPLACE (coalesce({MAPPING_TABLE}.target, {_unmapped_id_sql('log.')}) AS {USER_ID}) FROM ({query}) AS log "
                f"LEFT JOIN {MAPPING_TABLE} ON {MAPPING_TABLE}.source = CAST(log.{USER_ID} AS VARCHAR)"
            )
        else:
            query = f"SELECT * REPLACE (CAST({USER_ID} AS VARCHAR) AS {USER_ID}) FROM ({query})"
        return exclude_suppressed(db, suppressed, query, domain)

    def ensure_consistent(self, db: Any, lake: Lake, log: StagedLog, *, appends: bool) -> None:
        """Ensure that a log is consistent with the mapping.

        Args:
            db: DuckDB connection that holds the log's view.
            lake: The lake.
            log: The log, with the lake's ids.
            appends: Whether its rows are added to those of the lake, rather than replacing them.

        Raises:
            BadValue: Events of a source log are in the lake under another user; or a target user's id has the prefix of unmapped
                source users.
        """
        if self._map is None:
            return
        if log.domain == "source":
            if appends:
                _refuse_moved(db, lake, log)
        elif prefixed := db.sql(
            f"SELECT min({USER_ID}) FROM {log.view} WHERE starts_with({USER_ID}, '{UNMAPPED_PREFIX}')"
        ).fetchall()[0][0]:
            raise BadValue(
                f"the user id '{prefixed}' begins with '{UNMAPPED_PREFIX}', as the lake's ids of source users without a pair do",
                where=log.origin,
                next_step="give the target's users other ids",
            )


def _unmapped_id_sql(prefix: str = "") -> str:
    """Return the SQL expression of an unmapped source user's id."""
    return f"'{UNMAPPED_PREFIX}' || CAST({prefix}{USER_ID} AS VARCHAR)"


def _count(db: Any, queries: Sequence[str], pairs: int, without: int) -> IdMappingCounts:
    """Count the mapped users of source logs.

    Args:
        db: DuckDB connection that holds the mapping.
        queries: Queries of the logs' rows, with their own ids.
        pairs: See `IdMappingCounts`.
        without: See `IdMappingCounts`.
    """
    users = " UNION ".join(f"SELECT DISTINCT CAST({USER_ID} AS VARCHAR) AS source FROM ({query})" for query in queries)
    mapped, unmapped, targets = db.sql(
        f"SELECT count(target), count(*) - count(target), count(DISTINCT target) FROM ({users}) LEFT JOIN {MAPPING_TABLE} USING (source)"
    ).fetchall()[0]
    merged = db.sql(
        f"SELECT count(*) FROM (SELECT target FROM ({users}) JOIN {MAPPING_TABLE} USING (source) GROUP BY target HAVING count(*) > 1)"
    ).fetchall()[0][0]
    counts = IdMappingCounts(pairs, without, int(mapped), int(unmapped), int(merged))
    if not targets:
        logger.warning("[users]: no user of the source logs is in the map")
    return counts


def _refuse_moved(db: Any, lake: Lake, log: StagedLog) -> None:
    """Reject a source log with events that are in the lake under another user, as after a change of the mapping.

    Args:
        db: DuckDB connection that holds the log's view, with the lake's ids.
        lake: The lake.
        log: The log.

    Raises:
        BadValue: There are such events; says how many, and how to migrate them.
    """
    table = Table.events(log.domain)
    if not lake.exists(table):
        return
    columns = [USER_ID, ITEM_ID, EVENT_TIMESTAMP]
    names = ", ".join(columns)
    rows = scan_table(
        lake.open_table(table), columns=columns, where=log.lake_filter(), since=log.first_event, until=log.last_event
    )
    create_temp_table(db, "lake_events", rows, "SELECT DISTINCT * FROM loaded")
    new = f"SELECT DISTINCT {names} FROM {log.view} ANTI JOIN lake_events USING ({names})"
    # A user that the log no longer has was renamed. Of a user that it has, a lost event may equal another user's new one by chance.
    gone = f"""SELECT {ITEM_ID}, {EVENT_TIMESTAMP}, bool_or({USER_ID} NOT IN (SELECT {USER_ID} FROM {log.view})) AS is_renamed
        FROM lake_events ANTI JOIN {log.view} USING ({names}) GROUP BY ALL"""
    moved, is_renamed, users, first = db.sql(
        f"SELECT count(*), bool_or(is_renamed), count(DISTINCT {USER_ID}), min({EVENT_TIMESTAMP})::VARCHAR FROM ({new}) "
        f"JOIN ({gone}) USING ({ITEM_ID}, {EVENT_TIMESTAMP})"
    ).fetchall()[0]
    db.execute("DROP TABLE lake_events")
    if is_renamed or moved >= _MIN_MOVED:
        raise BadValue(
            f"{moved} events of {users} users are in the lake under other ids, from before [users] changed; this would double-count",
            where=log.origin,
            next_step=f"replace them with a log that has all of them: scalr ingest --replace {first[:10]}",
        )
