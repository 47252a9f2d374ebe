"""Names of files and folders that gtvray does not take: those that no table, page or log could show as they are."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from gtvray.errors import InputError

# Control characters, bytes that are no UTF-8 (surrogates), and separators of lines and paragraphs.
_UNFIT = ("Cc", "Cs", "Zl", "Zp")


def is_fit_name(name: str) -> bool:
    """Whether a name consists of characters that can be shown on one line and stored as UTF-8."""
    return not any(unicodedata.category(character) in _UNFIT for character in name)


def require_fit_path(path: Path) -> None:
    """Refuse a path with control characters or bytes that are no UTF-8.

    Raises:
        InputError: naming it with those characters escaped.
    """
    if not is_fit_name(str(path)):
        raise InputError(
            "a name has control characters, or bytes that are no UTF-8",
            where=ascii(str(path)),
            do="rename it, or choose another name",
        )
