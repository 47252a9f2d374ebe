"""Plan of a prediction on a cluster: number of processes, and resources of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gtvray.errors import DataError, InputError, ResourceError
from gtvray.io import read_volume_header
from gtvray.runtime import Cluster, Needs, Node, count_fitting, nodes_text

# Scans that a process holds at once: one is read, one runs, one is written.
IN_FLIGHT = 3
# Python with torch and the network, and what a scan takes while it is read, run or restored. Measured with a small
# network and scans of 512 x 512 x 124, mode `body` at 3 mm: 513 MB with the model, 1,155 MB with three scans, so 6.6
# bytes per voxel. The rest is for larger networks and for `exhaustive`.
_PROCESS_BYTES = 900_000_000
_BYTES_PER_VOXEL = 10
# Compressed sizes only hint at the number of voxels, so the headers of the largest files are read.
_HEADERS = 32


@dataclass(frozen=True)
class PoolPlan:
    """Number and resources of the prediction processes.

    Attributes:
        actors: number of processes.
        needs: resources of each process.
    """

    actors: int
    needs: Needs

    @property
    def device(self) -> str:
        """Device of the network in each process."""
        return "cuda" if self.needs.gpus else "cpu"


def plan_pool(
    cluster: Cluster, scans: int, *, threads: int, gpus: float | None, memory_bytes: int, on_gpu: bool
) -> PoolPlan:
    """Plan as many processes as fit on the cluster, each on one node, but not more than there are scans.

    Args:
        cluster: the connected cluster.
        scans: number of scans.
        threads: CPUs of a process.
        gpus: GPUs of a process; None for one if the cluster has GPUs. All processes use the same kind of device, so
            that a mask does not depend on the process that made it.
        memory_bytes: memory of a process on its host.
        on_gpu: whether the backend of the model runs on GPUs.

    Raises:
        InputError: more than one GPU, or GPUs for a backend that runs on CPUs only.
        ResourceError: no process fits.
    """
    nodes, growth = list(cluster.nodes), list(cluster.growth)
    if gpus and not on_gpu:
        raise InputError("the backend of this model runs on CPUs only", found=f"--gpus {gpus:g}", do="use --gpus 0")
    if gpus and gpus > 1:
        raise InputError("a process uses one GPU", expected="at most 1", found=gpus, do="use --gpus 1, or less")
    if gpus is None:
        gpus = float(on_gpu and any(node.gpus >= 1 for node in (*nodes, *growth)))
    needs = Needs(threads, gpus, memory_bytes)
    fit = max(count_fitting(needs, nodes), count_fitting(needs, growth))
    if fit < 1:
        raise ResourceError(
            "no prediction process fits on this cluster",
            expected=f"{needs.as_text()} on one node",
            found=nodes_text(nodes, growth),
            do=_remedy(needs, [*nodes, *growth]),
        )
    return PoolPlan(min(fit, scans), needs)


def estimate_memory_bytes(scans: Sequence[Path]) -> int:
    """Estimate the memory of a process that predicts scans, from the headers of the largest files."""
    sizes = {}
    for path in scans:
        with suppress(OSError):
            sizes[path] = path.stat().st_size
    voxels = 0
    for path in sorted(sizes, key=lambda path: -sizes[path])[:_HEADERS]:
        # An invalid file is reported when it is predicted.
        with suppress(DataError, InputError):
            voxels = max(voxels, math.prod(read_volume_header(path).shape))
    return _PROCESS_BYTES + IN_FLIGHT * _BYTES_PER_VOXEL * voxels


def _remedy(needs: Needs, nodes: Sequence[Node]) -> str:
    ways = []
    if needs.gpus and not any(node.gpus >= needs.gpus for node in nodes):
        ways.append("use --gpus 0")
    if all(node.cpus < needs.cpus for node in nodes):
        ways.append("lower --threads")
    if all((node.memory_bytes or needs.memory_bytes) < needs.memory_bytes for node in nodes):
        ways.append("lower --memory-gb if the estimate is too high for these scans")
    return ", or ".join([*ways, "add a larger node"])
