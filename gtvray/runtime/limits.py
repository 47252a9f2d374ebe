"""What a container or job may use: CPUs and memory by its control groups and CPU affinity, not by the host.

Ray, torch and psutil look at the control group at the root of the mount only, or at the host. A batch system's job, and
a container that sees the host's groups, has its limits further down.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
# Version 1 writes a number of this size where there is no limit.
_UNLIMITED = 1 << 60


def usable_cpus(root: Path = _ROOT) -> int:
    """CPUs this process may keep busy, at least one.

    Args:
        root: where proc and sys are mounted.
    """
    quotas = [quota for group in _groups("cpu", root) if (quota := _cpu_quota(group)) is not None]
    return max(1, int(min([float(len(os.sched_getaffinity(0))), *quotas])))


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """The least memory limit of the control groups this process is in; None where there is none.

    Args:
        root: where proc and sys are mounted.
    """
    limits = [
        limit
        for group in _groups("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(group / name)) is not None and limit < _UNLIMITED
    ]
    return min(limits, default=None)


def process_limit(root: Path = _ROOT) -> int | None:
    """The least number of processes and threads that the control groups allow; None where there is no limit."""
    limits = [limit for group in _groups("pids", root) if (limit := _number(group / "pids.max")) is not None]
    return min(limits, default=None)


def usable_memory_bytes() -> int:
    """Memory of this machine, or of the container or job."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, memory_limit_bytes() or physical)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups this process is in, from its own up to the root of the mount."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        # Without /proc the container's own group is where it is mounted.
        lines = ["0::/", f"1:{controller}:/"]
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        # In a container of version 1 the path is the host's and is not there; its root is the container's group.
        for mount in (mounts / controller, mounts / names) if names else (mounts, mounts / "unified"):
            inner = mount / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(mount):
                    yield folder


def _cpu_quota(group: Path) -> float | None:
    """CPUs' worth of time; None where there is no quota."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
