# SPDX-License-Identifier: Apache-2.0
"""Secrets taken out of what drivers say, and of what is shown of the settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["host_of", "masked", "masked_url", "secrets_of", "without_user"]

#: A secret of this length is masked inside of words too; a shorter one would be found in words that do not hold it.
_LONG: Final = 6
#: A user, perhaps a password, and the last ``@``. Where a path begins before any ``:`` and ``@``, there is no user.
_USER: Final = re.compile(r"://(?=[^/]*[:@])(.*)@", re.DOTALL)
#: What follows a ``?``, where values are named there; the ``?`` of a glob names none.
_QUERY: Final = re.compile(r"(?<=\?)(?=[^/=?]*=).*", re.DOTALL)


def masked(text: str, secrets: Iterable[str | None]) -> str:
    """The text with ``***`` for every secret, as it is or quoted as in a URL.

    Args:
        text: What a driver says.
        secrets: Passwords and the like; empty ones are left out.
    """
    for secret in sorted({spelled for one in secrets if one for spelled in (one, quote(one), quote_plus(one))}, key=len)[::-1]:
        found = re.escape(secret)
        text = re.sub(found if len(secret) >= _LONG else rf"(?<![^\W_]){found}(?![^\W_])", "***", text)
    return text


def masked_url(text: str) -> str:
    """The text with ``***`` for user and password of a URL in it, up to the last ``@``, and for each value of its query.

    Where the one cannot be told from the other, nothing after ``://`` is shown. A text without ``://`` is given back as it is.
    """
    scheme, found, rest = text.partition("://")
    if not found:
        return text
    user, query = _USER.search(found + rest), _QUERY.search(rest)
    if user and query and query.start() < user.end() - len(found):
        return f"{scheme}://***"
    if query:
        pieces = re.split(r"([&;#])", query[0])
        rest = rest[: query.start()] + "".join(map(_masked_piece, pieces))
    return scheme + _USER.sub("://***@", found + rest, count=1)


def secrets_of(url: str | None) -> list[str]:
    """What is secret in a URL, as it is written and unquoted; of a text that is no URL too, without an error.

    Returns:
        The password, or a user without one, which may be a token; and the values of the query.
    """
    text = url or ""
    user, query = _USER.search(text), _QUERY.search(text)
    found = []
    if user:
        name, _, password = user[1].partition(":")
        found.append(password or name)
    if query:
        found += [piece.partition("=")[2] or piece for piece in re.split("[&;#]", query[0])]
    return [spelled for one in found if one for spelled in dict.fromkeys((one, unquote(one)))]


def without_user(url: str) -> str:
    """The URL without user and password, up to the last ``@``."""
    return _USER.sub("://", url, count=1)


def host_of(url: str) -> str:
    """Host and port of a URL, of one that cannot be read too."""
    return re.split(r"[/?#]", without_user(url).partition("://")[2])[0]


def _masked_piece(piece: str) -> str:
    """A part of a query: its separators as they are, else its name, where it has one."""
    if piece in {"", "&", ";", "#"}:
        return piece
    name, named, _ = piece.partition("=")
    return f"{name}=***" if named else "***"
