"""The guard of everything that a command writes to a path of the user's choice.

`check_outputs` runs before anything is read, a model is loaded or a look is recorded. Writing checks again, so that a
file which appears in the meantime is not replaced either. See docs/guide-predict.md for the rules in words.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gtvray.errors import InputError
from gtvray.geometry import Volume
from gtvray.io.atomic import atomic_dir, atomic_path
from gtvray.io.marks import is_own_file, is_own_folder, mark_folder, marked_json, marked_text, marked_volume
from gtvray.io.names import require_printable_path

_MOST_NAME_BYTES = 255
_MOST_SHOWN = 3
# Device and inode: the same for every path, link and spelling that leads to one file.
_Inode = tuple[int, int]


def check_outputs(
    outputs: Iterable[Path],
    *,
    inputs: Iterable[Path] = (),
    closed: Iterable[Path] = (),
    apart_from: Iterable[Path] = (),
    overwrite: bool = False,
    folders: Iterable[Path] = (),
) -> None:
    """Refuse outputs that would replace an input, each other, or a file that gtvray did not write.

    Files are compared by device and inode, so links, `..` and case-insensitive file systems do not hide a match. Names
    of outputs that differ only by case or Unicode form count as one, because some file systems take them for one.

    Args:
        outputs: files to be written.
        inputs: files that the command reads.
        closed: folders that must not change, such as a bundle; no output may lie anywhere below.
        apart_from: folders that no output may lie directly in, because it would be taken for a scan or mask of theirs.
        overwrite: whether gtvray's own outputs, unchanged since they were written, may be replaced.
        folders: outputs that are folders, to appear or to be replaced in one step.

    Raises:
        InputError: an output is refused; nothing has been written.
    """
    whole, files = list(folders), list(outputs)
    targets = [*files, *whole]
    for target in targets:
        _require_name(target)
        _require_parent(target)
    require_distinct(targets)
    read = {inode: path for path in inputs if (inode := _inode(path)) is not None}
    protected = {inode: path for path in closed if (inode := _inode(path)) is not None}
    crowded = {inode: path for path in apart_from if (inode := _inode(path)) is not None}
    for target in targets:
        inode = _inode(target)
        if inode is not None and inode in read:
            raise InputError(
                "an output would replace an input", where=target, found=f"input {read[inode]}", do="choose another name"
            )
        parents = Path(os.path.realpath(target)).parents
        _require_outside(target, parents, protected)
        _require_outside(target, parents[:1], crowded)
    present = [target for target in targets if os.path.lexists(target)]
    foreign = [target for target in present if not _is_own(target, target in whole)]
    if foreign:
        raise InputError(
            "an output is there already, and is not an unchanged output of gtvray",
            where=_shown(foreign),
            do="move it away, or choose another name; --overwrite does not replace it",
        )
    if present and not overwrite:
        raise InputError(
            "an output is there already",
            where=_shown(present),
            do="add --overwrite to replace gtvray's earlier outputs, or choose another name",
        )


def require_distinct(paths: Iterable[Path]) -> None:
    """Refuse two paths that are, or on some file systems would be, one file.

    Raises:
        InputError: naming both.
    """
    seen: dict[object, Path] = {}
    for path in paths:
        other = seen.setdefault(_identity(path), path)
        if other is not path:
            raise InputError(
                "two outputs of one name",
                where=path,
                found=f"the same as {other}" if other == path else f"{other}, the same file or, on some systems, name",
                do="write them apart, or rename an input",
            )


def write_output(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write a marked file, whole or not at all; a file that is there is replaced only if it is gtvray's own.

    Raises:
        InputError: something else is there, or something is and `overwrite` was not given.
        ResourceError: the disk is full.
    """

    def may_replace() -> bool:
        return overwrite and is_own_file(path)

    with atomic_path(path, may_replace=may_replace) as temporary:
        temporary.write_bytes(content)


def write_output_volume(path: Path, volume: Volume, *, overwrite: bool = False) -> None:
    """Write a volume as `write_output` does, in the format of the name's ending."""
    write_output(path, marked_volume(path.name, volume), overwrite=overwrite)


def write_output_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write HTML, Markdown or YAML as `write_output` does."""
    write_output(path, marked_text(path.name, text), overwrite=overwrite)


def write_output_json(path: Path, value: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write an object as JSON as `write_output` does."""
    write_output(path, marked_json(value), overwrite=overwrite)


@contextmanager
def output_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill, which then appears as `path`, with a record that makes it recognisable.

    Raises:
        InputError: something else is there, or something is and `overwrite` was not given.
        ResourceError: the disk is full.
    """
    with atomic_dir(path) as temporary:
        yield temporary
        mark_folder(temporary)
        check_outputs([], folders=[path], overwrite=overwrite)


def _is_own(target: Path, is_folder: bool) -> bool:
    return is_own_folder(target) if is_folder else is_own_file(target)


def _require_name(target: Path) -> None:
    require_printable_path(target)
    name = target.name
    size = len(os.fsencode(name))
    if not name or size > _MOST_NAME_BYTES:
        found = f"{size} bytes" if name else "no name"
        raise InputError("no fit name for an output", where=target, expected="1 to 255 bytes", found=found)


def _require_parent(target: Path) -> None:
    """The nearest folder above that exists must be one, and be writable."""
    try:
        above = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
        if not above.is_dir():
            raise InputError("not a folder", where=above, expected="a folder to write to", do="choose another name")
    except OSError as error:
        raise InputError("cannot write here", where=target.parent, found=error.strerror) from error
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError("cannot write here", where=above, do="choose a folder you may write to")


def _require_outside(target: Path, parents: Sequence[Path], protected: Mapping[_Inode, Path]) -> None:
    for parent in parents:
        inode = _inode(parent)
        if inode is not None and inode in protected:
            raise InputError(
                "an output would lie among the scans or in a model's folder",
                where=target,
                found=f"in {protected[inode]}",
                do="choose a folder elsewhere",
            )


def _inode(path: Path) -> _Inode | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _identity(path: Path) -> object:
    """Equal for two paths of one file: its inode, or that of the nearest folder above and the names below it."""
    inode = _inode(path)
    if inode is not None:
        return inode
    resolved, names = Path(os.path.realpath(path)), []
    while (inode := _inode(resolved)) is None and resolved != resolved.parent:
        names.append(unicodedata.normalize("NFC", resolved.name).casefold())
        resolved = resolved.parent
    return inode, tuple(names)


def _shown(paths: list[Path]) -> str:
    more = f" and {len(paths) - _MOST_SHOWN} more" if len(paths) > _MOST_SHOWN else ""
    return ", ".join(map(str, paths[:_MOST_SHOWN])) + more
