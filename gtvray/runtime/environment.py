"""Environment variables of this process and its children, for containers and for hosts that may call nobody.

`import gtvray` calls `prepare_environment`, because Ray, MLflow, MONAI, torch and matplotlib read these variables when
they are imported. Nothing here raises an error: `gtvray --version` must work where nothing else does. What was changed
is kept in `CHANGED`, so that `gtvray doctor` can report it.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

# A value that the user has set stays: whoever wants these reports can have them.
TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
}
# Variables that this process has set in place of missing or unusable ones: name -> value before, None if unset.
CHANGED: dict[str, str | None] = {}

_USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def prepare_environment() -> None:
    """Switch telemetry off, and supply a user name, a home and cache folders where the host has none."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    _name_user()
    _find_home()
    _find_caches()


def account_name() -> str | None:
    """The name of this process's user in the password database, if there is one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None


def can_write(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder of this name could be created, or written to if it exists."""
    wanted = nearest = os.path.abspath(path)
    while not os.path.exists(nearest):
        nearest = os.path.dirname(nearest)
    if os.path.isdir(nearest):
        return os.access(nearest, os.W_OK | os.X_OK)
    return nearest == wanted and os.access(nearest, os.W_OK)


def private_folder() -> Path | None:
    """A folder for temporary files that only this user can enter, with a short path; None if none can be created."""
    for parent in ("/tmp", "/var/tmp", "/dev/shm", _temp_folder()):  # noqa: S108  # owner and mode are checked below
        if parent is not None and _is_private(folder := Path(parent) / f"gtvray-{os.getuid()}"):
            return folder
    return None


def change(name: str, value: str) -> None:
    """Set a variable for this process and its children, and remember what it was before."""
    CHANGED.setdefault(name, os.environ.get(name))
    os.environ[name] = value


def _name_user() -> None:
    # getpass.getuser(), which MONAI and torch call when imported, asks these variables before the password database.
    if account_name() is None and not any(os.environ.get(name) for name in _USER_NAMES):
        for name in ("USER", "LOGNAME"):
            change(name, f"uid-{os.getuid()}")


def _find_home() -> None:
    if os.environ.get("HOME"):
        return
    home: str | Path | None = None
    with suppress(KeyError):
        home = pwd.getpwuid(os.getuid()).pw_dir
    if home := home or private_folder():
        change("HOME", str(home))


def _find_caches() -> None:
    home = os.environ.get("HOME", "/")
    defaults = {
        "XDG_CACHE_HOME": os.path.join(home, ".cache"),
        # matplotlib reads its settings from there, and warns on stderr where it cannot write them.
        "MPLCONFIGDIR": os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "matplotlib"),
    }
    unusable = [name for name, default in defaults.items() if not can_write(os.environ.get(name) or default)]
    if unusable and (folder := private_folder()):
        for name in unusable:
            change(name, str(folder / ("matplotlib" if name == "MPLCONFIGDIR" else "cache")))


def _is_private(folder: Path) -> bool:
    """Create the folder if there is none; refuse one that another user has put there."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        if found.st_mode & 0o077:
            folder.chmod(0o700)
        return os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def _temp_folder() -> str | None:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return None
