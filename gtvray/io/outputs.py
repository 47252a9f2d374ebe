"""Checked writes to user-chosen paths: no input, foreign file or modified output is overwritten.

Commands call `check_outputs` before they read data, load a model or write to the ledger. Writing checks again, so a
file created in the meantime is not overwritten either. The rules are described in docs/guide-predict.md.
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
from gtvray.io.uris import require_path

_MOST_NAME_BYTES = 255
_MOST_SHOWN = 3
# Device and inode: equal for every path, link and spelling of a file.
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
    """Refuse outputs that would overwrite an input, each other, or a file that gtvray did not write.

    Files are compared by device and inode, so links, `..` and case-insensitive file systems do not hide a match. Output
    names that differ only by case or Unicode form are duplicates, because some file systems do not distinguish them.

    Args:
        outputs: files to be written.
        inputs: files that the command reads.
        closed: read-only folders, such as a bundle; no output may be anywhere below.
        apart_from: folders whose files are read as scans or masks; no output may be directly inside.
        overwrite: whether unmodified gtvray outputs may be replaced.
        folders: outputs that are folders.

    Raises:
        InputError: an output is refused; nothing has been written.
    """
    output_folders, files = list(folders), list(outputs)
    targets = [*files, *output_folders]
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
                "output would overwrite an input",
                where=target,
                found=f"input {read[inode]}",
                do="choose another name",
            )
        parents = Path(os.path.realpath(target)).parents
        _require_outside(target, parents, protected)
        _require_outside(target, parents[:1], crowded)
    present = [target for target in targets if os.path.lexists(target)]
    foreign = [target for target in present if not _is_own(target, target in output_folders)]
    if foreign:
        raise InputError(
            "output already exists and is not an unmodified gtvray output",
            where=_shown(foreign),
            do="move it away, or choose another name; --overwrite does not replace it",
        )
    if present and not overwrite:
        raise InputError(
            "output already exists",
            where=_shown(present),
            do="add --overwrite to replace earlier gtvray outputs, or choose another name",
        )


def require_distinct(paths: Iterable[Path]) -> None:
    """Refuse two paths that are, or on some file systems would be, the same file.

    Raises:
        InputError: names both paths.
    """
    seen: dict[object, Path] = {}
    for path in paths:
        other = seen.setdefault(_identity(path), path)
        if other is not path:
            raise InputError(
                "two outputs have the same name",
                where=path,
                found=f"the same as {other}" if other == path else f"{other}, the same file or, on some systems, name",
                do="write them to different folders, or rename an input",
            )


def write_output(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write marked content atomically; with `overwrite`, an unmodified gtvray output at `path` is replaced.

    Raises:
        InputError: the path exists and may not be replaced.
        ResourceError: the disk is full.
    """

    def may_replace() -> bool:
        return overwrite and is_own_file(path)

    with atomic_path(path, may_replace=may_replace) as temporary:
        temporary.write_bytes(content)


def write_output_volume(path: Path, volume: Volume, *, overwrite: bool = False) -> None:
    """Write a volume as `write_output` does, in the format of the file extension."""
    write_output(path, marked_volume(path.name, volume), overwrite=overwrite)


def write_output_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write HTML, Markdown or YAML as `write_output` does."""
    write_output(path, marked_text(path.name, text), overwrite=overwrite)


def write_output_json(path: Path, value: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write an object as JSON as `write_output` does."""
    write_output(path, marked_json(value), overwrite=overwrite)


@contextmanager
def output_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success add a manifest and rename it to `path`, as `write_output` does for a file.

    Raises:
        InputError: the path exists and may not be replaced.
        ResourceError: the disk is full.
    """
    with atomic_dir(path) as temporary:
        yield temporary
        mark_folder(temporary)
        check_outputs([], folders=[path], overwrite=overwrite)


def _is_own(target: Path, is_folder: bool) -> bool:
    return is_own_folder(target) if is_folder else is_own_file(target)


def _require_name(target: Path) -> None:
    require_path(target)
    require_printable_path(target)
    name = target.name
    size = len(os.fsencode(name))
    if not name or size > _MOST_NAME_BYTES:
        found = f"{size} bytes" if name else "no name"
        raise InputError("output name is empty or too long", where=target, expected="1 to 255 bytes", found=found)


def _require_parent(target: Path) -> None:
    """Check that the nearest existing parent is a writable folder."""
    try:
        above = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
        if not above.is_dir():
            raise InputError("not a folder", where=above, expected="a writable folder", do="choose another name")
    except OSError as error:
        raise InputError("folder is not writable", where=target.parent, found=error.strerror) from error
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError("folder is not writable", where=above, do="choose a writable folder")


def _require_outside(target: Path, parents: Sequence[Path], protected: Mapping[_Inode, Path]) -> None:
    for parent in parents:
        inode = _inode(parent)
        if inode is not None and inode in protected:
            raise InputError(
                "output would be inside a folder of scans, masks or a model",
                where=target,
                found=f"in {protected[inode]}",
                do="choose another folder",
            )


def _inode(path: Path) -> _Inode | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _identity(path: Path) -> object:
    """A key equal for all paths of a file: its inode, or that of the nearest existing parent and the names below."""
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
