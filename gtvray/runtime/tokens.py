"""Ray's authentication token: found, created, and readable by its owner only."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from gtvray.errors import ResourceError
from gtvray.runtime.environment import can_write, private_folder

TOKEN_ADVICE = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (on the head: `ray get-auth-token`)"  # noqa: S105
_OTHERS = 0o077


def use_token() -> None:
    """Use the cluster's token if there is one; to be called before anything imports Ray, which reads it once.

    Ray looks for a token by itself only where it starts a cluster, not where it joins one or submits to it.
    """
    path = _token_path()
    if os.path.isfile(path):
        _restrict(path)
        if os.environ.get("RAY_AUTH_TOKEN_PATH") is None and path != _default_path():
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    elif not os.environ.get("RAY_AUTH_TOKEN"):
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def ensure_token() -> None:
    """Create the token of a cluster that is about to be started here, unless there is one.

    Ray itself would create it readable by every user of the machine.

    Raises:
        ResourceError: it cannot be written.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = _token_path()
    if not os.path.isfile(path):
        try:
            _create(path)
        except OSError as error:
            raise ResourceError(
                "Ray's token cannot be written",
                where=path,
                found=error,
                do="set HOME to a folder that can be written to, or RAY_AUTH_TOKEN to a long secret",
            ) from error
    use_token()


def _create(path: Path) -> None:
    """Write a new token; of several processes that do so at once, one wins and the others use its token."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _restrict(path: Path) -> None:
    """Take away what other users may do with a token file, as far as it is ours."""
    with suppress(OSError):
        found = path.stat()
        if found.st_mode & _OTHERS and found.st_uid == os.getuid():
            path.chmod(found.st_mode & ~_OTHERS & 0o777)


def _token_path() -> Path:
    """The token file: the one that is named, else Ray's own, else one in a private folder if home is read-only."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named:
        return Path(named)
    path = _default_path()
    if os.path.isfile(path) or can_write(path):
        return path
    folder = private_folder()
    return path if folder is None else folder / path.name


def _default_path() -> Path:
    # Unlike Path.home(), this raises no error where there is no home.
    return Path(os.path.expanduser("~/.ray/auth_token"))
