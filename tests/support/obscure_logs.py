"""Eight pairs of logs whose columns have names that no list of names knows, made from a seed.

They were written before the rules that read them. Users have a taste that shows in both logs; their activity and the popularity of
items are skewed; some users are in one log only.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from deltalake import write_deltalake

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TASTES = 6


@dataclass(frozen=True)
class ObscurePair:
    """A pair of logs, and how a person who knows them would map their columns.

    Attributes:
        write: Writes both into a folder.
        source: The value of ``--source``.
        target: The value of ``--target``.
        source_columns: Its user, item and time.
        target_columns: Likewise.
        source_title: Its column of item names, if it has one.
        target_title: Likewise.
    """

    write: Callable[[Path], None]
    source: str
    target: str
    source_columns: tuple[str, str, str]
    target_columns: tuple[str, str, str]
    source_title: str | None = None
    target_title: str | None = None


def _visits(users: np.ndarray, items: int, rows: int, seed: int, *, basket: float = 1.0, again: float = 0.0) -> pd.DataFrame:
    """Draw a log of ``user``, ``item`` (numbers), ``at`` (UTC, seconds), ``visit`` and ``line``, ordered by time.

    Args:
        users: Numbers of the users; a user's taste is the number modulo the tastes.
        items: Number of items.
        rows: Approximate number of rows.
        seed: Of the draws.
        basket: Mean number of items in a visit.
        again: Share of events that repeat an earlier item of the user.
    """
    rng = np.random.default_rng(seed)
    visits = int(rows / basket)
    activity = rng.lognormal(0, 0.8, size=users.size)
    user = rng.choice(users, size=visits, p=activity / activity.sum())
    day, hour = rng.integers(0, 300, size=visits), np.clip(rng.normal(15, 4, size=visits), 0, 23.9)
    at = pd.Timestamp("2023-03-01", tz="UTC") + pd.to_timedelta((day * 86_400 + hour * 3600).astype("int64"), unit="s")
    log = pd.DataFrame({"user": user, "at": at}).sort_values(["at", "user"], ignore_index=True)
    log["visit"] = np.arange(len(log))
    size = 1 + rng.poisson(basket - 1, size=len(log)) if basket > 1 else np.ones(len(log), dtype=int)
    log = log.loc[log.index.repeat(size)].reset_index(drop=True)
    log["line"] = log.groupby("visit").cumcount() + 1
    taste = np.where(rng.random(len(log)) < 0.8, log["user"] % _TASTES, rng.integers(_TASTES, size=len(log)))
    popularity = 1 / (np.arange(items // _TASTES) + 3)
    log["item"] = taste + _TASTES * rng.choice(popularity.size, size=len(log), p=popularity / popularity.sum())
    known: dict[int, list[int]] = {}
    chosen = []
    for who, what, repeats in zip(log["user"], log["item"], rng.random(len(log)) < again, strict=True):
        before = known.setdefault(int(who), [])
        chosen.append(before[int(rng.integers(len(before)))] if repeats and before else int(what))
        before.append(chosen[-1])
    return log.assign(item=chosen)


def _pair(seed: int, *, users: int, items: tuple[int, int], rows: tuple[int, int], **more: float) -> list[pd.DataFrame]:
    """Draw a source log of nine users in ten, and a target log of seven in ten."""
    rng = np.random.default_rng(seed)
    everyone = np.arange(users)
    return [
        _visits(everyone[rng.random(users) < share], items[place], rows[place], seed + place, **more)
        for place, share in enumerate((0.9, 0.7))
    ]


def _hash(kind: str, numbers: pd.Series, length: int) -> list[str]:
    return [hashlib.sha256(f"{kind}{number}".encode()).hexdigest()[:length] for number in numbers]


def _seconds(at: pd.Series) -> pd.Series:
    return at.astype("datetime64[s, UTC]").astype("int64")


_PLACES = ("Lisboa", "Porto", "Faro", "Sintra", "Évora", "Braga", "Coimbra", "Tavira", "Lagos", "Aveiro")
_HOUSES = ("Hotel Miramar", "Casa do Rio", "Pensão Central", "Quinta das Flores", "Hostel Azul", "Palácio Velho", "Vila Sol")
_TABLES = ("Taberna", "Cervejaria", "O Forno", "Marisqueira", "Adega", "Pastelaria", "Tasca", "Churrasqueira")


def hotels_and_tables(folder: Path) -> None:
    """Two CSV files of a travel club: hotel bookings, and tables reserved in restaurants."""
    hotels, tables = _pair(101, users=420, items=(66, 78), rows=(6200, 2100))
    rng = np.random.default_rng(1)
    nights = rng.integers(1, 9, size=len(hotels))
    pd.DataFrame(
        {
            "booking": [f"HB-{number:06d}" for number in rng.permutation(len(hotels)) + 20_000],
            "member": [f"M{user:05d}" for user in hotels["user"] * 7 + 311],
            "thing": [f"{_PLACES[item % 10][:3].upper()}{item:03d}" for item in hotels["item"]],
            "label": [f"{_HOUSES[item // 10]}, {_PLACES[item % 10]}" for item in hotels["item"]],
            "arrival": (hotels["at"] + pd.to_timedelta(rng.integers(0, 120, size=len(hotels)), unit="D")).dt.strftime(
                "%Y-%m-%d"
            ),
            "nights": nights,
            "total": (nights * rng.normal(90, 25, size=len(hotels)).clip(30)).round(2),
            "channel": rng.choice(["web", "app", "phone"], size=len(hotels), p=[0.6, 0.3, 0.1]),
            "booked_at": hotels["at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    ).to_csv(folder / "hotels.csv", index=False)
    pd.DataFrame(
        {
            "member": [f"M{user:05d}" for user in tables["user"] * 7 + 311],
            "thing": tables["item"] + 9000,
            "label": [f"{_TABLES[item // 10]} de {_PLACES[item % 10]}" for item in tables["item"]],
            "covers": rng.integers(1, 7, size=len(tables)),
            "booked_at": tables["at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "wishes": rng.choice(["", "", "window seat", "birthday, please bring a cake", "high chair"], size=len(tables)),
            "channel": rng.choice(["web", "app", "phone"], size=len(tables)),
        }
    ).to_csv(folder / "tables.csv", index=False)


def loans_and_downloads(folder: Path) -> None:
    """A library's SQLite file of four tables, and the JSON lines of its lending of e-books."""
    loans, downloads = _pair(202, users=380, items=(540, 240), rows=(5200, 1900))
    rng = np.random.default_rng(2)
    cards = {user: 21_234_000_000_000 + int(user) * 137 + 11 for user in range(380)}
    with sqlite3.connect(folder / "circ.db") as db:
        pd.DataFrame(
            {
                "bc": list(cards.values()),
                "yob": rng.integers(1940, 2015, size=len(cards)),
                "branch": rng.choice(["MAIN", "EAST", "PARK"], size=len(cards)),
                "expires": "2026-12-31",
            }
        ).to_sql("pat", db, index=False)
        pd.DataFrame(
            {
                "bib": np.arange(540) + 70_001,
                "ttl": [f"The {number % 31} rivers, vol. {number // 31 + 1}" for number in range(540)],
            }
        ).to_sql("bibs", db, index=False)
        due = loans["at"] + pd.Timedelta(days=28)
        back = loans["at"] + pd.to_timedelta(rng.integers(1, 40, size=len(loans)), unit="D")
        pd.DataFrame(
            {
                "pk": np.arange(len(loans)) + 1,
                "bc": loans["user"].map(cards),
                "copy_bc": 31_234_000_000_000 + loans["item"] * 10 + rng.integers(0, 2, size=len(loans)),
                "bib": loans["item"] + 70_001,
                "out_dt": loans["at"].dt.strftime("%Y-%m-%d %H:%M:%S"),
                "due_dt": due.dt.strftime("%Y-%m-%d"),
                "back_dt": back.dt.strftime("%Y-%m-%d %H:%M:%S").where(rng.random(len(loans)) < 0.9),
                "renewals": rng.integers(0, 3, size=len(loans)),
            }
        ).to_sql("mv", db, index=False)
        pd.DataFrame({"k": ["schema", "exported"], "v": ["7", "2024-01-02"]}).to_sql("meta", db, index=False)
    db.close()
    with (folder / "downloads.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(downloads.itertuples()):
            line = {
                "rid": str(uuid.UUID(int=int(rng.integers(2**62)) << 64 | number)),
                "card": cards[row.user],
                "content": f"9780{row.item * 9973:09d}",
                "fmt": "epub" if row.item % 3 else "audio",
                "fetched": int(row.at.timestamp()),
                "client": {"os": "ios" if number % 3 else "android", "v": [3, number % 7]},
                "bytes": int(rng.integers(200_000, 9_000_000)),
            }
            file.write(json.dumps(line) + "\n")


def plays_and_episodes(folder: Path) -> None:
    """Parquet of music plays (milliseconds, sessions, the same track again and again), and JSON lines of podcasts."""
    plays, episodes = _pair(303, users=350, items=(900, 300), rows=(9000, 2400), basket=4.0, again=0.45)
    rng = np.random.default_rng(3)
    accounts = np.sort(rng.choice(np.arange(3_000_000, 9_000_000), size=350, replace=False))
    length = rng.integers(90_000, 400_000, size=900)
    played = (length[plays["item"]] * rng.beta(5, 1, size=len(plays))).astype("int64")
    pd.DataFrame(
        {
            "sess": _hash("session", plays["visit"], 12),
            "acct": accounts[plays["user"]],
            "t": _seconds(plays["at"]) * 1000 + plays["line"] * 215_000 + rng.integers(0, 1000, size=len(plays)),
            "trk": _hash("track", plays["item"], 22),
            "art": _hash("artist", plays["item"] // 9, 22),
            "ms": played,
            "skip": played < 60_000,
            "ctx": rng.choice(['{"from": "radio"}', '{"from": "playlist", "n": 3}', '{"from": "search"}'], size=len(plays)),
        }
    ).to_parquet(folder / "plays.parquet", index=False)
    with (folder / "pods.jsonl").open("w", encoding="utf-8") as file:
        for row in episodes.itertuples():
            line = {
                "ep": f"ep-{row.item:04d}",
                "show": f"sh{row.item // 8}",
                "who": int(accounts[row.user]),
                "pos": int(rng.integers(0, 3600)),
                "t0": int(row.at.timestamp()) * 1000 + row.line * 1_500_000,
                "tags": ["news"] if row.item % 4 else [],
            }
            file.write(json.dumps(line) + "\n")


def tickets_and_merchandise(folder: Path) -> None:
    """A box office's order lines as CSV with slashed dates, and a Delta table of a fan shop's receipts."""
    tickets, shop = _pair(404, users=500, items=(120, 210), rows=(5000, 2300), basket=1.8)
    rng = np.random.default_rng(4)
    fans = np.array([f"{hashlib.sha256(str(user).encode()).hexdigest()[:6]}@example.org" for user in range(500)])
    pd.DataFrame(
        {
            "order_ref": tickets["visit"] + 881_000,
            "ln": tickets["line"],
            "fan": fans[tickets["user"]],
            "show": [f"Night {item % 40 + 1} at venue {item // 40 + 1}" for item in tickets["item"]],
            "block": rng.choice(list("ABCDEF"), size=len(tickets)),
            "seats": rng.integers(1, 5, size=len(tickets)),
            "each": np.array([24.5, 39.0, 59.0, 89.0])[tickets["item"] % 4],
            "sold": tickets["at"].dt.strftime("%d/%m/%Y %H:%M"),
        }
    ).to_csv(folder / "box_office.csv", index=False)
    write_deltalake(
        str(folder / "fan_shop"),
        pd.DataFrame(
            {
                "doc": [f"R{visit:07d}" for visit in shop["visit"]],
                "ean": 4_006_381_000_000 + shop["item"] * 331,
                "text": [f"{'T-shirt' if item % 2 else 'Poster'} no. {item}" for item in shop["item"]],
                "n": rng.integers(1, 4, size=len(shop)),
                "amount": np.array([12.0, 19.9, 35.0])[shop["item"] % 3],
                "mail": fans[shop["user"]],
                "till": rng.integers(1, 30, size=len(shop)),
                "rung_up": shop["at"].astype("datetime64[us, UTC]"),
            }
        ),
    )


def anonymised(folder: Path) -> None:
    """Two Parquet files whose columns are called c1 to c6, in another order in each."""
    views, orders = _pair(505, users=600, items=(480, 300), rows=(8000, 1800))
    rng = np.random.default_rng(5)
    pd.DataFrame(
        {
            "c1": [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(len(views))],
            "c2": _hash("person", views["user"], 16),
            "c3": _hash("page", views["item"], 16),
            "c4": rng.gamma(2, 20, size=len(views)),
            "c5": views["at"].dt.tz_localize(None).astype("datetime64[us]"),
            "c6": rng.choice(["DE", "AT", "CH", "NL"], size=600)[views["user"]],
        }
    ).to_parquet(folder / "a.parquet", index=False)
    pd.DataFrame(
        {
            "c1": orders["at"].dt.tz_localize(None).astype("datetime64[us]"),
            "c2": _hash("product", orders["item"], 16),
            "c3": rng.choice(["DE", "AT", "CH", "NL"], size=600)[orders["user"]],
            "c4": _hash("person", orders["user"], 16),
            "c5": rng.integers(1, 4, size=len(orders)),
            "c6": [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(len(orders))],
        }
    ).to_parquet(folder / "b.parquet", index=False)


def till_and_cinema(folder: Path) -> None:
    """A German till's CSV with semicolons, and a Spanish cinema's Delta table."""
    till, cinema = _pair(606, users=450, items=(300, 84), rows=(7000, 1700), basket=2.5)
    rng = np.random.default_rng(6)
    numbers = np.sort(rng.choice(np.arange(10_000, 60_000), size=450, replace=False))
    price = rng.integers(49, 2999, size=300)
    pd.DataFrame(
        {
            "Bon": till["visit"] + 100_000,
            "Pos": till["line"],
            "Filiale": till["user"] % 12 + 1,
            "Kdnr": numbers[till["user"]],
            "Warengr": till["item"] // 25 + 10,
            "Artnr": till["item"] * 3 + 2001,
            "Bezeichnung": [f"Sorte {item % 17} Größe {item // 17}" for item in till["item"]],
            "Menge": rng.integers(1, 6, size=len(till)),
            "Preis": [f"{cents // 100},{cents % 100:02d}" for cents in price[till["item"]]],
            "Zeitpunkt": till["at"].dt.strftime("%d.%m.%Y %H:%M:%S"),
        }
    ).to_csv(folder / "kasse.csv", index=False, sep=";", encoding="utf-8-sig")
    write_deltalake(
        str(folder / "cine"),
        pd.DataFrame(
            {
                "socio": numbers[cinema["user"]],
                "obra": cinema["item"] + 1,
                "titulo": [f"La película {item}" for item in cinema["item"]],
                "estreno": pd.to_datetime("2023-01-06") + pd.to_timedelta(cinema["item"] * 3, unit="D"),
                "sala": rng.integers(1, 15, size=len(cinema)),
                "importe": rng.choice([6.5, 8.0, 9.5], size=len(cinema)),
                "comprado": cinema["at"].dt.tz_localize(None).astype("datetime64[us]"),
                "funcion": (cinema["at"] + pd.to_timedelta(rng.integers(1, 200, size=len(cinema)), unit="h"))
                .dt.tz_localize(None)
                .astype("datetime64[us]"),
            }
        ),
    )


def only_integers(folder: Path) -> None:
    """JSON lines and a CSV file that hold nothing but integers."""
    taps, rides = _pair(707, users=520, items=(360, 150), rows=(7500, 2600))
    rng = np.random.default_rng(7)
    people = rng.choice(np.arange(100_000, 1_000_000), size=520, replace=False)
    with (folder / "taps.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(taps.itertuples()):
            line = {
                "n": number,
                "m": int(row.item) + 1,
                "k": int(people[row.user]),
                "z": int(row.at.timestamp()),
                "p": int(rng.integers(99, 9999)),
                "q": int(rng.integers(1, 6)),
                "s": int(row.user) % 40,
            }
            file.write(json.dumps(line) + "\n")
    pd.DataFrame(
        {
            "n": np.arange(len(rides)),
            "z": _seconds(rides["at"]),
            "v": rng.integers(1, 400, size=len(rides)),
            "k": people[rides["user"]],
            "r": rides["item"] + 1,
            "f": rng.choice([290, 350, 480], size=len(rides)),
            "d": rng.integers(200, 30_000, size=len(rides)),
        }
    ).to_csv(folder / "rides.csv", index=False)


def letters_and_payments(folder: Path) -> None:
    """Two CSV files with two persons in each row: either may be the user, and the other one what they chose."""
    letters, payments = _pair(808, users=400, items=(396, 396), rows=(6000, 2500))
    rng = np.random.default_rng(8)
    handles = np.array([f"p{number}" for number in rng.choice(np.arange(10_000, 99_999), size=400, replace=False)])
    for name, log in (("letters", letters), ("payments", payments)):
        log["item"] = np.where(log["item"] == log["user"], 399, log["item"])
        pd.DataFrame(
            {
                "x": handles[log["user"]],
                "y": handles[log["item"]],
                "h": log["at"].dt.strftime("%Y-%m-%d %H:%M:%S"),
                "w": rng.integers(1, 500, size=len(log)),
            }
        ).to_csv(folder / f"{name}.csv", index=False)


#: Pairs with one right answer.
CLEAR_PAIRS = {
    "hotels and tables": ObscurePair(
        hotels_and_tables, "hotels.csv", "tables.csv",
        ("member", "thing", "booked_at"), ("member", "thing", "booked_at"), "label", "label",
    ),
    "loans and downloads": ObscurePair(
        loans_and_downloads, "circ.db", "downloads.jsonl", ("bc", "bib", "out_dt"), ("card", "content", "fetched"),
    ),
    "plays and episodes": ObscurePair(
        plays_and_episodes, "plays.parquet", "pods.jsonl", ("acct", "trk", "t"), ("who", "ep", "t0"),
    ),
    "tickets and merchandise": ObscurePair(
        tickets_and_merchandise, "box_office.csv", "fan_shop",
        ("fan", "show", "sold"), ("mail", "ean", "rung_up"), None, "text",
    ),
    "anonymised": ObscurePair(anonymised, "a.parquet", "b.parquet", ("c2", "c3", "c5"), ("c4", "c2", "c1")),
    "till and cinema": ObscurePair(
        till_and_cinema, "kasse.csv", "cine",
        ("Kdnr", "Artnr", "Zeitpunkt"), ("socio", "obra", "comprado"), "Bezeichnung", "titulo",
    ),
    "only integers": ObscurePair(only_integers, "taps.jsonl", "rides.csv", ("k", "m", "z"), ("k", "r", "z")),
}  # fmt: skip
#: A pair in which users and items cannot be told apart: `x` and `y` hold the same people, in both logs.
UNCLEAR_PAIR = ObscurePair(letters_and_payments, "letters.csv", "payments.csv", ("x", "y", "h"), ("x", "y", "h"))
