"""Checks of the host or container for properties that make commands fail or run slowly, and for free ports."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gtvray.errors import ResourceError
from gtvray.runtime.environment import CHANGED, account_name, can_write
from gtvray.runtime.limits import memory_limit_bytes, process_limit, usable_cpus
from gtvray.runtime.temporary import MAX_TEMP_BYTES, temp_folder

_ROOT = Path("/")
_NEED_MEMORY_GB = 4.0
_NEED_DISK_GB = 2.0
_NEED_TEMP_GB = 1.0
# Size of the object store of a local Ray cluster; Docker's default is 64 MB.
_NEED_SHARED_GB = 0.6
# Ray opens several hundred files and starts several hundred threads, and so does each worker.
_NEED_FILES, _ADVISED_FILES = 256, 8192
_NEED_THREADS = 2048


@dataclass(frozen=True)
class Finding:
    """Result of one check of the host.

    Attributes:
        check: name of the check.
        ok: whether gtvray can run.
        found: the value found.
        do: instruction that corrects or improves it; None if there is nothing to do.
        free_gb: free memory or disk space; None for other checks.
    """

    check: str
    ok: bool
    found: str
    do: str | None = None
    free_gb: float | None = None


def examine_host(workspace: Path, root: Path = _ROOT) -> list[Finding]:
    """Check everything on the host that commands depend on, except packages, devices, ports and servers.

    Args:
        workspace: the workspace folder; need not exist.
        root: folder where proc, sys and dev are mounted.
    """
    return [
        *_proc(root),
        _user(),
        _home(),
        _workspace(workspace),
        _temporary(),
        _shared_memory(root / "dev/shm"),
        _memory(root),
        _cpus(root),
        _files(),
        _threads(root),
        _locale(),
    ]


def port_is_free(host: str, port: int) -> bool:
    """Whether a server can listen on this IPv4 or IPv6 address now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that a port in state TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_port(host: str, port: int, setting: str) -> None:
    """Refuse a port that is in use.

    Args:
        host: address to listen on.
        port: port to listen on.
        setting: setting or option of the port, for the error.

    Raises:
        ResourceError: the port is in use, or the address does not belong to this machine.
    """
    if not port_is_free(host, port):
        raise ResourceError(
            "port is in use",
            where=f"{host}:{port}",
            do=f"choose another port with {setting}, or stop the program that uses it; check that the address is local",
        )


def processor_name(root: Path = _ROOT) -> str:
    """Return the model and architecture of the CPU, or its architecture alone where the model is not known.

    Args:
        root: folder that contains `proc`.
    """
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return f"{value.strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def _proc(root: Path) -> Iterator[Finding]:
    if not os.path.exists(root / "proc/self/stat"):
        yield Finding("proc", False, "/proc is not mounted", "mount it (mount -t proc proc /proc): Ray reads it")


def _user() -> Finding:
    name = account_name()
    if name is not None:
        return Finding("user", True, name)
    name = os.environ.get("LOGNAME") or os.environ.get("USER") or "nobody"
    found = f"uid {os.getuid()} has no entry in /etc/passwd; the name {name} is used"
    return Finding("user", True, found, "set USER to the name to record in reports and the ledger")


def _home() -> Finding:
    given = CHANGED.get("HOME", os.environ.get("HOME"))
    caches = [name for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR") if name in CHANGED]
    if "HOME" in CHANGED:
        do = "set HOME to a writable folder, so that caches and Ray's token persist"
        return Finding("home", True, f"HOME is not set; {os.environ['HOME']} is used", None if account_name() else do)
    if caches:
        instead = ", ".join(f"{name}={os.environ[name]}" for name in caches)
        do = f"set HOME, or {' and '.join(caches)}, to a writable folder"
        return Finding("home", True, f"cache folders under HOME={given} are not writable; {instead} is used", do)
    ok = given is not None and (can_write(given) or can_write(os.environ.get("XDG_CACHE_HOME", "")))
    return Finding("home", ok, f"HOME={given}", None if ok else "set HOME to a writable folder")


def _workspace(workspace: Path) -> Finding:
    folder = os.path.abspath(workspace)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not can_write(workspace):
        do = "choose a writable folder with --workspace or GTVRAY_WORKSPACE"
        return Finding("disk", False, f"{folder} is not writable", do)
    free_gb = shutil.disk_usage(folder).free / 1e9
    do = f"free disk space, or choose another --workspace: at least {_NEED_DISK_GB:g} GB are required"
    found = f"{free_gb:.1f} GB free at {folder}"
    return Finding("disk", free_gb >= _NEED_DISK_GB, found, _if(free_gb < _NEED_DISK_GB, do), free_gb)


def _temporary() -> Finding:
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    try:
        folder = temp_folder()
    except ResourceError as error:
        return Finding("temporary files", False, error.what, error.fields["do"])
    free_gb = shutil.disk_usage(folder).free / 1e9
    found = f"{free_gb:.1f} GB free at {folder}"
    if free_gb < _NEED_TEMP_GB:
        return Finding("temporary files", False, found, f"set TMPDIR to a folder with {_NEED_TEMP_GB:g} GB or more")
    if given and os.path.abspath(given) != folder:
        return Finding("temporary files", True, f"{given} is missing or not writable; {found}", "correct TMPDIR")
    if len(os.fsencode(folder)) > MAX_TEMP_BYTES:
        found += f"; the path is too long for Ray's sockets (over {MAX_TEMP_BYTES} bytes), so a symbolic link is used"
        return Finding("temporary files", True, found, "set TMPDIR to a folder with a short path to avoid the link")
    return Finding("temporary files", True, found)


def _shared_memory(folder: Path) -> Finding:
    do = "start the container with --shm-size=1g: without it Ray stores objects on disk, which is slower"
    if not folder.is_dir():
        return Finding("shared memory", True, f"{folder} is missing", do)
    free_gb = shutil.disk_usage(folder).free / 1e9
    return Finding("shared memory", True, f"{free_gb:.2f} GB free at {folder}", _if(free_gb < _NEED_SHARED_GB, do))


def _memory(root: Path) -> Finding:
    limit = memory_limit_bytes(root)
    free_gb = _free_memory_gb(root)
    found = f"{free_gb:.1f} GB free" if free_gb is not None else "free memory is unknown"
    if limit is not None:
        found += f"; limited to {limit / 1e9:.1f} GB by the container or job"
    usable_gb = min(free_gb if free_gb is not None else float("inf"), limit / 1e9 if limit else float("inf"))
    do = f"stop other programs, or raise the limit (docker run --memory): {_NEED_MEMORY_GB:g} GB are required"
    return Finding("memory", usable_gb >= _NEED_MEMORY_GB, found, _if(usable_gb < _NEED_MEMORY_GB, do), free_gb)


def _free_memory_gb(root: Path) -> float | None:
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) / 1e6
    except (OSError, KeyError, ValueError):
        return None


def _cpus(root: Path) -> Finding:
    usable, present = usable_cpus(root), os.cpu_count() or 1
    limited = f" of the host's {present}, limited by the container or job" if usable < present else ""
    return Finding("CPUs", True, f"{usable}{limited}")


def _files() -> Finding:
    # Ray raises the soft limit to the hard one.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    do = f"raise it: ulimit -n {_ADVISED_FILES}, or docker run --ulimit nofile=65536"
    limit = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    found = f"{soft} open files, at most {'unlimited' if hard == resource.RLIM_INFINITY else hard}"
    return Finding("open files", limit >= _NEED_FILES, found, _if(limit < _ADVISED_FILES, do))


def _threads(root: Path) -> Finding:
    limits = [limit for limit in (process_limit(root), resource.getrlimit(resource.RLIMIT_NPROC)[0]) if limit]
    known = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    if not known:
        return Finding("threads", True, "unlimited")
    do = f"raise it: ulimit -u {2 * _NEED_THREADS}, or docker run --pids-limit={2 * _NEED_THREADS}"
    return Finding("threads", True, f"at most {min(known)}", _if(min(known) < _NEED_THREADS, do))


def _locale() -> Finding:
    encoding = sys.getfilesystemencoding()
    ok = encoding.lower() == "utf-8" and (sys.stdout.encoding or "utf-8").lower() == "utf-8"
    return Finding(
        "locale", True, f"file names in {encoding}", _if(not ok, "set LC_ALL=C.UTF-8 for non-ASCII file names")
    )


def _if(condition: bool, advice: str) -> str | None:
    return advice if condition else None
