"""URIs: folders are copied to and from object stores by URI, and objects are read; everything else needs a path.

Commands write to a workspace with file locks, atomic renames and SQLite, and read volumes by memory map; an object
store has none of these. See docs/decisions/0026-uris.md.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gtvray.errors import ForbiddenError, GtvrayError, InputError, NotFoundError, ResourceError

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

_BLOCK_BYTES = 8 * 2**20
# `Path` collapses the slashes. A scheme of one letter is a Windows drive.
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+")

# What pyarrow reports of an S3 store.
_DENIED = re.compile(r"AWS Error ACCESS_DENIED|AccessDenied|HTTP status 403")
_REASON = re.compile(r"AWS Error (\w+)")


def is_uri(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a URI such as `s3://bucket/folder` rather than a path; `./s3:/folder` is a path."""
    return _URI.match(os.fspath(location)) is not None


def require_path(path: str | os.PathLike[str]) -> None:
    """Refuse a URI where only a path works: it would become a local folder with a name such as `s3:`.

    Raises:
        InputError: the location is a URI.
    """
    text = os.fspath(path)
    match = _URI.match(text)
    if match is None:
        return
    scheme, rest = match["scheme"], text[match.end() :]
    do = (
        f"write it as /{unquote(rest)}"
        if scheme.lower() == "file"
        else "name a path on this host, or on a file system that is mounted here; `gtvray models export` and "
        "`gtvray models import` copy models to and from an object store"
    )
    raise InputError("a path is needed here, not a URI", where=f"{scheme}://{rest}", expected="a path", do=do)


def upload_folder(folder: Path, uri: str, last: str) -> None:
    """Copy a folder to a new place in an object store.

    Args:
        folder: the local folder.
        uri: the new folder, such as `s3://bucket/folder`.
        last: the file that is copied last, relative to the folder, so that an incomplete copy lacks it.

    Raises:
        InputError: the place is not empty, or the URI is not supported.
        ResourceError: the store does not answer, or refuses.
    """
    from pyarrow.fs import FileSelector

    with _store_errors(uri):
        store, root = _open(uri)
        if store.get_file_info(FileSelector(root, allow_not_found=True, recursive=True)):
            raise InputError("the target is not empty", where=uri, do="choose another one, or remove it")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: (name == last, name)):
            store.create_dir(str(PurePosixPath(root, name).parent), recursive=True)
            with (
                (folder / name).open("rb") as source,
                store.open_output_stream(f"{root}/{name}", compression=None) as target,
            ):
                shutil.copyfileobj(source, target, _BLOCK_BYTES)


def download_folder(uri: str, folder: Path) -> None:
    """Copy a folder of an object store into an existing local folder; what is copied is not verified.

    Args:
        uri: the folder, such as `s3://bucket/folder`.
        folder: the local folder.

    Raises:
        NotFoundError: there is nothing.
        InputError: the URI is not supported.
        ResourceError: the store does not answer, or refuses.
    """
    from pyarrow.fs import FileSelector, FileType

    with _store_errors(uri):
        store, root = _open(uri)
        found = store.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
        files = [entry.path for entry in found if entry.type == FileType.File]
        if not files:
            raise NotFoundError("there are no files", where=uri)
        for path in files:
            target = folder / PurePosixPath(path).relative_to(root)
            # Names come from the store: none may lead out of the folder.
            if ".." in target.parts:
                raise InputError("a name in the object store leads out of the folder", where=uri, found=path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with store.open_input_stream(path, compression=None) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK_BYTES)


@dataclass(frozen=True)
class ObjectState:
    """Size and time of the last change of an object, as the store reports them."""

    size: int
    modified_ns: int | None


class ObjectReader:
    """Reads one object of a store. Errors contain neither its name nor the store's text, which contains the name.

    Args:
        folder: URI of a folder that contains the object.
        name: name of the object in that folder, taken as it is.

    Raises:
        InputError: the URI is not supported.
        ResourceError: the store does not answer, or refuses.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder = folder
        with _object_errors(folder):
            self._store, root = _open(folder)
        self._path = f"{root}/{name}"
        self._stream: NativeFile | None = None

    def state(self) -> ObjectState:
        """Return its state.

        Raises:
            NotFoundError: there is no such object.
            ForbiddenError: the store does not permit to read it.
            ResourceError: the store does not answer, or refuses.
        """
        from pyarrow.fs import FileType

        with _object_errors(self._folder):
            found = self._store.get_file_info(self._path)
        if found.type != FileType.File:
            raise NotFoundError("no such object", where=self._folder)
        return ObjectState(found.size, found.mtime_ns)

    def read(self, count: int) -> bytes:
        """Read the next bytes, at most `count`; empty at the end. Raises as `state`."""
        with _object_errors(self._folder):
            if self._stream is None:
                # By default pyarrow decompresses an object whose name ends with .gz.
                self._stream = self._store.open_input_stream(self._path, compression=None)
            return bytes(self._stream.read(count))

    def close(self) -> None:
        """Close it."""
        if self._stream is not None:
            self._stream.close()


@contextmanager
def _object_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except GtvrayError:
        raise
    except FileNotFoundError:
        raise NotFoundError("no such object", where=folder) from None
    except OSError as error:
        text = str(error)
        if isinstance(error, PermissionError) or _DENIED.search(text):
            raise ForbiddenError(
                "the object store does not permit this object to be read",
                where=folder,
                do="ask the operator to permit the endpoint to read it",
            ) from None
        reason = _REASON.search(text)
        found = reason[1] if reason else type(error).__name__
        do = "check the store and its variables, such as AWS_ENDPOINT_URL, and retry"
        raise ResourceError("the object store failed", where=folder, found=found, do=do) from None


def _open(uri: str) -> tuple[FileSystem, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        store, root = FileSystem.from_uri(uri)
    except (ArrowException, ValueError) as error:
        raise InputError(
            "this URI is not supported",
            where=uri,
            expected="a path, or a URI that pyarrow opens: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER",
            found=error,
        ) from error
    return store, root.rstrip("/")


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except GtvrayError:
        raise
    except OSError as error:
        raise ResourceError(
            "the object store failed",
            where=uri,
            found=error,
            do="check the URI, the store and its variables, such as AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and run this again",
        ) from error
