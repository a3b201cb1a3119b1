"""Secrets taken out of what drivers say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["masked"]

#: A secret of this length is masked inside of words too; a shorter one would be found in words that do not hold it.
_LONG: Final = 6


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
