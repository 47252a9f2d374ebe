"""Names of files and folders: those of other systems (Windows separators, letter case, Unicode forms, system files),
and those that gtvray refuses because no table, page or log could show them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from gtvray.errors import InputError

_LITTER = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


def is_system_file(name: str) -> bool:
    """Whether a system left a file of this name beside the data: `._scan.nii.gz`, `.DS_Store`, `Thumbs.db`."""
    return name.startswith("._") or name.lower() in _LITTER


def canonical_name(name: str) -> str:
    """A name in Unicode's composed form (NFC); macOS stores `ü` as `u` and a mark (NFD)."""
    return unicodedata.normalize("NFC", name)


def match_name(name: str, names: Iterable[str]) -> str | None:
    """The one of several names that a system without capitals or with another Unicode form means by `name`.

    The same name goes before one that only looks alike.

    Raises:
        InputError: several look alike and none is the same.
    """
    known = list(names)
    for key in (str, canonical_name, _folded):
        found = [each for each in known if key(each) == key(name)]
        if len(found) > 1:
            raise InputError("several names look alike", expected=f"one {name}", found=", ".join(sorted(found)[:5]))
        if found:
            return found[0]
    return None


def find_entry(folder: Path, name: str) -> Path:
    """The entry of a folder that a name means, as `match_name`; `folder / name` if there is none.

    Raises:
        InputError: several entries look alike and none is the same.
    """
    exact = folder / name
    if exact.exists() or exact.is_symlink() or not folder.is_dir():
        return exact
    found = match_name(name, (entry.name for entry in folder.iterdir()))
    return exact if found is None else folder / found


def find_listed(folder: Path, listed: str) -> Path:
    """The file that a text file in `folder` means by a path; it need not exist.

    Args:
        folder: what the path is relative to.
        listed: with the separators of POSIX or Windows.

    Raises:
        InputError: a path with a drive, as on another machine, or one that could mean several files.
    """
    exact = folder / listed
    if exact.exists() or exact.is_symlink():
        return exact
    if PureWindowsPath(listed).drive:
        raise InputError(
            "a path of a Windows machine", where=folder, expected="a path relative to this folder", found=listed
        )
    path = PurePosixPath(*listed_parts(listed))
    found = Path(path.anchor) if path.anchor else folder
    for part in path.parts[1:] if path.anchor else path.parts:
        found = found / part if part == ".." else find_entry(found, part)
    return found


def listed_parts(listed: str) -> tuple[str, ...]:
    """The parts of a path with the separators of POSIX or Windows."""
    return PurePosixPath(listed.replace("\\", "/")).parts


def _folded(name: str) -> str:
    return canonical_name(canonical_name(name).casefold())


# Control characters, bytes that are no UTF-8 (surrogates), and separators of lines and paragraphs.
_UNFIT = ("Cc", "Cs", "Zl", "Zp")


def is_printable_name(name: str) -> bool:
    """Whether a name consists of characters that can be shown on one line and stored as UTF-8."""
    return not any(unicodedata.category(character) in _UNFIT for character in name)


def require_printable_path(path: Path) -> None:
    """Refuse a path with control characters or bytes that are no UTF-8.

    Raises:
        InputError: naming it with those characters escaped.
    """
    if not is_printable_name(str(path)):
        raise InputError(
            "a name has control characters, or bytes that are no UTF-8",
            where=ascii(str(path)),
            do="rename it, or choose another name",
        )
