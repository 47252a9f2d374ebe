"""The folder for temporary files and Ray's session folder, whose path must be short enough for sockets."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from gtvray.errors import ResourceError
from gtvray.runtime.environment import can_write, private_folder, set_variable

# A UNIX socket's path has at most 107 bytes. Ray adds session_DATE_TIME_MICROSECONDS_PID/sockets/NAME.
MAX_TEMP_BYTES = 107 - len("/r4194304/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead") - 3
# Of a link's name, so that /tmp/gtvray-UID/NAME is short enough for every user id.
_LINK_CHARS = 4


def temp_folder() -> str:
    """The folder for temporary files: RAY_TMPDIR, TMPDIR, or a system default such as /tmp.

    Raises:
        ResourceError: no folder for temporary files is writable.
    """
    for named in (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR")):
        if named and os.path.isdir(named) and can_write(named):
            return os.path.abspath(named)
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise no_temp_folder() from error


def ray_temp_folder() -> str:
    """Determine the folder for Ray's sessions, which belongs to this process.

    In a shared folder, Ray would hand a submitted job the address of the cluster that was started last.

    A folder with a long path is accessed through a symbolic link with a short path, so that the files stay on the disk
    chosen by the user. TMPDIR is then set to the link, because child processes create sockets there too.

    Raises:
        ResourceError: no folder is writable, or no path is short enough.
    """
    folder = temp_folder()
    if len(os.fsencode(folder)) > MAX_TEMP_BYTES:
        folder = _short_link(folder)
        for name in ("RAY_TMPDIR", "TMPDIR"):
            if name == "TMPDIR" or name in os.environ:
                set_variable(name, folder)
        tempfile.tempdir = None
    return os.path.join(folder, f"r{os.getpid()}")


def no_temp_folder() -> ResourceError:
    """Build the error for a host without a writable folder for temporary files."""
    return ResourceError(
        "no folder for temporary files is writable",
        found=f"TMPDIR={os.environ.get('TMPDIR', '')}",
        do="set TMPDIR to a writable folder, or mount one (docker run --tmpfs /tmp)",
    )


def _short_link(folder: str) -> str:
    private = private_folder()
    link = None if private is None else private / hashlib.sha256(os.fsencode(folder)).hexdigest()[:_LINK_CHARS]
    if link is None or len(os.fsencode(link)) > MAX_TEMP_BYTES:
        raise ResourceError(
            "the path of the folder for temporary files is too long for Ray's sockets",
            where=folder,
            expected=f"at most {MAX_TEMP_BYTES} bytes",
            found=f"{len(os.fsencode(folder))} bytes",
            do="set TMPDIR to a folder with a short path",
        )
    _link(link, folder)
    return str(link)


def _link(link: Path, folder: str) -> None:
    with suppress(FileExistsError):
        link.symlink_to(folder)
    if os.path.realpath(link) != os.path.realpath(folder):
        raise ResourceError("file already exists", where=link, expected=f"a link to {folder}", do="remove the file")
