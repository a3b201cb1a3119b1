# SPDX-License-Identifier: Apache-2.0
"""Rules by which `scalr init` finds user, item and time from the values of both logs, if names do not show them (ADR 0026)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from scalr_prod.apps.onboarding.names import has_known_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.apps.onboarding.column_profiles import ColumnProfile, LogProfile


#: Smallest sample that decides anything.
_ROWS: Final = 50
#: Smallest number of users, and of values that the user columns of two logs share.
LEAST_USERS: Final = 20
#: Integers of two logs are shared beyond chance if this many times as many agree as would by chance, ...
_LIFT: Final = 2.0
#: ... and the difference is this many standard deviations.
_DEVIATIONS: Final = 5.0
#: Share of values in the other log, in both directions, that integers need that agree no more than by chance.
_SHARED_BY_CHANCE: Final = 0.5
#: Share of values in the other log, in the better direction, below which a user column is not taken without being asked about.
_SHARED_LEAST: Final = 0.05
#: How many times as shared as any other a user column has to be.
_MARGIN: Final = 2.0
#: A column with fewer distinct values, and at most a fifth of another candidate's, is a group: a country, a shop, a seat.
_GROUPS: Final = 50
_GROUP_RATIO: Final = 5
#: A column that another candidate determines, with at most half as many values, is one of its attributes.
_ATTRIBUTE_RATIO: Final = 2
#: Bins of common integers within which they would be shared by chance.
_BINS: Final = 32
#: Fewer distinct values are never items.
_ITEMS: Final = 10
#: Share of a user's pairs of rows that agree from which on a column describes the user.
_SAME_IN_USER: Final = 0.3
#: Share of an item's repeated values that several users have.
_SEVERAL_USERS: Final = 0.5
#: A column that determines another code is a variant or copy of it if it has 1.5 to 3 times as many values, and is grouped by it from
#: 5 times on; between these, either may be the item.
_VARIANTS: Final = (1.5, 3.0)
_GROUPED: Final = 5.0


@dataclass
class Inference:
    """What the values of a log's sample show.

    Attributes:
        columns: Role → the column that fits best.
        unsure: Role → columns that the values do not distinguish.
        evidence: Column → what was found, in words.
        title: The column of the items' names.
        notes: Role → choice between several possibilities.
    """

    columns: dict[str, str] = field(default_factory=dict)
    unsure: dict[str, list[str]] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    title: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


def infer_columns(logs: Mapping[str, LogProfile], named: Mapping[str, Mapping[str, str]]) -> dict[str, Inference]:
    """Find user, item and time of each log.

    Args:
        logs: Place → profile of a sample; the target is last.
        named: Place → role → column that the user or its name gave; it is kept.

    Returns:
        Place → what was found. A role without a fitting column is missing.
    """
    found = {place: Inference({**named[place]}) for place in logs}
    _infer_users(logs, found)
    for place, log in logs.items():
        one = found[place]
        for column in log.columns.values():
            one.evidence.setdefault(column.name, _describe(column))
        if "user" in one.columns:
            _infer_item(log, one)
        _infer_time(log, one)
        if "item" in one.columns:
            one.title = _title(log, one)
        if log.rows < _ROWS:
            one.unsure |= {role: [name] for role, name in one.columns.items() if role not in {*named[place], *one.unsure}}
    return found


def is_event_log(log: LogProfile) -> bool:
    """Return whether a table may be a log: it has a time in the past, and two columns of ids that repeat."""
    ids = [column for column in _id_candidates(log) if column.distinct >= _ITEMS and not column.is_unique]
    return len(ids) > 1 and any(column.times is not None and column.times.is_past for column in log.columns.values())


def _describe(column: ColumnProfile) -> str:
    if column.times is not None:
        return f"{column.times.form} from {' to '.join(column.times.dates)}"
    return f"{column.problem}; {column.describe()}" if column.problem not in {None, "one value"} else column.describe()


class _Overlap(NamedTuple):
    """Values that a source column and a target column share."""

    source: str
    target: str
    shared: int
    shares: tuple[float, float]
    beyond_chance: bool


def _infer_users(logs: Mapping[str, LogProfile], found: Mapping[str, Inference]) -> None:
    """Find the user columns: what each source shares with the target."""
    *sources, target = logs
    pairs = {place: _user_pairs(logs[place], logs[target], found[place], found[target]) for place in sources}
    # The clearest source first: the others have to agree with it on the target's column.
    for place in sorted(sources, key=lambda place: len(pairs[place]) != 1):
        fitting = pairs[place]
        if len(sources) > 1 and (taken := found[target].columns.get("user")) is not None:
            fitting = [pair for pair in fitting if pair.target == taken]
        if not fitting:
            continue
        best = fitting[0]
        rivals = [pair for pair in fitting if min(pair.shares) * _MARGIN > min(best.shares)]
        for one, name in ((place, best.source), (target, best.target)):
            alike = list(dict.fromkeys(pair.source if one == place else pair.target for pair in rivals))
            if "user" not in found[one].columns:
                found[one].columns["user"] = name
                if len(alike) > 1 or max(best.shares) < _SHARED_LEAST:
                    found[one].unsure["user"] = alike
            for pair in reversed(rivals):
                column = pair.source if one == place else pair.target
                total = logs[one].columns[column].distinct
                found[one].evidence[column] = f"{pair.shared:,} of {total:,} values are in the other log, too"


def _user_pairs(source: LogProfile, target: LogProfile, left: Inference, right: Inference) -> list[_Overlap]:
    """Return the pairs of columns that may be the users of two logs, the most shared first."""
    found = [
        _overlap(first, second)
        for first in _user_candidates(source, left.columns)
        for second in _user_candidates(target, right.columns)
    ]
    found = [pair for pair in found if pair.shared >= LEAST_USERS]
    if any(pair.beyond_chance for pair in found):
        found = [pair for pair in found if pair.beyond_chance]
    else:
        found = [pair for pair in found if min(pair.shares) >= _SHARED_BY_CHANCE]
    found = [pair for pair in found if not any(_yields(pair, to, source, target) for to in found)]
    return sorted(found, key=lambda pair: min(pair.shares), reverse=True)


def _user_candidates(log: LogProfile, taken: Mapping[str, str]) -> list[ColumnProfile]:
    if "user" in taken:
        return [log.columns[taken["user"]]]
    return [column for column in _id_candidates(log) if column.name not in taken.values() and not log.is_brief(column.name)]


def _id_candidates(log: LogProfile) -> list[ColumnProfile]:
    """Return the columns that can hold ids; numbers that look like times are among them only beside other times."""
    has_times = any(column.times is not None and not column.times.is_epoch for column in log.columns.values())
    return [
        column
        for column in log.columns.values()
        if column.problem is None and (column.times is None or (column.times.is_epoch and has_times))
    ]


def _overlap(first: ColumnProfile, second: ColumnProfile) -> _Overlap:
    shared = len(first.texts & second.texts)
    expected = 0.0
    if first.integers is not None and second.integers is not None:
        expected = _expected_overlap(first.integers, second.integers)
    beyond = shared >= _LIFT * expected and shared - expected >= _DEVIATIONS * expected**0.5
    shares = shared / max(len(first.texts), 1), shared / max(len(second.texts), 1)
    return _Overlap(first.name, second.name, shared, shares, beyond)


def _expected_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Return how many integers two sets would share if each were drawn at random, at the density that it has in each bin."""
    low, high = max(first[0], second[0]), min(first[-1], second[-1])
    if high < low:
        return 0.0
    both = np.sort(np.concatenate([first, second]))
    both = both[(both >= low) & (both <= high)]
    edges = np.unique([*both[:: max(len(both) // _BINS, 1)], high + 1])
    counts = [np.histogram(numbers, edges)[0] for numbers in (first, second)]
    return float((counts[0] * counts[1] / np.diff(edges)).sum())


def _yields(pair: _Overlap, to: _Overlap, source: LogProfile, target: LogProfile) -> bool:
    """Return whether a pair of columns is no user beside another pair: a group, an attribute, a second id, or unique in each row."""
    if pair.source == to.source or pair.target == to.target:
        return False
    both = [
        (log, log.columns[mine], log.columns[other])
        for log, mine, other in ((source, pair.source, to.source), (target, pair.target, to.target))
    ]
    unique = any(mine.is_unique for _, mine, _ in both), any(other.is_unique for _, _, other in both)
    if unique[0] != unique[1]:
        return unique[0]
    if all(_is_group(mine, other) for _, mine, other in both):
        return True
    if not all(log.determines(other.name, mine.name) for log, mine, other in both):
        return False
    return all(mine.distinct * _ATTRIBUTE_RATIO <= other.distinct for _, mine, other in both) or (
        all(log.determines(mine.name, other.name) for log, mine, other in both)
        and _preference(both[0][2]) < _preference(both[0][1])
    )


def _is_group(column: ColumnProfile, beside: ColumnProfile) -> bool:
    return column.distinct < _GROUPS and column.distinct * _GROUP_RATIO <= beside.distinct


def _preference(column: ColumnProfile) -> tuple[bool, float, str]:
    """Return the order in which columns that say the same are preferred as ids: codes, then short ones."""
    return column.is_words, column.length, column.name


def _infer_item(log: LogProfile, found: Inference) -> None:
    """Find the item: several users have it, and it depends on the user without being the same in all of a user's rows."""
    if "item" in found.columns:
        return
    user = found.columns["user"]
    spans = {column.name: column.distinct for column in log.columns.values() if column.times is not None}
    time = found.columns.get("timestamp") or max(spans, key=lambda name: spans[name], default=None)
    time = time if time in spans else None
    fitting: list[ColumnProfile] = []
    depends: dict[str, bool | None] = {}
    for column in _id_candidates(log):
        if column.name in found.columns.values():
            continue
        problem = _no_item(log, column, user, time)
        if problem is None:
            within = log.within_users(column.name, user, time)
            problem = f"two rows of a user agree in {within.share:.1%}, any two in {within.chance:.1%}"
            if within.share < _SAME_IN_USER:
                fitting.append(column)
                depends[column.name] = within.depends
        before = found.evidence[column.name] if column.name in found.unsure.get("user", ()) else f"{column.distinct:,} values"
        found.evidence[column.name] = f"{before}; {problem}"
    if not fitting:
        return
    # What does not depend on the user is a measurement, unless there is nothing else.
    fitting = [one for one in fitting if depends[one.name] or (depends[one.name] is None and not one.is_smooth)] or fitting
    known = [column.name for column in fitting if has_known_name("item", column.name)]
    candidates = [column for column in _without_groups(log, fitting, found) if not known or column.name in known]
    names = [column.name for column in candidates] or known
    found.columns["item"] = max(names, key=lambda name: log.columns[name].distinct)
    if len(names) > 1:
        found.unsure["item"] = names


def _no_item(log: LogProfile, column: ColumnProfile, user: str, time: str | None) -> str | None:
    """Return why a column is not the item, or None if it may be."""
    if column.is_unique:
        return "nearly every row has another one"
    if column.distinct < _ITEMS:
        return f"too few for items: {', '.join(sorted(column.texts))[:60]}"
    if log.determines(user, column.name):
        return "the same in all rows of a user"
    if log.shared_by_users(column.name, user) < _SEVERAL_USERS:
        return "each belongs to one user"
    if log.rises_within_users(column.name, user, time):
        return "rises with the time of a user"
    return None


def _without_groups(log: LogProfile, columns: Sequence[ColumnProfile], found: Inference) -> list[ColumnProfile]:
    """Remove second ids, names, groups and variants of the items among candidates."""
    if any(not column.is_words for column in columns):
        columns = [column for column in columns if not column.is_words]
    most = max(columns, key=lambda column: column.distinct)
    columns = [column for column in columns if not _is_group(column, most)]
    removed: set[str] = set()
    for fine in columns:
        for coarse in columns:
            if fine is coarse or not log.determines(fine.name, coarse.name):
                continue
            ratio = fine.distinct / coarse.distinct
            if log.determines(coarse.name, fine.name):
                removed.add(max(fine, coarse, key=_preference).name)
            elif ratio >= _GROUPED or not coarse.is_code:
                removed.add(coarse.name)
            elif _VARIANTS[0] <= ratio < _VARIANTS[1]:
                removed.add(fine.name)
                found.notes["item"] = f"{fine.name} are its variants: {ratio:.1f} for each"
    return [column for column in columns if column.name not in removed]


def _infer_time(log: LogProfile, found: Inference) -> None:
    """Find the time of the event: of several times in a row the first one, unless it is that of the user or the item."""
    if "timestamp" in found.columns:
        return
    taken = found.columns.values()
    spans = [column for column in log.columns.values() if column.times is not None and column.name not in taken]
    fitting = []
    for column in spans:
        of = next(
            (role for role in ("user", "item") if role in found.columns and log.determines(found.columns[role], column.name)),
            None,
        )
        if of is not None:
            found.evidence[column.name] += f"; the same in all rows of {'a user' if of == 'user' else 'an item'}"
        elif column.times is not None and not column.times.is_past:
            found.evidence[column.name] += "; in the future"
        else:
            fitting.append(column)
    if any(column.times is not None and not column.times.is_epoch for column in fitting):
        fitting = [column for column in fitting if column.times is not None and not column.times.is_epoch]
    if not fitting:
        return
    first = [
        column
        for column in fitting
        if all(log.is_never_later(column.name, other.name) for other in fitting if other is not column)
    ]
    if not first:
        first = [column for column in fitting if log.is_sorted(column.name)]
    # Of several forms of one time, the finest.
    best = max(first or fitting, key=lambda column: column.distinct)
    found.columns["timestamp"] = best.name
    others = [column.name for column in fitting if column is not best]
    if first and others:
        found.notes["timestamp"] = f"{best.name} was taken, the first in each row; {', '.join(others)} would do too"
    elif others:
        found.unsure["timestamp"] = [column.name for column in fitting]


def _title(log: LogProfile, found: Inference) -> str | None:
    """Return the column of the items' names: words that are one-to-one with the item."""
    item = found.columns["item"]
    fitting = [
        column
        for column in log.columns.values()
        if column.name not in found.columns.values()
        and column.problem is None
        and column.times is None
        and column.has_letters
        and (column.is_words or has_known_name("title", column.name))
        and log.is_one_to_one(item, column.name)
    ]
    best = max(fitting, key=lambda column: column.length, default=None)
    if best is None:
        return None
    found.evidence[best.name] = f"{best.distinct:,} values; one for each item: its name"
    return best.name
