"""Environment variables of this process and its children: telemetry, user name, home and cache folders.

`import gtvray` calls `prepare_environment`, because Ray, MLflow, MONAI, torch and matplotlib read these variables when
they are imported. It raises no errors, because `gtvray --version` must work in any environment. Changes are recorded in
`CHANGED` for `gtvray doctor`.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

# Values set by the user are kept, so telemetry can be enabled.
TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
}
# Variables that this process has replaced because they were missing or unusable: name -> old value, None if unset.
CHANGED: dict[str, str | None] = {}

_USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def prepare_environment() -> None:
    """Disable telemetry, and set a user name, a home and cache folders if they are missing or unusable."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    _set_user_name()
    _set_home()
    _set_caches()


def account_name() -> str | None:
    """The name of the current user in the password database, None if it has no entry."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None


def can_write(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is writable, or can be created if it does not exist."""
    wanted = nearest = os.path.abspath(path)
    while not os.path.exists(nearest):
        nearest = os.path.dirname(nearest)
    if os.path.isdir(nearest):
        return os.access(nearest, os.W_OK | os.X_OK)
    return nearest == wanted and os.access(nearest, os.W_OK)


def private_folder() -> Path | None:
    """A folder for temporary files that only the current user can access, with a short path; None if not possible."""
    for parent in ("/tmp", "/var/tmp", "/dev/shm", _temp_folder()):  # noqa: S108  # owner and mode are checked below
        if parent is not None and _is_private(folder := Path(parent) / f"gtvray-{os.getuid()}"):
            return folder
    return None


def create_private_file(path: str | os.PathLike[str], text: str) -> None:
    """Create a file that only its owner can read, unless the file exists.

    The file gets its name only once it is complete: if several processes create it concurrently, one succeeds and the
    others find its file; a killed process leaves at most a temporary file beside it, never an incomplete file.

    Raises:
        OSError: the folder is not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def set_variable(name: str, value: str) -> None:
    """Set an environment variable and record its old value in `CHANGED`."""
    CHANGED.setdefault(name, os.environ.get(name))
    os.environ[name] = value


def _set_user_name() -> None:
    # getpass.getuser(), called by MONAI and torch on import, reads these variables before the password database.
    if account_name() is None and not any(os.environ.get(name) for name in _USER_NAMES):
        for name in ("USER", "LOGNAME"):
            set_variable(name, f"uid-{os.getuid()}")


def _set_home() -> None:
    if os.environ.get("HOME"):
        return
    home: str | Path | None = None
    with suppress(KeyError):
        home = pwd.getpwuid(os.getuid()).pw_dir
    if home := home or private_folder():
        set_variable("HOME", str(home))


def _set_caches() -> None:
    home = os.environ.get("HOME", "/")
    defaults = {
        "XDG_CACHE_HOME": os.path.join(home, ".cache"),
        # matplotlib prints a warning if its configuration folder is not writable.
        "MPLCONFIGDIR": os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "matplotlib"),
    }
    unusable = [name for name, default in defaults.items() if not can_write(os.environ.get(name) or default)]
    if unusable and (folder := private_folder()):
        for name in unusable:
            set_variable(name, str(folder / ("matplotlib" if name == "MPLCONFIGDIR" else "cache")))


def _is_private(folder: Path) -> bool:
    """Create the folder if necessary; whether it belongs to the current user and is writable."""
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
