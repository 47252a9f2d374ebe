"""File names: differences between operating systems (separators, case, Unicode, system files), and valid names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from gtvray.errors import InputError

_SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


def is_system_file(name: str) -> bool:
    """Whether an operating system creates files of this name: `._scan.nii.gz`, `.DS_Store`, `Thumbs.db`."""
    return name.startswith("._") or name.lower() in _SYSTEM_FILES


def canonical_name(name: str) -> str:
    """Normalize a name to NFC; macOS stores `ü` as `u` and a combining mark (NFD)."""
    return unicodedata.normalize("NFC", name)


def match_name(name: str, names: Iterable[str]) -> str | None:
    """Find a name among several: exactly, else by Unicode form, else case-insensitively; None if there is no match.

    Raises:
        InputError: the match is ambiguous.
    """
    known = list(names)
    for key in (str, canonical_name, _folded):
        found = [each for each in known if key(each) == key(name)]
        if len(found) > 1:
            raise InputError("file name is ambiguous", expected=f"one {name}", found=", ".join(sorted(found)[:5]))
        if found:
            return found[0]
    return None


def find_entry(folder: Path, name: str) -> Path:
    """Find an entry of a folder as `match_name` does; `folder / name` if there is none.

    Raises:
        InputError: the match is ambiguous.
    """
    exact = folder / name
    if exact.exists() or exact.is_symlink() or not folder.is_dir():
        return exact
    found = match_name(name, (entry.name for entry in folder.iterdir()))
    return exact if found is None else folder / found


def find_listed(folder: Path, listed: str) -> Path:
    """Resolve a path listed in a text file in `folder`; the file need not exist.

    Args:
        folder: base of relative paths.
        listed: path with POSIX or Windows separators.

    Raises:
        InputError: the path has a Windows drive or is ambiguous.
    """
    exact = folder / listed
    if exact.exists() or exact.is_symlink():
        return exact
    if PureWindowsPath(listed).drive:
        raise InputError(
            "path has a Windows drive", where=folder, expected="a path relative to this folder", found=listed
        )
    path = PurePosixPath(*listed_parts(listed))
    found = Path(path.anchor) if path.anchor else folder
    for part in path.parts[1:] if path.anchor else path.parts:
        found = found / part if part == ".." else find_entry(found, part)
    return found


def listed_parts(listed: str) -> tuple[str, ...]:
    """Split a path with POSIX or Windows separators into its parts."""
    return PurePosixPath(listed.replace("\\", "/")).parts


def _folded(name: str) -> str:
    return canonical_name(canonical_name(name).casefold())


# Unicode categories of control characters, surrogates (undecodable bytes), and line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def is_printable_name(name: str) -> bool:
    """Whether a name can be printed on one line and encoded as UTF-8."""
    return not any(unicodedata.category(character) in _UNPRINTABLE for character in name)


def require_printable_path(path: Path) -> None:
    """Refuse a path with control characters or bytes that are not UTF-8.

    Raises:
        InputError: shows the path with these characters escaped.
    """
    if not is_printable_name(str(path)):
        raise InputError(
            "path has control characters or bytes that are not UTF-8",
            where=ascii(str(path)),
            do="rename it, or choose another name; if the name is UTF-8, set LC_ALL=C.UTF-8",
        )
