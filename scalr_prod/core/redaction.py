# SPDX-License-Identifier: Apache-2.0
"""Redaction of secrets in drivers' messages and in shown settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


#: A secret of this length is masked inside words too; a shorter one would match words by chance.
_LONG: Final = 6
#: Names of options and of a URL's query whose values are secret.
_SECRET_NAME: Final = re.compile(
    r"secret|passw|token|signature|credential|access_key|account_key|^sig$|^sas|(^|[_-])key$", re.IGNORECASE
)
#: User, optional password and the last ``@``. Where a path begins before any ``:`` or ``@``, there is no user.
_USER: Final = re.compile(r"://(?=[^/]*[:@])(.*)@", re.DOTALL)
#: The query: text after a ``?`` that holds ``name=``; the ``?`` of a glob does not.
_QUERY: Final = re.compile(r"(?<=\?)(?=[^/=?]*=).*", re.DOTALL)


def is_secret_name(name: str) -> bool:
    """Return whether an option of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str, secrets: Iterable[str | None]) -> str:
    """Replace every secret in a text by ``***``, plain or URL-quoted.

    Args:
        text: A driver's message.
        secrets: Passwords and the like; empty ones are ignored.
    """
    spellings = {spelling for secret in secrets if secret for spelling in (secret, quote(secret), quote_plus(secret))}
    for spelling in sorted(spellings, key=len, reverse=True):
        pattern = re.escape(spelling)
        text = re.sub(pattern if len(spelling) >= _LONG else rf"(?<![^\W_]){pattern}(?![^\W_])", "***", text)
    return text


def redact_url(text: str) -> str:
    """Replace user and password of a URL (up to the last ``@``) and each value of its query by ``***``.

    Where user and query cannot be told apart, everything after ``://`` is replaced. A text without ``://`` is returned unchanged.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    user, query = _USER.search(separator + rest), _QUERY.search(rest)
    if user and query and query.start() < user.end() - len(separator):
        return f"{scheme}://***"
    if query:
        tokens = re.split(r"([&;#])", query[0])
        rest = rest[: query.start()] + "".join(map(_masked_token, tokens))
    return scheme + _USER.sub("://***@", separator + rest, count=1)


def url_secrets(url: str | None, *, whole_query: bool = True) -> list[str]:
    """List the secrets in a URL, as written and unquoted; a text that is not a URL raises no error.

    Args:
        url: The URL.
        whole_query: Include every value of the query, not only those whose names sound secret.

    Returns:
        The password, or a user without one, which may be a token; and the values of the query.
    """
    text = url or ""
    user, query = _USER.search(text), _QUERY.search(text)
    secrets = []
    if user:
        name, _, password = user[1].partition(":")
        secrets.append(password or name)
    if query:
        tokens = [token.partition("=") for token in re.split("[&;#]", query[0])]
        secrets += [value or name for name, _, value in tokens if whole_query or is_secret_name(name)]
    return [spelling for secret in secrets if secret for spelling in dict.fromkeys((secret, unquote(secret)))]


def secrets_in(values: Mapping[str, Any], *, options: bool = False) -> Iterator[str]:
    """Yield the secrets in URLs and in Redis' connection strings (``host:port,password=…``).

    Args:
        values: Settings, nested.
        options: Whether they are options of a library: those whose names sound secret are secrets. In ``storage_options`` they always are.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            yield from secrets_in(value, options=options or name == "storage_options")
        elif isinstance(value, str) and "://" in value:
            yield from url_secrets(value, whole_query=False)
        elif isinstance(value, str) and ",password=" in value:
            yield from (part.removeprefix("password=") for part in value.split(",") if part.startswith("password="))
        elif options and value and is_secret_name(name):
            yield str(value)


def strip_credentials(url: str) -> str:
    """Return the URL without user and password (up to the last ``@``)."""
    return _USER.sub("://", url, count=1)


def url_host(url: str) -> str:
    """Return host and port of a URL, even if it cannot be parsed."""
    return re.split(r"[/?#]", strip_credentials(url).partition("://")[2])[0]


def _masked_token(token: str) -> str:
    """Mask one token of a split query: keep separators and names, replace values."""
    if token in {"", "&", ";", "#"}:
        return token
    name, separator, _ = token.partition("=")
    return f"{name}=***" if separator else "***"
