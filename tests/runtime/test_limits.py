"""CPUs, memory and threads of a container or job, from its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gtvray.runtime import cluster
from gtvray.runtime.limits import memory_limit_bytes, process_limit, usable_cpus

GB = 10**9
ALL = len(os.sched_getaffinity(0))
UNLIMITED_V1 = {"memory/memory.limit_in_bytes": str(2**63 - 4096), "cpu/cpu.cfs_quota_us": "-1"}
# Name, /proc/self/cgroup (None: no /proc), files under /sys/fs/cgroup, expected CPUs and memory limit.
TREES = [
    ("none", "0::/", {}, ALL, None),
    ("no proc", None, {"cpu.max": "100000 100000", "memory.max": f"{3 * GB}"}, 1, 3 * GB),
    ("v2 container", "0::/", {"cpu.max": "150000 100000", "memory.max": f"{3 * GB}"}, 1, 3 * GB),
    ("v2 without limits", "0::/", {"cpu.max": "max 100000", "memory.max": "max"}, ALL, None),
    ("v2 less than one CPU", "0::/", {"cpu.max": "20000 100000"}, 1, None),
    ("v2 more CPUs than there are", "0::/", {"cpu.max": "99900000 100000"}, ALL, None),
    (
        "v2 job whose parent is tighter",
        "0::/slurm/job/step",
        {"slurm/job/step/memory.max": "max", "slurm/job/memory.max": f"{GB}", "slurm/job/cpu.max": "100000 100000"},
        1,
        GB,
    ),
    (
        "v1 container that sees its own groups",
        "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a",
        {
            "cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": f"{2 * GB}",
        },
        1,
        2 * GB,
    ),
    ("v1 without limits", "5:cpu:/\n4:memory:/", UNLIMITED_V1, ALL, None),
    (
        "v1 job within the host's groups",
        "5:cpu:/job\n4:memory:/job\n0::/",
        {**UNLIMITED_V1, "memory/job/memory.limit_in_bytes": f"{GB}"},
        ALL,
        GB,
    ),
    ("unreadable", "0::/", {"cpu.max": "much", "memory.max": ""}, ALL, None),
]


@pytest.mark.parametrize(
    ("groups", "files", "cpus", "memory"), [row[1:] for row in TREES], ids=[row[0] for row in TREES]
)
def test_cpu_and_memory_limits(
    tmp_path: Path, groups: str | None, files: dict[str, str], cpus: int, memory: int | None
) -> None:
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert (usable_cpus(tmp_path), memory_limit_bytes(tmp_path)) == (cpus, memory)


def test_smallest_process_limit_applies(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("8:pids:/a\n")
    (tmp_path / "sys/fs/cgroup/pids/a").mkdir(parents=True)
    assert process_limit(tmp_path) is None
    (tmp_path / "sys/fs/cgroup/pids/pids.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/pids/a/pids.max").write_text("100\n")
    assert process_limit(tmp_path) == 100


@pytest.fixture
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Provide a token and a folder for temporary files, so that the options of a local cluster can be requested."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("TMPDIR", "/tmp")
    return monkeypatch


def test_local_cluster_respects_the_limits(starting: pytest.MonkeyPatch) -> None:
    starting.setattr(cluster, "usable_cpus", lambda: 3)
    starting.setattr(cluster, "usable_memory_bytes", lambda: GB)
    options = cluster._local_options(None)
    assert (options["num_cpus"], options["object_store_memory"]) == (3, GB // 4)
    assert options["_memory"] + options["object_store_memory"] == GB
    assert cluster._local_options(2)["num_cpus"] == 2


def test_objects_are_stored_on_disk_without_shared_memory(tmp_path: Path, starting: pytest.MonkeyPatch) -> None:
    assert "_plasma_directory" not in cluster._local_options(1)
    starting.setattr(cluster, "_SHARED_MEMORY", str(tmp_path / "shm"))
    options = cluster._local_options(1)
    assert options["_plasma_directory"] == options["_temp_dir"]
