# SPDX-License-Identifier: Apache-2.0
"""Users' consent to the use of a source domain's events: each user's latest answer, from a column of the log or from a file.

The answers of a log are merged with those of earlier logs: an answer stays until a later event has another one, or until its event may be
one of those that ``--replace`` removes. A file of consents replaces all earlier answers of its domain. A user with events but without an
answer has not consented.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scalr_prod.ingest.rows import create_temp_table, scan_table
from scalr_prod.schemas import EVENT_TIMESTAMP, USER_ID, Table
from scalr_prod.workspace import open_consent, parquet_sql, quote_literal, timestamp_literal, write_consent

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.ingest.append import StagedLog
    from scalr_prod.lake import Lake


logger = logging.getLogger(__name__)


def record_consent(
    settings: Settings, db: Any, lake: Lake, log: StagedLog, answers: str, *, since: datetime | None = None
) -> None:
    """Record the answers of a source domain's users: all who have events in the lake or in the log.

    Args:
        settings: The project's settings.
        db: DuckDB connection that holds the log's users in ``log_users``.
        lake: The lake, with the table of source events.
        log: The log.
        answers: Query of this ingest's answers, with the lake's user ids: ``user_id``, ``event_timestamp``, ``consent``.
        since: The log replaces the domain's events from then on: earlier answers of these no longer count. None: it replaces none.
    """
    section, names = settings.domains[log.place], settings.domains.consent_domains
    domain = quote_literal(section.name)
    lake_users = scan_table(lake.open_table(Table.SOURCE_EVENTS), columns=[USER_ID], where=log.lake_filter())
    create_temp_table(db, "consent_users", lake_users, f"SELECT {USER_ID} FROM loaded UNION SELECT {USER_ID} FROM log_users")
    # Of several answers at the latest time, all must be a consent.
    latest = f"""SELECT {USER_ID}, bool_and(coalesce(consent, false)) AS consent, {EVENT_TIMESTAMP}, 1 AS log
        FROM ({answers}) GROUP BY {USER_ID}, {EVENT_TIMESTAMP}"""
    with open_consent(settings.home) as path:
        former = "" if path is None else f"FROM {parquet_sql(path)}"
        if former and section.consent is None:
            kept = (
                "" if since is None else f" AND ({EVENT_TIMESTAMP} < {timestamp_literal(since)} OR {EVENT_TIMESTAMP} IS NULL)"
            )
            latest += f" UNION ALL SELECT {USER_ID}, consent, {EVENT_TIMESTAMP}, 0 {former} WHERE domain = {domain}{kept}"
        query = f"""SELECT {domain} AS domain, {USER_ID}, coalesce(consent, false) AS consent, {EVENT_TIMESTAMP}
            FROM consent_users LEFT JOIN (
                FROM ({latest})
                QUALIFY row_number() OVER (PARTITION BY {USER_ID} ORDER BY {EVENT_TIMESTAMP} DESC NULLS LAST, log DESC) = 1
            ) USING ({USER_ID})"""
        others = [name for name in names if name != section.name]
        if former and others:
            listed = ", ".join(map(quote_literal, others))
            query += f" UNION ALL SELECT domain, {USER_ID}, consent, {EVENT_TIMESTAMP} {former} WHERE domain IN ({listed})"
        write_consent(db, settings.home, query, section.name, others=others)
    users, without = db.sql(
        f"SELECT count(*), count(*) FILTER (NOT consent) FROM all_answers WHERE domain = {domain}"
    ).fetchall()[0]
    logger.info("%d of %d users of %s have not consented", without, users, section.name)
    db.execute("DROP TABLE consent_users; DROP TABLE all_answers")
