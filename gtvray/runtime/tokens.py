"""Ray's authentication token, readable only by its owner."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from gtvray.errors import AuthError, ResourceError
from gtvray.runtime.environment import can_write, create_private_file, private_folder

TOKEN_ADVICE = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (on the head: `ray get-auth-token`)"  # noqa: S105
_OTHERS = 0o077
# A call that changes nothing, and its time limit in seconds.
_CALL, _CALL_S = "/ray.rpc.NodeInfoGcsService/CheckAlive", 10.0


def use_token() -> None:
    """Enable token authentication if a token exists; call it before Ray is imported, which reads the settings once.

    Ray itself looks for a token only when it starts a cluster, not when it connects or submits a job to one.
    """
    path = _token_path()
    if os.path.isfile(path):
        _restrict(path)
        _export_path(path)
    elif not os.environ.get("RAY_AUTH_TOKEN"):
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def ensure_token() -> None:
    """Create a token for a local cluster unless one exists.

    Ray would create one that every user of the machine can read.

    Raises:
        ResourceError: the token file is not writable.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = _token_path()
    if not os.path.isfile(path):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_private_file(path, secrets.token_hex(32))
        except OSError as error:
            raise ResourceError(
                "Ray's token file is not writable",
                where=path,
                found=error,
                do="set HOME to a writable folder, or RAY_AUTH_TOKEN to a long secret",
            ) from error
    if "ray" in sys.modules:
        # Ray has read the mode already; set now, only the processes that it starts would require the token.
        _export_path(path)
    else:
        use_token()


def match_cluster(address: str) -> None:
    """Disable token authentication in this process if a cluster does not use it; call it before Ray is imported.

    Calls are authenticated in both directions: a process with a token refuses the calls of a cluster without one. The
    cluster then takes the process for dead, and ends its actors before they run.

    Args:
        address: host:port of its GCS, or "auto".

    Raises:
        AuthError: the cluster uses no token, and Ray, which reads the mode once, has been imported already.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return
    found = _newest_cluster() if address == "auto" else address
    if found is None or not _answers_without_token(found):
        return
    if "ray" in sys.modules:
        raise AuthError(
            "the Ray cluster uses no token, but this process requires one",
            where=found,
            do="set RAY_AUTH_MODE=disabled before Ray is imported, or start the cluster with RAY_AUTH_MODE=token",
        )
    os.environ["RAY_AUTH_MODE"] = "disabled"


def _answers_without_token(address: str) -> bool:
    # Takes a third of a second to import, which only commands that connect to a cluster need.
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CALL)(b"", timeout=_CALL_S)
        except grpc.RpcError:
            return False
    return True


def _newest_cluster() -> str | None:
    """The address of the cluster that was last started on this machine, which Ray stores in a file."""
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  # Ray's default
    with suppress(OSError):
        return Path(temporary, "ray", "ray_current_cluster").read_text().strip() or None
    return None


def _export_path(path: Path) -> None:
    if os.environ.get("RAY_AUTH_TOKEN_PATH") is None and path != _default_path():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _restrict(path: Path) -> None:
    """Remove the permissions of other users from a token file of the current user."""
    with suppress(OSError):
        found = path.stat()
        if found.st_mode & _OTHERS and found.st_uid == os.getuid():
            path.chmod(found.st_mode & ~_OTHERS & 0o777)


def _token_path() -> Path:
    """The token file: RAY_AUTH_TOKEN_PATH, otherwise Ray's default, or one in a private folder if home is read-only."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named:
        return Path(named)
    path = _default_path()
    if os.path.isfile(path) or can_write(path):
        return path
    folder = private_folder()
    return path if folder is None else folder / path.name


def _default_path() -> Path:
    # Unlike Path.home(), this raises no error without a home.
    return Path(os.path.expanduser("~/.ray/auth_token"))
