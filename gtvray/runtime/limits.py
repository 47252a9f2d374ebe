"""CPUs, memory and processes available to a container or job, from its control groups and CPU affinity.

Ray, torch and psutil read only the root control group, or the host. A job of a batch system, and a container that sees
the host's groups, has its limits in nested groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
# cgroup v1 represents "no limit" by a number of this size.
_UNLIMITED = 1 << 60


def usable_cpus(root: Path = _ROOT) -> int:
    """Number of CPUs available to this process, at least one.

    Args:
        root: folder where proc and sys are mounted.
    """
    quotas = [quota for group in _groups("cpu", root) if (quota := _cpu_quota(group)) is not None]
    return max(1, int(min([float(len(os.sched_getaffinity(0))), *quotas])))


def memory_limit_bytes(root: Path = _ROOT) -> int | None:
    """The smallest memory limit of this process's control groups; None without a limit.

    Args:
        root: folder where proc and sys are mounted.
    """
    limits = [
        limit
        for group in _groups("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(group / name)) is not None and limit < _UNLIMITED
    ]
    return min(limits, default=None)


def process_limit(root: Path = _ROOT) -> int | None:
    """The smallest limit on processes and threads of this process's control groups; None without a limit."""
    limits = [limit for group in _groups("pids", root) if (limit := _number(group / "pids.max")) is not None]
    return min(limits, default=None)


def usable_memory_bytes() -> int:
    """Memory available to this process: the limit of the container or job, otherwise the physical memory."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, memory_limit_bytes() or physical)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's control groups, from its own group up to the root."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        # Without /proc, assume that the root of the mount is the container's group.
        lines = ["0::/", f"1:{controller}:/"]
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        # In a container with cgroup v1 the path is the host's and does not exist; the root is the container's group.
        for mount in (mounts / controller, mounts / names) if names else (mounts, mounts / "unified"):
            inner = mount / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if folder.is_relative_to(mount):
                    yield folder


def _cpu_quota(group: Path) -> float | None:
    """CPU quota in CPUs; None without a quota."""
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
