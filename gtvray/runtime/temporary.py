"""Where Ray's session folder lies: a path short enough for its sockets, on the disk that TMPDIR names."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from gtvray.errors import ResourceError
from gtvray.runtime.environment import can_write, change, private_folder

# A UNIX socket's path has at most 107 bytes. Ray adds /ray/session_DATE_TIME_MICROSECONDS_PID/sockets/NAME.
MAX_TEMP_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead") - 3


def temp_folder() -> str:
    """The folder for temporary files that Ray would use if its path were short enough: RAY_TMPDIR, TMPDIR, or /tmp.

    Raises:
        ResourceError: no folder for temporary files can be written to.
    """
    for named in (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR")):
        if named and os.path.isdir(named) and can_write(named):
            return os.path.abspath(named)
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise no_temp_folder() from error


def ray_temp_folder() -> str:
    """Where Ray shall keep its session.

    A folder with a long path is reached through a link from a short one, so that the files stay on the disk the user
    has chosen. TMPDIR is then the link for the processes started from here, which place sockets in it as well.

    Raises:
        ResourceError: no folder can be written to, or the only one has too long a path.
    """
    folder = temp_folder()
    if len(os.fsencode(folder)) > MAX_TEMP_BYTES:
        folder = _short_link(folder)
        for name in ("RAY_TMPDIR", "TMPDIR"):
            if name == "TMPDIR" or name in os.environ:
                change(name, folder)
        tempfile.tempdir = None
    return os.path.join(folder, "ray")


def no_temp_folder() -> ResourceError:
    """What to report where no folder for temporary files can be written to."""
    return ResourceError(
        "no folder for temporary files can be written to",
        found=f"TMPDIR={os.environ.get('TMPDIR', '')}",
        do="set TMPDIR to one, or mount one (docker run --tmpfs /tmp)",
    )


def _short_link(folder: str) -> str:
    private = private_folder()
    link = None if private is None else private / hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
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
        raise ResourceError("this name is taken", where=link, expected=f"a link to {folder}", do="remove it")
